// A finished run is resumed with more steps. Where no schedule depends on their number, it ends in the same bytes as a run that had
// them from its start; elsewhere it is refused with the reason.
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { Batches } from '../../lib/data/batches.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import { ArgumentError } from '../../lib/errors.ts';
import { defineTerm } from '../../lib/losses/term.ts';
import { demoCheckpoint } from '../../lib/models/demo_checkpoint.ts';
import { mean, square } from '../../lib/ops/index.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { StepRecord, TrainResult } from '../../lib/train/types.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-extension-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const kConstant = { lrSchedulerType: 'constant' } as const;

async function run(
  name: string,
  more: Partial<TrainerOptions>,
  vocabulary = 17,
): Promise<TrainResult> {
  const tuned = await AdapterModel.create(new TinyModel({ vocabulary }), {
    ...{ r: 4, loraAlpha: 8, initLoraWeights: 'pissa' as const },
  });
  return new Trainer({
    ...{ tuned, output: join(folder, name), data: tinySource(tinyBatches()), learningRate: 0.02 },
    ...more,
  }).train();
}

/** The files that a run leaves behind, without times. */
const traces = (name: string) => {
  const checkpoints = join(folder, name, 'run/checkpoints');
  return {
    adapter: readFileSync(join(folder, name, 'adapter_model.safetensors'), 'base64'),
    config: readFileSync(join(folder, name, 'adapter_config.json'), 'utf8'),
    last: readFileSync(
      join(checkpoints, readdirSync(checkpoints).sort().at(-1) ?? '', 'state.safetensors'),
      'base64',
    ),
    steps: readFileSync(join(folder, name, 'run/metrics.jsonl'), 'utf8')
      .trimEnd()
      .split('\n')
      .map((line) => {
        const { step, loss, gradNorm, learningRate, epoch } = JSON.parse(line) as StepRecord;
        return { step, loss, gradNorm, learningRate, epoch };
      }),
  };
};

/** Runs three steps and then on to seven, and compares with a run of seven. */
async function expectExtends(more: Partial<TrainerOptions>): Promise<[TrainResult, TrainResult]> {
  const whole = await run('whole', { ...more, maxSteps: 7 });
  await run('parts', { ...more, maxSteps: 3 });
  const rest = await run('parts', { ...more, maxSteps: 7, resume: true });
  expect(rest).toMatchObject({ reason: 'completed', steps: 7 });
  expect(traces('parts')).toEqual(traces('whole'));
  return [whole, rest];
}

describe('more steps of a finished run end in the bytes of a run that had them from its start', () => {
  it.each<[string, Partial<TrainerOptions>]>([
    ['constant, whatever the warm-up', { ...kConstant, warmupSteps: 0.4 }],
    ['constant_with_warmup', { lrSchedulerType: 'constant_with_warmup', warmupSteps: 2 }],
    ['inverse_sqrt', { lrSchedulerType: 'inverse_sqrt', warmupSteps: 2 }],
    [
      'warmup_stable_decay with its own end',
      {
        lrSchedulerType: 'warmup_stable_decay',
        lrSchedulerKwargs: { numStableSteps: 3, numDecaySteps: 2 },
        warmupSteps: 1,
      },
    ],
    [
      'weights of terms that do not depend on it',
      {
        ...kConstant,
        regularizers: {
          ...{ consistencyWeight: 0.1, diversityWeight: 0.02, svdWeight: 0.02, svdTopK: 3 },
          ...{ consistencySchedule: 'adaptive', regularizerSchedule: 'linear_warmup' },
          regularizerWarmupSteps: 5,
        },
      },
    ],
  ])('%s', async (_, more) => {
    await expectExtends(more);
  });

  it('in the stable part of warmup_stable_decay, before the decay begins', async () => {
    const more: Partial<TrainerOptions> = {
      ...{ lrSchedulerType: 'warmup_stable_decay', lrSchedulerKwargs: { numDecaySteps: 1 } },
      warmupSteps: 1,
    };
    await run('whole', { ...more, maxSteps: 7 });
    const stop = new AbortController();
    const callbacks: TrainerOptions['callbacks'] = [
      (event) => void (event.type === 'step' && event.record.step === 3 && stop.abort()),
    ];
    await run('parts', { ...more, maxSteps: 4, signal: stop.signal, callbacks });
    await run('parts', { ...more, maxSteps: 7, resume: true });
    expect(traces('parts')).toEqual(traces('whole'));
  });

  it('by epochs, with another order of the data in each and a window that ends with it', async () => {
    const tokenizer = await Tokenizer.fromPretrained(demoCheckpoint);
    const rows = Array.from({ length: 10 }, (_, i) => ({
      prompt: `The ${i}th whale is`,
      response: ` ${'great '.repeat(1 + (i % 3))}and number ${i}.`,
    }));
    const data = await Batches.create(arrayRows(rows), tokenizer, {
      ...{ batchSize: 2, shuffle: true, seed: 3 },
    });
    const shared = { ...kConstant, data, gradientAccumulationSteps: 2 };
    const words = tokenizer.vocabSize;
    await run('whole', { ...shared, numTrainEpochs: 3 }, words);
    const first = await run('parts', { ...shared, numTrainEpochs: 1 }, words);
    expect(first.steps).toBe(3);
    const rest = await run('parts', { ...shared, numTrainEpochs: 3, resume: true }, words);
    expect(rest.steps).toBe(9);
    expect(traces('parts')).toEqual(traces('whole'));
    // The same number of steps, asked for in another way.
    const again = await run('parts', { ...shared, maxSteps: 9, resume: true }, words);
    expect(again).toMatchObject({ reason: 'completed', steps: 9 });
  });

  it.each([0, 1, 2, 3])('with the same best step, evalSteps %s', async (evalSteps) => {
    // The loss becomes worse, so that the best step is an early one: one that only the shorter run evaluates must not count.
    const [whole, rest] = await expectExtends({
      ...{ ...kConstant, learningRate: 0.2, evalSteps, metricForBestModel: 'loss' },
      evalData: tinySource(tinyBatches({ count: 2 })),
    });
    expect(rest.best).toEqual(whole.best);
    expect(rest.evaluation?.loss).toBe(whole.evaluation?.loss);
  });

  it('in several goes, and fewer steps too', async () => {
    await run('whole', { ...kConstant, maxSteps: 5 });
    await run('parts', { ...kConstant, maxSteps: 2 });
    await run('parts', { ...kConstant, maxSteps: 3, resume: true });
    const stop = new AbortController();
    const callbacks: TrainerOptions['callbacks'] = [
      (event) => void (event.type === 'step' && event.record.step === 4 && stop.abort()),
    ];
    const stopped = { ...kConstant, maxSteps: 9, resume: true, signal: stop.signal, callbacks };
    expect(await run('parts', stopped)).toMatchObject({ reason: 'aborted', steps: 4 });
    await run('parts', { ...kConstant, maxSteps: 5, resume: true });
    expect(traces('parts')).toEqual(traces('whole'));
  });
});

describe('is refused with the reason', () => {
  const kFit =
    / is of a run of 3 steps, and cannot be continued to 7 bit for bit: (.*); resume it with 3 steps, or /;

  it.each<[Partial<TrainerOptions>, RegExp]>([
    [
      {},
      /^the learning rate \(cosine, 1 steps of warm-up\) depends on the number of steps \(step 3 had 0.01\d*, and has /,
    ],
    [
      { lrSchedulerType: 'linear', warmupSteps: 0 },
      /^the learning rate \(linear, 0 steps of warm-up\)/,
    ],
    [{ lrSchedulerType: 'polynomial', warmupSteps: 0 }, /^the learning rate \(polynomial/],
    [
      { lrSchedulerType: 'constant_with_warmup', warmupSteps: 0.5 },
      /^the learning rate \(constant_with_warmup, 2 steps of warm-up\)/,
    ],
    [
      { ...kConstant, regularizers: { consistencyWeight: 0.1 } },
      /^the weight of the term consistency depends on the number of steps \(step 2 had 0.0\d+, and has 0.0/,
    ],
    [
      { ...kConstant, regularizers: { diversityWeight: 0.1 } },
      /^the weight of the term diversity depends/,
    ],
    [
      {
        ...kConstant,
        terms: [
          defineTerm({
            key: 'mine',
            weight: ({ step, totalSteps }) => step / totalSteps,
            value: ({ logits }) => mean(square(logits())),
          }),
        ],
      },
      /^the weight of the term mine depends/,
    ],
    [
      { ...kConstant, loss: ({ hidden }) => ({ loss: mean(square(hidden)) }) },
      /^a loss of your own is told the number of steps$/,
    ],
    [{ ...kConstant, afterBackward: () => {} }, /^afterBackward is told the number of steps$/],
  ])('%j', async (more, reason) => {
    await run('out', { ...more, maxSteps: 3 });
    const before = traces('out');
    const error = await run('out', { ...more, maxSteps: 7, resume: true }).catch((e: Error) => e);
    expect(error).toBeInstanceOf(ArgumentError);
    expect((error as Error).message).toMatch(kFit);
    expect(kFit.exec((error as Error).message)?.[1]).toMatch(reason);
    expect(traces('out')).toEqual(before);
    // The run is still what it was, by its own number of steps.
    expect(await run('out', { ...more, maxSteps: 3, resume: true })).toMatchObject({ steps: 3 });
  });

  it('for fewer steps than are done', async () => {
    await run('out', { ...kConstant, maxSteps: 3 });
    await expect(run('out', { ...kConstant, maxSteps: 2, resume: true })).rejects.toThrow(
      /step-3 has 3 steps, and maxSteps or numTrainEpochs ask for a run of 2; ask for at least 3, or begin anew/,
    );
  });

  it('for a cache of the teacher that the end has removed', async () => {
    const shared: Partial<TrainerOptions> = {
      ...{ ...kConstant, cacheTeacher: true },
      regularizers: { consistencyWeight: 0.1, consistencySchedule: 'constant' },
    };
    await run('out', { ...shared, maxSteps: 3 });
    await expect(run('out', { ...shared, maxSteps: 7, resume: true })).rejects.toThrow(
      /has come to its end, and its cache of the teacher was removed then: .*\(cacheTeacher\)/,
    );
  });

  it('where another option differs, too', async () => {
    await run('out', { ...kConstant, maxSteps: 3 });
    const other = { ...kConstant, maxSteps: 7, resume: true, learningRate: 0.5 };
    await expect(run('out', other)).rejects.toThrow(/learningRate: was 0.02, is 0.5\)/);
    const warmer = { lrSchedulerType: 'constant_with_warmup', warmupSteps: 1 } as const;
    await run('warm', { ...warmer, maxSteps: 3 });
    const same = { ...warmer, maxSteps: 3, warmupSteps: 2, resume: true };
    await expect(run('warm', same)).rejects.toThrow(/warmupSteps: was 1, is 2\)/);
  });

  it('where the best step comes from steps of the former length', async () => {
    // A decay that begins after the checkpoint, but before the best step.
    const shared: Partial<TrainerOptions> = {
      ...{ lrSchedulerType: 'warmup_stable_decay', lrSchedulerKwargs: { numDecaySteps: 2 } },
      ...{ warmupSteps: 0, saveSteps: 2, evalSteps: 1, metricForBestModel: 'loss' },
      evalData: tinySource(tinyBatches({ count: 2 })),
    };
    const { best } = await run('out', { ...shared, maxSteps: 6 });
    expect(best?.step).toBe(6);
    rmSync(join(folder, 'out/run/checkpoints/step-6'), { recursive: true });
    expect(existsSync(join(folder, 'out/run/best/step-6'))).toBe(true);
    cpSync(join(folder, 'out'), join(folder, 'copy'), { recursive: true });
    await expect(run('out', { ...shared, maxSteps: 9, resume: true })).rejects.toThrow(
      /step-4 is of a run of 6 steps.* the learning rate \(warmup_stable_decay/,
    );
    rmSync(join(folder, 'copy/run/best'), { recursive: true });
    const rest = await run('copy', { ...shared, maxSteps: 9, resume: true });
    expect(rest).toMatchObject({ reason: 'completed', steps: 9 });
  });
});
