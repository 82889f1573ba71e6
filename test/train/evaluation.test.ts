// Evaluations within a run: interrupted ones, failing ones, and the choice of a metric.
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { MetricName } from '../../lib/data/glue.ts';
import { LabelledBatches } from '../../lib/data/labelled_batches.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import { namesIn } from '../../lib/io/files.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { BatchSource, TrainEvent } from '../../lib/train/types.ts';
import { tinyClassifier, tinyClassifierTokenizer } from '../support/tiny_classifier.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-evaluation-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** Held-out batches that call `onBatch` before the second one. */
const held = (onBatch: () => void): BatchSource => {
  const batches = tinyBatches({ count: 2 });
  return {
    ...tinySource(batches),
    *batches() {
      yield batches[0] as (typeof batches)[0];
      onBatch();
      yield batches[1] as (typeof batches)[0];
    },
  };
};

async function run(options: Partial<TrainerOptions>) {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 4, loraAlpha: 8 });
  const seen: string[] = [];
  const note = (event: TrainEvent): void => {
    if (event.type === 'evaluating') return;
    const step = event.type === 'step' ? event.record.step : 'step' in event ? event.step : '';
    seen.push(`${event.type}${step}`);
  };
  const result = await new Trainer({
    tuned,
    data: tinySource(tinyBatches()),
    evalData: held(() => {}),
    metricForBestModel: 'loss',
    learningRate: 0.02,
    lrSchedulerType: 'constant',
    loggingSteps: 100,
    maxSteps: 4,
    evalSteps: 2,
    ...options,
    callbacks: [note, ...(options.callbacks ?? [])],
  }).train();
  return { result, seen: seen.filter((name) => !name.startsWith('log')).join(' ') };
}

describe('an interrupt', () => {
  const output = () => join(folder, 'out');

  it('during an evaluation leaves a checkpoint, and the resumed run repeats the evaluation', async () => {
    const whole = await run({ output: join(folder, 'whole') });
    const stop = new AbortController();
    const stopped = await run({
      ...{ output: output(), signal: stop.signal, evalData: held(() => stop.abort()) },
    });
    expect(stopped.seen).toBe('start step1 step2 checkpoint2 end');
    expect(stopped.result).toMatchObject({ reason: 'aborted', steps: 2, output: null });
    const rest = await run({ output: output(), resume: true });
    expect(rest.seen).toBe('start evaluation2 step3 step4 checkpoint4 evaluation4 end');
    expect(rest.result.best).toEqual(whole.result.best);
    expect(rest.result.reason).toBe('completed');
  });

  it.each([
    [0, 'start step1 step2 checkpoint2 end'],
    [2, 'start step1 step2 checkpoint2 end'],
  ])(
    'at a step with an evaluation defers that to the resumed run, saveSteps %s',
    async (saveSteps, events) => {
      const stop = new AbortController();
      const callbacks = [
        (event: TrainEvent) =>
          void (event.type === 'step' && event.record.step === 2 && stop.abort()),
      ];
      const shared = { output: output(), saveSteps };
      const stopped = await run({ ...shared, signal: stop.signal, callbacks });
      expect(stopped.seen).toBe(events);
      const rest = await run({ ...shared, resume: true });
      expect(rest.seen).toMatch(/^start evaluation2 step3/);
      const again = await run({ ...shared, resume: true });
      expect(again.seen).toBe('start end');
    },
  );

  it.each(['in', 'before'])(
    '%s the last evaluation leaves a checkpoint of the last step',
    async (where) => {
      const stop = new AbortController();
      const shared = { output: output(), evalSteps: 0 };
      const stopped = await run({
        ...{ ...shared, signal: stop.signal, evalData: held(() => where === 'in' && stop.abort()) },
        callbacks: [
          (event) => {
            if (where === 'before' && event.type === 'step' && event.record.step === 4)
              stop.abort();
          },
        ],
      });
      expect(stopped.seen).toBe('start step1 step2 step3 step4 checkpoint4 end');
      expect(stopped.result).toMatchObject({ reason: 'aborted', steps: 4, output: null });
      expect(existsSync(join(output(), 'adapter_model.safetensors'))).toBe(false);
      const rest = await run({ ...shared, resume: true });
      expect(rest.seen).toBe('start evaluation4 end');
      expect(rest.result.best?.step).toBe(4);
      expect(existsSync(join(output(), 'adapter_model.safetensors'))).toBe(true);
    },
  );

  it('does not hide another error', async () => {
    const stop = new AbortController();
    const evalData = held(() => {
      stop.abort();
      throw new Error('the disk is gone');
    });
    await expect(run({ signal: stop.signal, evalData })).rejects.toThrow('the disk is gone');
  });
});

it('a failure of the last evaluation leaves a checkpoint of the last step', async () => {
  const output = join(folder, 'out');
  const evalData = held(() => {
    throw new Error('the disk is gone');
  });
  await expect(run({ output, evalSteps: 0, evalData })).rejects.toThrow('the disk is gone');
  expect(await namesIn(join(output, 'run', 'checkpoints'))).toEqual(['step-4']);
});

describe('an unknown metric is refused before the run', () => {
  it('of a language model', async () => {
    const tuned = await AdapterModel.create(new TinyModel(), { r: 2 });
    const source = tinySource(tinyBatches());
    const input = { tuned, data: source, evalData: source };
    expect(() => new Trainer({ ...input, metricForBestModel: 'accuracy' })).toThrow(
      'metricForBestModel: a language model has no accuracy; choose one of loss',
    );
    expect(() => new Trainer({ tuned, data: source, metricForBestModel: 'loss' })).toThrow(
      'metricForBestModel needs evalData',
    );
    new Trainer({ ...input, metricForBestModel: 'loss' });
    new Trainer({ tuned, data: source, metricForBestModel: null });
  });

  it.each([
    ['single_label_classification', 3, 'f1Binary', 'accuracy, matthews, f1Macro, f1Micro'],
    [
      'single_label_classification',
      2,
      'pearson',
      'accuracy, matthews, f1Binary, f1AccuracyMean, f1Macro, f1Micro',
    ],
    ['regression', 1, 'accuracy', 'pearson, spearman, pearsonSpearmanMean'],
    ['multi_label_classification', 3, 'matthews', 'accuracy, f1Macro, f1Micro, exactMatch'],
  ] as const)('of %s with %s labels', async (problemType, numLabels, wrong, names) => {
    const model = await tinyClassifier({ numLabels, problemType, newHead: true });
    const tuned = await AdapterModel.create(model, { r: 2 });
    const label = problemType === 'multi_label_classification' ? [1, 0, 1] : 1;
    const rows = arrayRows([{ text: 'a good film', label }]);
    const data = await LabelledBatches.create(rows, tinyClassifierTokenizer(), {
      problemType,
      numLabels,
    });
    const input = { tuned, data, evalData: data };
    expect(() => new Trainer({ ...input, metricForBestModel: wrong })).toThrow(
      `metricForBestModel: ${problemType} with ${numLabels} label${numLabels === 1 ? '' : 's'} has no ${wrong}; choose one of loss, ${names}`,
    );
    for (const metric of ['loss', ...names.split(', ')] as MetricName[]) {
      new Trainer({ ...input, metricForBestModel: metric });
    }
  });
});
