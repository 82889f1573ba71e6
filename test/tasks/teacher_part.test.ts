// The teacher on a part of the sequences: which these are, that the loss is the definition's, that its expectation is the loss of the
// whole teacher, and that runs repeat it.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { Batch } from '../../lib/data/collate.ts';
import { HeadLoss, type TeacherPart } from '../../lib/losses/head_loss.ts';
import { bind, TermSums } from '../../lib/losses/term.ts';
import { kLanguageModelTerms } from '../../lib/losses/terms/list.ts';
import { opTimes, resetOpTimes, synchronize } from '../../lib/runtime.ts';
import { drawnSequences, partRows, takeSequences } from '../../lib/tasks/teacher_part.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { resolveRegularizers } from '../../lib/train/regularizers.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import type { StepRecord } from '../../lib/train/types.ts';
import { randomTensor } from '../support/gradcheck.ts';
import { TinyModel, tinySource } from '../support/tiny_model.ts';

const draw = (step: number, microBatch = 0, seed = 3) => ({ seed, step, microBatch });

describe('drawnSequences', () => {
  it.each([
    [4, 0.5],
    [5, 0.3],
    [1, 0.25],
    [7, 1],
    [3, 0.9],
  ])('of %i draws each with the probability %d, as evenly as it goes', (count, fraction) => {
    const kDraws = 4000;
    const times = new Array<number>(count).fill(0);
    for (let step = 0; step < kDraws; step++) {
      const chosen = drawnSequences(count, fraction, draw(step));
      expect([Math.floor(count * fraction), Math.ceil(count * fraction)]).toContain(chosen.length);
      for (const b of chosen) times[b] = (times[b] as number) + 1;
    }
    const deviation = Math.sqrt((fraction * (1 - fraction)) / kDraws);
    for (const n of times)
      expect(Math.abs(n / kDraws - fraction)).toBeLessThanOrEqual(4.5 * deviation);
  });

  it('is a function of the seed, the step and the micro-batch', () => {
    const of = (...at: Parameters<typeof draw>) => drawnSequences(64, 0.5, draw(...at)).join();
    const all = [of(1), of(2), of(1, 1), of(1, 0, 4)];
    expect(of(1)).toBe(all[0]);
    expect(
      new Set(Array.from({ length: 40 }, (_, step) => drawnSequences(1, 0.5, draw(step)).length)),
    ).toEqual(new Set([0, 1]));
  });
});

const kBatch: Batch = {
  inputIds: Int32Array.of(1, 2, 3, 4, 5, 6, 7, 8, 0),
  positions: Int32Array.of(0, 1, 2, 0, 1, 0, 1, 2, 3),
  cuSeqlens: Int32Array.of(0, 3, 5, 9),
  targets: Int32Array.of(-100, 3, -100, 5, -100, 7, 8, -100, -100),
  lengths: Int32Array.of(3, 2, 3),
  indices: Int32Array.of(10, 11, 12),
};

it('takeSequences keeps the rows and the entries of the chosen ones', () => {
  expect(takeSequences(kBatch, [0, 2])).toEqual({
    inputIds: Int32Array.of(1, 2, 3, 6, 7, 8, 0),
    positions: Int32Array.of(0, 1, 2, 0, 1, 2, 3),
    cuSeqlens: Int32Array.of(0, 3, 7),
    targets: Int32Array.of(-100, 3, -100, 7, 8, -100, -100),
    lengths: Int32Array.of(3, 3),
    indices: Int32Array.of(10, 12),
  });
});

describe('the loss', () => {
  const regularizers = resolveRegularizers(
    { consistencyWeight: 0.7, diversityWeight: 0.1, svdWeight: 0.2, svdTopK: 2 },
    'causal-lm',
  );
  const terms = kLanguageModelTerms.map((term) => bind(term as never, regularizers as never));
  const weights = { consistency: 0.7, diversity: 0.1, svd: 0.2 };
  const head = { weight: randomTensor([17, 8], { seed: 1, dtype: 'f64' }) };
  const teacher = randomTensor([9, 8], { seed: 3, dtype: 'f64' });

  /** Loss, values of the terms, and the gradient of the hidden states, in f64. */
  async function of(part: TeacherPart | null, states: Tensor | null) {
    const loss = new HeadLoss(head, terms, { chunkBytes: 600 });
    const hidden = randomTensor([9, 8], { seed: 2, dtype: 'f64', requiresGrad: true });
    const sums = new TermSums(terms);
    const result = loss.compute({ hidden, teacher: states, part, batch: kBatch, weights });
    sums.add(result);
    result.loss?.backward();
    const gradient = Array.from((await (hidden.grad as Tensor).data()) as Float64Array);
    const values = await sums.read(result.counts);
    loss.dispose();
    return { loss: result.loss?.itemSync() as number, values, gradient };
  }

  // The draws of three sequences that a fraction has, each as likely as the others.
  it.each([
    { fraction: 0.5, draws: [[1], [0, 2]] },
    { fraction: 1 / 3, draws: [[0], [1], [2]] },
  ])('has the loss of the whole teacher as its mean over all draws: $fraction', async (c) => {
    const { fraction, draws } = c;
    const whole = await of(null, teacher);
    const all = (await teacher.data()) as Float64Array;
    const selected = new HeadLoss(head, terms).select(kBatch);
    const means = { loss: 0, consistency: 0, gradient: whole.gradient.map(() => 0) };
    for (const chosen of draws) {
      const part = { ...partRows(selected, kBatch.cuSeqlens, chosen), factor: 1 / fraction };
      const rows = Int32Array.from(part.rows, (i) => selected.rows[i] as number);
      const states = Float64Array.from(
        Array.from(rows).flatMap((n) => [...all.subarray(8 * n, 8 * n + 8)]),
      );
      const one = await of(part, tensor(states, { shape: [rows.length, 8] }));
      means.loss += one.loss / draws.length;
      means.consistency += (one.values.consistency as number) / draws.length;
      one.gradient.forEach((g, i) => {
        means.gradient[i] = (means.gradient[i] as number) + g / draws.length;
      });
      expect(one.values.task).toBeCloseTo(whole.values.task as number, 12);
      expect(one.values.svd).toBeCloseTo(whole.values.svd as number, 12);
      expect(one.values.diversity).toBeCloseTo(whole.values.diversity as number, 12);
    }
    expect(means.loss).toBeCloseTo(whole.loss, 12);
    expect(means.consistency).toBeCloseTo(whole.values.consistency as number, 12);
    means.gradient.forEach((g, i) => {
      expect(g).toBeCloseTo(whole.gradient[i] as number, 12);
    });
  });

  it('has no consistency where no sequence was drawn', async () => {
    const selected = new HeadLoss(head, terms).select(kBatch);
    const none = await of({ ...partRows(selected, kBatch.cuSeqlens, []), factor: 2 }, null);
    expect(none.values.consistency).toBe(0);
    expect(none.values.task).toBeCloseTo((await of(null, teacher)).values.task as number, 12);
  });
});

describe('a run', () => {
  let folder: string;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'balora-part-'));
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  const kRegularizers = {
    consistencyWeight: 0.5,
    diversityWeight: 0.1,
    svdWeight: 0.1,
    svdTopK: 2,
  };

  async function run(
    options: Partial<ConstructorParameters<typeof Trainer>[0]> & { stopAfter?: number },
  ) {
    const { stopAfter = 99, ...given } = options;
    const model = new TinyModel({ dtype: 'f32', vocabulary: 17, width: 8, seed: 1 });
    const tuned = await AdapterModel.create(model, { r: 2, initLoraWeights: 'pissa_niter_4' });
    const stop = new AbortController();
    const records: StepRecord[] = [];
    resetOpTimes();
    for await (const event of new Trainer({
      ...{ tuned, data: tinySource([kBatch, kBatch]), numTrainEpochs: 4, learningRate: 0.01 },
      ...{ signal: stop.signal, regularizers: kRegularizers, ...(given as object) },
    }).run()) {
      if (event.type !== 'step') continue;
      records.push(event.record);
      if (event.record.step === stopAfter) stop.abort();
    }
    await synchronize();
    const teacherRows = opTimes()
      .filter(({ phase, op }) => phase === 'teacher' && op === 'linear')
      .reduce((sum, { calls }) => sum + calls, 0);
    tuned.dispose();
    model.dispose();
    return {
      records: records.map(({ loss, terms }) => [loss, terms.consistency?.value]),
      teacherRows,
    };
  }

  it('repeats its draws after an interruption, and with a cache', async () => {
    const regularizers = { ...kRegularizers, teacherFraction: 1 / 3 };
    const whole = await run({ regularizers });
    const all = await run({});
    expect(whole.records).not.toEqual(all.records);
    const output = join(folder, 'out');
    const first = await run({ regularizers, output, stopAfter: 3 });
    const rest = await run({ regularizers, output, resume: true });
    expect([...first.records, ...rest.records]).toEqual(whole.records);
    await expect(run({ output, resume: true })).rejects.toThrow(/teacherFraction: was 0\.333/);
    const cached = await run({ regularizers, cacheTeacher: true });
    cached.records.forEach((row, step) => {
      row.forEach((value, i) => {
        expect(value as number).toBeCloseTo((whole.records[step] as number[])[i] as number, 4);
      });
    });
    expect(cached.teacherRows).toBeLessThanOrEqual(all.teacherRows);
  });

  it('is refused where something reads the whole teacher', async () => {
    const adaptive = { ...kRegularizers, teacherFraction: 0.5, consistencySchedule: 'adaptive' };
    await expect(run({ regularizers: adaptive as never })).rejects.toThrow(
      /consistencySchedule adaptive reads the teacher on all sequences; leave teacherFraction out/,
    );
    await expect(run({ regularizers: { ...kRegularizers, teacherFraction: 0 } })).rejects.toThrow(
      /teacherFraction/,
    );
  });
});
