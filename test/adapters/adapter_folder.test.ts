// An adapter of a run that has not come to its end says of which step it is, and a run without an adapter names its checkpoints.
import { appendFileSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { adapterTask, savedParameterShape } from '../../lib/adapters/adapter_folder.ts';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { FormatError } from '../../lib/errors.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { TrainEvent } from '../../lib/train/types.ts';
import { tinyClassifier, tinyLabelled } from '../support/tiny_classifier.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

let output: string;
beforeEach(() => {
  output = join(mkdtempSync(join(tmpdir(), 'balora-unfinished-')), 'out');
});
afterEach(() => rmSync(join(output, '..'), { recursive: true, force: true }));

const checkpoint = (step: number) => join(output, 'run/checkpoints', `step-${step}`);

async function train(more: Partial<TrainerOptions>, stopAfter?: number): Promise<void> {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 4, loraAlpha: 8 });
  const stop = new AbortController();
  await new Trainer({
    ...{ tuned, output, data: tinySource(tinyBatches()), learningRate: 0.02 },
    ...{ lrSchedulerType: 'constant', saveSteps: 2, maxSteps: 8, signal: stop.signal },
    callbacks: [
      (event: TrainEvent) =>
        void (event.type === 'step' && event.record.step === stopAfter && stop.abort()),
    ],
    ...more,
  }).train();
}

const loaded = async (folder = output) =>
  (await AdapterModel.fromPretrained(new TinyModel(), folder)).warnings;

describe('a run that was interrupted', () => {
  it('before its end has no adapter, and the error names its checkpoints', async () => {
    await train({}, 5);
    const message = `${output}: its run has not written an adapter yet, and is at step 5 of 8; resume the run, or give a checkpoint: ${checkpoint(5)}, ${checkpoint(4)}`;
    await expect(loaded()).rejects.toThrow(FormatError);
    await expect(loaded()).rejects.toThrow(message);
    await expect(adapterTask(output)).rejects.toThrow(message);
    await expect(savedParameterShape(output, 'classifier.weight')).rejects.toThrow(message);
    expect(await loaded(checkpoint(5))).toEqual([
      `${checkpoint(5)}: this is the adapter of step 5 of 8 of a run`,
    ]);
    rmSync(join(output, 'run/checkpoints'), { recursive: true });
    await expect(loaded()).rejects.toThrow(/and has no checkpoint yet; resume the run$/);
  });

  it('after an earlier end has the adapter of that, and says so', async () => {
    await train({ maxSteps: 3 });
    expect(await loaded()).toEqual([]);
    await train({ maxSteps: 8, resume: true }, 5);
    expect(await loaded()).toEqual([
      `${output}: this is the adapter of step 3 of 8 of an unfinished run, whose last checkpoint is ${checkpoint(5)}`,
    ]);
    // The notes of a start may have been cut off.
    appendFileSync(join(output, 'run/environment.jsonl'), '{"time":"2');
    expect(await loaded()).toHaveLength(1);
    await train({ maxSteps: 8, resume: true });
    expect(await loaded()).toEqual([]);
    expect(await loaded(checkpoint(8))).toEqual([]);
  });

  it('while it wrote its adapter does not take that for its result', async () => {
    await train({ maxSteps: 3 });
    rmSync(join(output, 'run/export.json'));
    expect(await loaded()).toEqual([
      expect.stringMatching(
        /the run there, of 3 steps, has not come to its end, .*step-3: the adapter beside it is not/,
      ),
    ]);
    await train({ maxSteps: 3, resume: true });
    expect(await loaded()).toEqual([]);
  });
});

it('the best step is named as the step of the adapter', async () => {
  const best = {
    ...({ metricForBestModel: 'loss', evalSteps: 1, learningRate: 0.3 } as const),
    evalData: tinySource(tinyBatches({ count: 2 })),
  };
  await train({ ...best, maxSteps: 6 });
  const { step } = JSON.parse(readFileSync(join(output, 'run/export.json'), 'utf8'));
  expect(step).toBeLessThan(6);
  await train({ ...best, maxSteps: 8, resume: true }, 7);
  expect(await loaded()).toEqual([
    expect.stringContaining(`this is the adapter of step ${step} of 8 of an unfinished run`),
  ]);
});

it('a folder that no run has written says nothing', async () => {
  await train({ maxSteps: 2 });
  const plain = join(output, '..', 'plain');
  await (await AdapterModel.fromPretrained(new TinyModel(), output)).savePretrained(plain);
  expect(await loaded(plain)).toEqual([]);
  writeFileSync(join(plain, 'run'), ''); // a file of the user's
  expect(await loaded(plain)).toEqual([]);
  await expect(loaded(join(output, '..', 'none'))).rejects.toThrow(
    /give the folder of a PEFT adapter/,
  );
});

it('task and shape of the head are found in a checkpoint, too', async () => {
  const data = await tinyLabelled(6, { batchSize: 3 });
  const tuned = await AdapterModel.create(await tinyClassifier(), { r: 2 });
  await new Trainer({ tuned, data, output, maxSteps: 2 }).train();
  for (const folder of [output, checkpoint(2)]) {
    expect(await adapterTask(folder)).toBe('SEQ_CLS');
    expect(await savedParameterShape(folder, 'classifier.weight')).toEqual([3, expect.any(Number)]);
    expect(await savedParameterShape(folder, 'none.weight')).toBeNull();
  }
});
