// Training a classifier on a tiny bert: learning, accumulation, the best step, resuming, the warm-up of the head, bad input.
import { mkdtemp, readdir, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import type { TunedModel } from '../../lib/adapters/tuned_model.ts';
import {
  type LabelledBatch,
  LabelledBatches,
  type LabelledOptions,
} from '../../lib/data/labelled_batches.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import { ArgumentError } from '../../lib/errors.ts';
import { evaluateClassifier, modelBatch } from '../../lib/eval/classify.ts';
import type { ClassificationMetrics, RegressionMetrics } from '../../lib/eval/metrics.ts';
import type { SequenceClassifier } from '../../lib/models/index.ts';
import { noGrad } from '../../lib/tensor.ts';
import { BestKeeper } from '../../lib/train/best.ts';
import { copyHead, warmUpHead } from '../../lib/train/head_warmup.ts';
import { resolveMethod } from '../../lib/train/methods.ts';
import { type ClassifierTrainerOptions, Trainer } from '../../lib/train/trainer.ts';
import type { ClassifierEvaluation, StepRecord, TrainEvent } from '../../lib/train/types.ts';
import { values } from '../support/compare.ts';
import {
  tinyClassifier,
  tinyClassifierTokenizer,
  tinyLabelled,
  tinyRows,
} from '../support/tiny_classifier.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-classifier-'));
});
afterAll(() => rm(folder, { recursive: true }));

const { regularizers: kBaLora } = resolveMethod('balora', { task: 'sequence-classification' });
const adapted = async (config = {}) =>
  AdapterModel.create(await tinyClassifier(), { r: 4, loraAlpha: 8, ...config });

async function run(
  tuned: TunedModel<SequenceClassifier>,
  options: Partial<ClassifierTrainerOptions> = {},
) {
  const events: TrainEvent[] = [];
  const trainer = new Trainer({
    tuned,
    data: await tinyLabelled(24, { batchSize: 8 }),
    learningRate: 1e-2,
    lrSchedulerType: 'constant',
    warmupSteps: 0,
    ...options,
    callbacks: [(event) => void events.push(event)],
  });
  const result = await trainer.train();
  const records = events.flatMap((event) => (event.type === 'step' ? [event.record] : []));
  return { result, records, events };
}
const accuracyOf = async (model: SequenceClassifier) => {
  const { metrics } = await evaluateClassifier(
    model,
    (await tinyLabelled(30, { batchSize: 7 })).batches(),
  );
  return (metrics as ClassificationMetrics).accuracy;
};

const logitsOf = (model: SequenceClassifier, batch: LabelledBatch) =>
  model.outputs(modelBatch(model, batch));

describe('training', () => {
  it.each([
    ['lora', {}],
    ['pissa', { initLoraWeights: 'pissa' as const }],
  ])('learns with %s and the regularizers; the head is trained and saved', async (name, config) => {
    const tuned = await adapted(config);
    const { records, result } = await run(tuned, {
      regularizers: kBaLora,
      maxSteps: 60,
      output: join(folder, name),
    });
    expect(records[0]?.terms.consistency?.value).toBeCloseTo(0, 6);
    expect(records[59]?.terms.consistency?.value).toBeGreaterThan(0);
    expect(records[59]?.taskLoss).toBeLessThan(0.2 * (records[0] as StepRecord).taskLoss);
    expect(records[0]?.supervisedTokens).toBe(8);
    expect(await accuracyOf(tuned.model)).toBe(1);
    const again = await AdapterModel.fromPretrained(
      await tinyClassifier(),
      result.output as string,
    );
    expect(await accuracyOf(again.model)).toBe(1);
  });

  it('by full fine-tuning has a teacher with the same head', async () => {
    const [model, teacher] = [await tinyClassifier({ trainable: true }), await tinyClassifier()];
    const { records } = await run(new FullModel(model, { teacher }), {
      regularizers: kBaLora,
      maxSteps: 3,
    });
    expect(records[0]?.terms.consistency?.value).toBeCloseTo(0, 6);
    expect(records[2]?.terms.consistency?.value).toBeGreaterThan(0);
  });

  it('takes the same step from one micro-batch of 8 and 8 of 1, except for diversity and svd', async () => {
    const regularizers = {
      ...kBaLora,
      diversityWeight: 0,
      svdWeight: 0,
      consistencySchedule: 'adaptive' as const,
    };
    const runs: StepRecord[][] = [];
    for (const [batchSize, gradientAccumulationSteps] of [
      [8, 1],
      [1, 8],
    ] as const) {
      const data = await tinyLabelled(16, { batchSize });
      const tuned = await adapted();
      const { records } = await run(tuned, {
        data,
        gradientAccumulationSteps,
        regularizers,
        optim: 'sgd',
        maxSteps: 4,
      });
      runs.push(records);
    }
    const [one, eight] = runs as [StepRecord[], StepRecord[]];
    one.forEach((record, i) => {
      const other = eight[i] as StepRecord;
      for (const key of ['loss', 'taskLoss', 'gradNorm'] as const) {
        expect(Math.abs(record[key] - other[key]), key).toBeLessThan(1e-5);
      }
      const [term, same] = [record.terms.consistency, other.terms.consistency];
      for (const key of ['value', 'weight'] as const) {
        expect(Math.abs(Number(term?.[key]) - Number(same?.[key])), key).toBeLessThan(1e-5);
      }
      expect(record.terms).not.toHaveProperty('diversity');
    });
  });

  it('supports the consistency term of the 2024 code', async () => {
    const regularizers = { ...kBaLora, variant: '2024' as const };
    const { records } = await run(await adapted(), { regularizers, maxSteps: 3 });
    const { records: others } = await run(await adapted(), { regularizers: kBaLora, maxSteps: 3 });
    // Both terms start at 0. Rows of unit length have a distance of at most 2, so that the mean over 3 outputs is at most 4 / 3.
    expect(records[0]?.terms.consistency?.value).toBeCloseTo(0, 6);
    expect(records[0]?.taskLoss).toBe(others[0]?.taskLoss);
    expect(records[2]?.terms.consistency?.value).toBeGreaterThan(0);
    expect(records[2]?.terms.consistency?.value).toBeLessThanOrEqual(4 / 3);
    expect(records[2]?.terms.consistency?.value).not.toBeCloseTo(
      others[2]?.terms.consistency?.value as number,
      4,
    );
  });

  it('warns once of a term that is skipped', async () => {
    const { events } = await run(await adapted(), { regularizers: kBaLora, maxSteps: 3 });
    const codes = events.flatMap((event) => (event.type === 'warning' ? [event.code] : []));
    expect(codes).toEqual(['dropout_not_applied', 'nlu_svd_clamped']);
  });

  it('learns regression and multi-label classification', async () => {
    const numbers = tinyRows(16).map(({ text, label }) => ({ text, label: label / 2 - 0.5 }));
    const flags = tinyRows(16).map(({ text, label }) => ({
      text,
      label: [label, 1, 2].map((x) => Number(x === 1)),
    }));
    for (const [rows, problemType, numLabels] of [
      [numbers, 'regression', 1],
      [flags, 'multi_label_classification', 3],
    ] as const) {
      const data = await LabelledBatches.create(arrayRows(rows), tinyClassifierTokenizer(), {
        ...{ batchSize: 8, problemType, numLabels },
      });
      const model = await tinyClassifier({ numLabels, problemType, newHead: true });
      const tuned = await AdapterModel.create(model, { r: 4, loraAlpha: 8 });
      const { records } = await run(tuned, { data, regularizers: kBaLora, maxSteps: 40 });
      expect(records[39]?.taskLoss).toBeLessThan(0.5 * (records[0] as StepRecord).taskLoss);
      expect(records[0]?.terms.consistency?.value).toBeCloseTo(0, 6);
      if (problemType === 'regression') expect(records[0]?.terms.svd?.value).toBeNull();
      const { metrics } = await evaluateClassifier(model, data.batches());
      expect(Object.keys(metrics)).toContain(numLabels === 1 ? 'pearson' : 'exactMatch');
    }
  });
});

describe('the best step', () => {
  const options = async () => ({
    evalData: await tinyLabelled(30, { batchSize: 10 }),
    maxSteps: 12,
    evalSteps: 3,
  });

  it.each(['on disk', 'in memory'])('is kept %s, exported and reported', async (where) => {
    const tuned = await adapted();
    const output = join(folder, 'best');
    // This learning rate makes the model worse later on.
    const { result, events } = await run(tuned, {
      ...(await options()),
      learningRate: 0.02,
      lrSchedulerType: 'constant',
      metricForBestModel: 'loss',
      ...(where === 'on disk' ? { output } : {}),
    });
    const losses = events.flatMap((event) =>
      event.type === 'evaluation' ? [[event.step, event.result.loss] as const] : [],
    );
    const [step, loss] = losses.reduce((a, b) => (b[1] < a[1] ? b : a));
    expect(losses.map(([at]) => at)).toEqual([3, 6, 9, 12]);
    expect(result.best).toEqual({ step, metric: 'loss', value: loss });
    expect(result.evaluation?.loss).toBe(loss);
    const data = await tinyLabelled(30, { batchSize: 10 });
    expect((await evaluateClassifier(tuned.model, data.batches())).loss).toBe(loss);
    if (where === 'on disk') {
      const again = await AdapterModel.fromPretrained(await tinyClassifier(), output);
      expect((await evaluateClassifier(again.model, data.batches())).loss).toBeCloseTo(loss, 6);
      const best = join(output, 'run', 'best', `step-${step}`);
      expect(await readdir(join(output, 'run', 'best'))).toEqual([`step-${step}`]);
      const note = JSON.parse(await readFile(join(best, 'best.json'), 'utf8'));
      expect(note.step.step).toBe(step);
    }
  });

  it('is chosen by accuracy by default; an unknown metric is refused', async () => {
    const { result } = await run(await adapted(), await options());
    expect(result.best?.metric).toBe('accuracy');
    const wrong = run(await adapted(), { ...(await options()), metricForBestModel: 'pearson' });
    await expect(wrong).rejects.toThrow(/no pearson; choose one of loss, accuracy, matthews/);
    const without = run(await adapted(), { maxSteps: 1, metricForBestModel: 'loss' });
    await expect(without).rejects.toThrow('metricForBestModel needs evalData');
  });

  it.each(['matthews', 'f1Binary', 'f1AccuracyMean'] as const)(
    'can be chosen by %s',
    async (metric) => {
      const rows = (n: number) =>
        tinyRows(n).map(({ text, label }) => ({ text, label: label % 2 }));
      const make = (n: number) =>
        LabelledBatches.create(arrayRows(rows(n)), tinyClassifierTokenizer(), { batchSize: 10 });
      const tuned = await AdapterModel.create(
        await tinyClassifier({ numLabels: 2, newHead: true }),
        {
          r: 4,
        },
      );
      const { result, events } = await run(tuned, {
        ...(await options()),
        ...{ data: await make(24), evalData: await make(30), metricForBestModel: metric },
      });
      const found = events.flatMap((event) =>
        event.type === 'evaluation' && 'metrics' in event.result
          ? [
              [
                event.step,
                (event.result.metrics as ClassificationMetrics)[metric] as number,
              ] as const,
            ]
          : [],
      );
      const [step, value] = found.reduce((best, one) => (one[1] > best[1] ? one : best));
      expect(found).toHaveLength(4);
      expect(result.best).toEqual({ step, metric, value });
    },
  );

  it.each(['pearson', 'spearman', 'pearsonSpearmanMean'] as const)(
    'can be chosen by %s',
    async (metric) => {
      const rows = tinyRows(24).map(({ text, label }) => ({ text, label: label / 2 - 0.5 }));
      const make = () =>
        LabelledBatches.create(arrayRows(rows), tinyClassifierTokenizer(), {
          ...{ batchSize: 8, problemType: 'regression' as const },
        });
      const model = await tinyClassifier({
        numLabels: 1,
        problemType: 'regression',
        newHead: true,
      });
      const { result, events } = await run(await AdapterModel.create(model, { r: 4 }), {
        ...(await options()),
        ...{ data: await make(), evalData: await make(), metricForBestModel: metric },
      });
      const found = events.flatMap((event) =>
        event.type === 'evaluation' && 'metrics' in event.result
          ? [[event.step, (event.result.metrics as RegressionMetrics)[metric] as number] as const]
          : [],
      );
      const [step, value] = found.reduce((best, one) => (one[1] > best[1] ? one : best));
      expect(result.best).toEqual({ step, metric, value });
    },
  );

  describe('with an undefined value of the metric', () => {
    const evaluation = (loss: number, metrics: object): ClassifierEvaluation =>
      ({
        ...{ loss, metrics, problemType: 'regression', tokens: 4, examples: 2, seconds: 1 },
        ...{ predictions: [], labels: [] },
      }) as unknown as ClassifierEvaluation;

    it.each([
      ['pearson', evaluation(1, { pearson: null }), evaluation(2, { pearson: -0.5 })],
      ['pearson', evaluation(1, { pearson: Number.NaN }), evaluation(2, { pearson: -0.5 })],
      ['loss', evaluation(Number.NaN, {}), evaluation(2, {})],
    ] as const)('%s: any other is better, on disk and resumed too', async (metric, bad, good) => {
      const tuned = await adapted();
      const place = join(folder, `undefined-${metric}-${String(bad.metrics[metric as never])}`);
      for (const where of [null, place]) {
        const keeper = new BestKeeper(metric, where);
        await keeper.offer(tuned, bad, 1);
        await keeper.offer(tuned, bad, 2);
        expect(keeper.best?.step).toBe(1);
        const next = where === null ? keeper : new BestKeeper(metric, where);
        if (next !== keeper) {
          await next.resume();
          expect(next.best).toEqual(keeper.best);
        }
        await next.offer(tuned, good, 3);
        await next.offer(tuned, bad, 4);
        expect(next.best?.step).toBe(3);
        for (const one of new Set([keeper, next])) one.dispose();
      }
    });

    it('is an error, not the first step, by a metric that three classes do not have', async () => {
      for (const metric of ['f1Binary', 'f1AccuracyMean'] as const) {
        const wrong = run(await adapted(), { ...(await options()), metricForBestModel: metric });
        await expect(wrong).rejects.toThrow(
          new RegExp(`no ${metric}; choose one of loss, accuracy, matthews, f1Macro`),
        );
      }
    });
  });

  it('is the same after a stop and resume', async () => {
    const controller = new AbortController();
    const output = join(folder, 'stopped');
    const shared = { ...(await options()), regularizers: kBaLora, maxSteps: 8 };
    const whole = await run(await adapted(), shared);
    const data = await tinyLabelled(24, { batchSize: 8 });
    const stopping = new Trainer({
      ...shared,
      ...{ tuned: await adapted(), data, output, signal: controller.signal, learningRate: 1e-2 },
      ...{ lrSchedulerType: 'constant', warmupSteps: 0 },
      callbacks: [
        (event) => {
          if (event.type === 'step' && event.record.step === 5) controller.abort();
        },
      ],
    });
    expect((await stopping.train()).reason).toBe('aborted');
    const resumed = await run(await adapted(), { ...shared, output, resume: true });
    expect(resumed.result.best).toEqual(whole.result.best);
    expect(resumed.records.map(({ loss }) => loss)).toEqual(
      whole.records.slice(5).map(({ loss }) => loss),
    );
  });
});

describe('the warm-up of the head', () => {
  it('trains only the head, on the unchanged model, and the teacher has it, too', async () => {
    const model = await tinyClassifier({ newHead: true });
    const trunk = values(model.parameters()[0] as never);
    const data = await tinyLabelled(30, { batchSize: 8 });
    const before = (await evaluateClassifier(model, data.batches())).loss;
    const { loss, examples, trained } = await warmUpHead(model, data, {
      epochs: 60,
      learningRate: 0.05,
    });
    expect([examples, trained]).toEqual([30, ['classifier.weight', 'classifier.bias']]);
    expect(loss).toBeLessThan(0.7 * before);
    expect(values(model.parameters()[0] as never)).toEqual(trunk);
    expect(model.parameters().every(({ requiresGrad }) => !requiresGrad)).toBe(true);
    const tuned = await AdapterModel.create(model, { r: 2 });
    const batch = data.collate([0, 1, 2]);
    const student = values(noGrad(() => logitsOf(tuned.model, batch)));
    const teacher = tuned.withTeacher((base) => values(noGrad(() => logitsOf(base, batch))));
    student.forEach((value, i) => {
      expect(Math.abs(value - (teacher[i] as number))).toBeLessThan(1e-5);
    });
  });

  it('uses the order of examples of the default seed 42', async () => {
    const data = await tinyLabelled(30, { batchSize: 8 });
    const headOf = async (seed?: number) => {
      const model = await tinyClassifier({ newHead: true });
      const options = { epochs: 2, batchSize: 4, learningRate: 0.05 };
      await warmUpHead(model, data, seed === undefined ? options : { ...options, seed });
      return values(new Map(model.namedParameters()).get('classifier.weight') as never);
    };
    const head = await headOf();
    expect(head).toEqual(await headOf(42));
    expect(head).not.toEqual(await headOf(0));
  });

  it('copyHead copies the head to a second model', async () => {
    const [one, two] = [await tinyClassifier({ newHead: true, seed: 1 }), await tinyClassifier()];
    copyHead(one, two);
    const batch = (await tinyLabelled(4)).collate([0, 1, 2, 3]);
    const [a, b] = [one, two].map((model) => values(noGrad(() => logitsOf(model, batch))));
    expect(a).toEqual(b);
    const other = await tinyClassifier({ newHead: true, numLabels: 2 });
    expect(() => copyHead(one, other)).toThrow(/classifier.weight must have the same shape/);
  });

  it('refuses options out of range', async () => {
    const model = await tinyClassifier();
    const data = await tinyLabelled(4);
    await expect(warmUpHead(model, data, { epochs: 0 })).rejects.toThrow(ArgumentError);
    await expect(warmUpHead(model, data, { learningRate: -1 })).rejects.toThrow(/learningRate/);
  });
});

describe('bad input', () => {
  it('of labels that differ from those of the model', async () => {
    const data = await LabelledBatches.create(
      arrayRows(tinyRows(8).map(({ text }) => ({ text, label: 0.5 }))),
      tinyClassifierTokenizer(),
      { problemType: 'regression' },
    );
    await expect(run(await adapted(), { data, maxSteps: 1 })).rejects.toThrow(
      'labels: the labels of the data do not fit single_label_classification; make the data with that',
    );
  });

  it('of a sequence longer than the position table', async () => {
    const rows = [{ text: Array(40).fill('film').join(' '), label: 0 }];
    const data = await LabelledBatches.create(arrayRows(rows), tinyClassifierTokenizer(), {
      numLabels: 3,
    });
    await expect(run(await adapted(), { data, maxSteps: 1 })).rejects.toThrow(
      /a sequence of 42 tokens is longer than/,
    );
  });

  it('of a head with another number of labels, in the checkpoint and in an adapter', async () => {
    await expect(tinyClassifier({ numLabels: 2 })).rejects.toThrow(
      /has 3 labels, numLabels asks for 2/,
    );
    const output = join(folder, 'three');
    await (await adapted()).savePretrained(output);
    const two = await tinyClassifier({ numLabels: 2, newHead: true });
    await expect(AdapterModel.fromPretrained(two, output)).rejects.toThrow(
      /classifier\.(weight|bias)" has the shape \(3/,
    );
  });

  it('of held-out data with other label names', async () => {
    const tokenizer = tinyClassifierTokenizer();
    const names = ['bad', 'so', 'good'];
    const make = (rows: ReturnType<typeof tinyRows>, options: LabelledOptions = {}) => {
      const named = rows.map(({ text, label }) => ({ text, label: names[label] as string }));
      return LabelledBatches.create(arrayRows(named), tokenizer, options);
    };
    const data = await make(tinyRows(12));
    expect(data.scheme.names).toEqual(['bad', 'good', 'so']);
    // The held-out data lacks the label "good", so that its "so" would be id 1.
    const rows = tinyRows(12).filter(({ label }) => label !== 2);
    const tuned = await adapted();
    await expect(run(tuned, { data, evalData: await make(rows), maxSteps: 1 })).rejects.toThrow(
      'evalData: its labels do not mean what those of data mean (numLabels 2, data has 3; ' +
        'names bad, so, data has bad, good, so); make both with the same numLabels, problemType and labelNames',
    );
    const swapped = await make(tinyRows(12), { labelNames: names });
    await expect(run(tuned, { data, evalData: swapped, maxSteps: 1 })).rejects.toThrow(
      'evalData: its labels do not mean what those of data mean (names bad, so, good, data has',
    );
    const { numLabels, problemType, names: known } = data.scheme;
    const options = { numLabels, problemType, labelNames: known ?? undefined };
    const { result } = await run(tuned, { data, evalData: await make(rows, options), maxSteps: 1 });
    expect((result.evaluation as ClassifierEvaluation).labels).toEqual(
      rows.map(({ label }) => ['bad', 'good', 'so'].indexOf(names[label] as string)),
    );
  });

  it("of names in another order than the head's", async () => {
    const labelNames = ['good', 'bad', 'so'];
    const model = await tinyClassifier({ labelNames });
    const named = tinyRows(12).map(({ text, label }) => ({
      text,
      label: ['bad', 'so', 'good'][label] as string,
    }));
    const make = (options: LabelledOptions) =>
      LabelledBatches.create(arrayRows(named), tinyClassifierTokenizer(), options);
    const tuned = await AdapterModel.create(model, { r: 2, targetModules: ['query'] });
    await expect(run(tuned, { data: await make({}), maxSteps: 1 })).rejects.toThrow(
      "data: its label ids stand for bad, good, so, those of the model's head for good, bad, so; make it with " +
        'labelNames: model.labelNames',
    );
    const data = await make({ labelNames: model.labelNames });
    expect((await run(tuned, { data, maxSteps: 1 })).records).toHaveLength(1);
    const spam = await LabelledBatches.create(
      arrayRows(named.map(({ text, label }) => ({ text, label: `${label} mail` }))),
      tinyClassifierTokenizer(),
      {},
    );
    await expect(run(tuned, { data: spam, maxSteps: 1 })).rejects.toThrow(
      "stand for bad mail, good mail, so mail, those of the model's head for good, bad, so; load the model with newHead",
    );
  });

  it('of a custom loss, which a classifier does not support', async () => {
    const loss = () => {
      throw new Error('must not be called');
    };
    await expect(run(await adapted(), { loss, maxSteps: 1 } as object)).rejects.toThrow(
      'loss: a classifier takes no custom loss; leave it out',
    );
    const none = await run(await adapted(), { loss: undefined, maxSteps: 1 } as object);
    expect(none.records).toHaveLength(1);
  });

  it('of a consistency weight without a teacher, and of the adaptive schedule for regression', async () => {
    const full = new FullModel(await tinyClassifier({ trainable: true }));
    await expect(run(full, { regularizers: kBaLora, maxSteps: 1 })).rejects.toThrow(/frozen copy/);
    const model = await tinyClassifier({ numLabels: 1, problemType: 'regression', newHead: true });
    const tuned = await AdapterModel.create(model, { r: 2 });
    const regularizers = { ...kBaLora, consistencySchedule: 'adaptive' as const };
    await expect(run(tuned, { regularizers, maxSteps: 1 })).rejects.toThrow(
      'adaptive has no meaning for regression',
    );
  });
});
