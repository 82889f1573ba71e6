// Training encoder-decoders, which works as for language models: the fused loss on the decoder's rows against the plain one,
// accumulation, evaluation, resuming, and refusals.
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import { Seq2SeqBatches } from '../../lib/data/seq2seq_batches.ts';
import type { Seq2SeqExamples } from '../../lib/data/seq2seq_example.ts';
import { UnsupportedError } from '../../lib/errors.ts';
import { evaluate } from '../../lib/eval/evaluate.ts';
import { baLoraPlainLoss, headLogits } from '../../lib/losses/plain.ts';
import { AutoModelForSeq2SeqLM, type Seq2SeqLM } from '../../lib/models/index.ts';
import { mean, square } from '../../lib/ops/index.ts';
import { seq2seqLm } from '../../lib/tasks/seq2seq_lm.ts';
import { noGrad, scope, type Tensor, tensor } from '../../lib/tensor.ts';
import { type Seq2SeqTrainerOptions, Trainer } from '../../lib/train/trainer.ts';
import type { StepRecord } from '../../lib/train/types.ts';
import type { Window } from '../../lib/train/window.ts';
import { accumulator } from '../support/accumulate.ts';
import { kTinyT5, tinySeq2SeqData, tinySeq2SeqRows } from '../support/tiny_seq2seq.ts';
import { tinyT5Tokenizer } from '../support/tiny_t5_tokenizer.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-seq2seq-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const kRegularizers = {
  ...{ consistencyWeight: 0.5, diversityWeight: 0.2, svdWeight: 0.2, svdTopK: 3, entropyTopK: 6 },
  consistencySchedule: 'constant',
  regularizerSchedule: 'constant',
} as const;

let data: Seq2SeqBatches;
beforeAll(async () => {
  data = await tinySeq2SeqData(8, { batchSize: 4, shuffle: false });
});

async function tune(dtype: 'f32' | 'f64' = 'f64'): Promise<AdapterModel<Seq2SeqLM>> {
  const model = await AutoModelForSeq2SeqLM.fromPretrained(kTinyT5, { dtype });
  // The adapter has random values, so that the divergence is not 0.
  const tuned = await AdapterModel.create(model, { r: 4, loraAlpha: 8, initLoraWeights: false });
  return tuned;
}

async function firstBatch(): Promise<Seq2SeqExamples> {
  for await (const batch of data.batches(0)) return batch;
  throw new Error('there is a batch');
}

function windowOf(batches: Seq2SeqExamples[]): Window<Seq2SeqExamples> {
  const chosen = batches.map((batch, index) => ({
    ...seq2seqLm.select(batch, { positions: 'supervised' }),
    index,
  }));
  const sum = (key: 'tokens' | 'supervised' | 'regularized') =>
    chosen.reduce((total, { counts }) => total + counts[key], 0);
  const totals = {
    tokens: sum('tokens'),
    supervised: sum('supervised'),
    regularized: sum('regularized'),
  };
  return { batches: chosen, totals, after: { epoch: 0, microBatch: 1 }, epoch: 1 };
}

const gradientsOf = (tuned: AdapterModel<Seq2SeqLM>) =>
  tuned.parameters().map(({ tensor: t }) => Array.from(t.grad?.dataSync() as Float64Array));

describe('a step in float64', () => {
  it('has the terms and gradients of the plain loss on the supervised rows of the decoder', async () => {
    const tuned = await tune();
    const { model } = tuned;
    const batch = await firstBatch();
    const fused = accumulator(tuned, kRegularizers);
    const terms = await fused.accumulate(windowOf([batch]));
    const gradients = gradientsOf(tuned);
    tuned.zeroGradients();

    const logitsOf = (m: Seq2SeqLM): Tensor => headLogits(m.forward(batch), m.head.weight);
    const plain = scope(() => {
      const teacherLogits = noGrad(() => tuned.withTeacher(logitsOf));
      const result = baLoraPlainLoss(
        { logits: logitsOf(model), teacherLogits, targets: tensor(batch.decoder.targets) },
        {
          weights: { consistency: 0.5, diversity: 0.2, svd: 0.2 },
          ...{ temperature: 2, entropyTopK: 6, svdTopK: 3 },
        },
      );
      result.loss.backward();
      return result;
    });
    expect(Array.from(batch.decoder.targets).every((id) => id >= 0)).toBe(true);
    expect(terms.taskLoss).toBeCloseTo(plain.task.itemSync(), 10);
    expect(terms.consistency).toBeCloseTo((plain.consistency as Tensor).itemSync(), 10);
    expect(terms.consistency).toBeGreaterThan(0);
    expect(terms.diversity).toBeCloseTo(plain.diversity.itemSync(), 10);
    expect(terms.svd).toBeCloseTo(plain.svd.itemSync(), 9);
    expect(terms.loss).toBeCloseTo(plain.loss.itemSync(), 9);
    gradientsOf(tuned).forEach((values, i) => {
      values.forEach((value, j) => {
        expect((gradients[i] as number[])[j]).toBeCloseTo(value, 8);
      });
    });
    fused.dispose();
  });

  it('is the same for 1 x 4 and 4 x 1, except for the SVD term', async () => {
    const regularizers = { ...kRegularizers, svdWeight: 0 };
    const tuned = await tune();
    const whole = accumulator(tuned, regularizers);
    const together = await whole.accumulate(windowOf([await firstBatch()]));
    const gradients = gradientsOf(tuned);
    tuned.zeroGradients();
    const single = await tinySeq2SeqData(8, { batchSize: 1, shuffle: false });
    const singles: Seq2SeqExamples[] = [];
    for await (const batch of single.batches(0)) if (singles.length < 4) singles.push(batch);
    const apart = await whole.accumulate(windowOf(singles));
    expect(apart.loss).toBeCloseTo(together.loss, 12);
    gradientsOf(tuned).forEach((values, i) => {
      values.forEach((value, j) => {
        expect((gradients[i] as number[])[j]).toBeCloseTo(value, 12);
      });
    });
    whole.dispose();
  });
});

async function train(options: Partial<Seq2SeqTrainerOptions> = {}) {
  const model = await AutoModelForSeq2SeqLM.fromPretrained(kTinyT5);
  const tuned = await AdapterModel.create(model, { r: 4, loraAlpha: 8, initLoraWeights: 'pissa' });
  const records: StepRecord[] = [];
  const warnings: string[] = [];
  const trainer = new Trainer({
    ...{ tuned, data, evalData: data, learningRate: 0.01, maxSteps: 6 },
    regularizers: kRegularizers,
    callbacks: [
      (event) => {
        if (event.type === 'step') records.push(event.record);
        if (event.type === 'warning') warnings.push(event.message);
      },
    ],
    ...options,
  });
  return { result: await trainer.train(), records, warnings, tuned };
}

describe('a run', () => {
  it('learns, starts equal to its teacher, counts the tokens of both sides, and warns of dropout', async () => {
    const { result, records, warnings } = await train({ maxSteps: 12 });
    expect(records[0]?.terms.consistency?.value).toBeCloseTo(0, 6);
    expect(records[0]?.tokens).toBeGreaterThan(records[0]?.supervisedTokens as number);
    expect((result.evaluation as { loss: number }).loss).toBeLessThan(
      records[0]?.taskLoss as number,
    );
    expect(warnings.join()).toMatch(/dropout_rate/);
  });

  it('is resumed bit for bit, and refused on other data', async () => {
    const output = join(folder, 'resumed');
    const stop = new AbortController();
    const straight = await train();
    await train({
      output,
      signal: stop.signal,
      callbacks: [
        (event) => void (event.type === 'step' && event.record.step === 3 && stop.abort()),
      ],
    });
    const other = await tinySeq2SeqData(8, { batchSize: 2 });
    await expect(train({ output, resume: true, data: other })).rejects.toThrow(/another run/);
    const { result } = await train({ output, resume: true });
    expect(result.last?.loss).toBe(straight.result.last?.loss);
    expect(result.evaluation).toMatchObject({
      loss: (straight.result.evaluation as { loss: number }).loss,
    });
    const model = await AutoModelForSeq2SeqLM.fromPretrained(kTinyT5);
    const loaded = await AdapterModel.fromPretrained(model, output);
    const { loss } = await evaluate(loaded, data.batches(0));
    expect(loss).toBeCloseTo((result.evaluation as { loss: number }).loss, 5);
  });

  it('works with a cached teacher, full fine-tuning, a memory budget, and a custom loss', async () => {
    const live = await train({ numTrainEpochs: 3, maxSteps: undefined as never });
    const kept = await train({
      numTrainEpochs: 3,
      maxSteps: undefined as never,
      cacheTeacher: true,
    });
    expect(kept.result.last?.loss).toBeCloseTo(live.result.last?.loss as number, 4);
    const part = (regularizers: object) =>
      train({ maxSteps: 1, regularizers: { consistencyWeight: 0.5, ...regularizers } });
    const [all, half] = [await part({}), await part({ teacherFraction: 0.5 })];
    expect(half.result.last?.taskLoss).toBeCloseTo(all.result.last?.taskLoss as number, 6);
    expect(half.result.last?.terms.consistency?.value).toBeGreaterThanOrEqual(0);
    const lean = await train({ memoryBudget: 'min' });
    expect(lean.result.last?.loss).toBeCloseTo((await train()).result.last?.loss as number, 4);
    const model = await AutoModelForSeq2SeqLM.fromPretrained(kTinyT5, { trainable: true });
    const teacher = await AutoModelForSeq2SeqLM.fromPretrained(kTinyT5);
    const full = new FullModel<Seq2SeqLM>(model, { teacher });
    expect((await train({ tuned: full, maxSteps: 2 })).result.steps).toBe(2);
    const own = await train({
      regularizers: {},
      loss: ({ hidden }) => ({ loss: mean(square(hidden)) }),
    });
    expect(own.result.last?.loss).toBeGreaterThan(0);
  });

  it('keeps the outputs of its teacher in a file by source and target', async () => {
    const teacherCache = join(folder, 'teacher.cache');
    const sized = async (prompt: (text: string) => string): Promise<number> => {
      const rows = tinySeq2SeqRows(8).map((row) => ({ ...row, prompt: prompt(row.prompt) }));
      const options = { decoderStartTokenId: 0, batchSize: 4, shuffle: false };
      const own = await Seq2SeqBatches.create(arrayRows(rows), tinyT5Tokenizer(), options);
      await train({ teacherCache, maxSteps: 2, data: own });
      return statSync(teacherCache).size;
    };
    const [kHead, first] = [512, await sized((text) => text)];
    expect(first).toBeGreaterThan(kHead);
    expect(await sized((text) => text)).toBe(first);
    expect(await sized((text) => `Katze ${text}`)).toBe(2 * first - kHead);
  });

  it('refuses graphs, and options that have no meaning for it', async () => {
    await expect(train({ captureGraphs: true })).rejects.toThrow(UnsupportedError);
    await expect(train({ regularizers: { variant: '2024' } })).rejects.toThrow(
      'variant has no meaning for seq2seq-lm',
    );
    await expect(train({ metricForBestModel: 'accuracy' })).rejects.toThrow(/has no accuracy/);
  });
});
