import { expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import type { NamedTensor } from '../../lib/adapters/tuned_model.ts';
import type { Batch } from '../../lib/data/collate.ts';
import { evaluate } from '../../lib/eval/evaluate.ts';
import type { CausalLM } from '../../lib/models/causal_lm.ts';
import { copy_, fill_, linear, randn, singularValues } from '../../lib/ops/index.ts';
import { memoryStats } from '../../lib/runtime.ts';
import { noGrad, scope, tensor } from '../../lib/tensor.ts';
import { TinyModel, tinyBatches } from '../support/tiny_model.ts';

/** The logits (N,V) of a model in f64. */
function logitsOf(model: TinyModel, batch: Batch): Float64Array {
  return scope(() =>
    noGrad(() => {
      const hidden = model.forward(batch).to('f64');
      return linear(hidden, model.head.weight.to('f64')).dataSync() as Float64Array;
    }),
  );
}

function logSoftmax(row: Float64Array): number[] {
  const largest = Math.max(...row);
  const sum = row.reduce((total, value) => total + Math.exp(value - largest), 0);
  return Array.from(row, (value) => value - largest - Math.log(sum));
}

async function disturbed(): Promise<AdapterModel> {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 4, loraAlpha: 8 });
  let seed = 5;
  for (const { tensor: values } of tuned.parameters()) {
    scope(() => noGrad(() => copy_(values, randn(values.shape, { seed: seed++, deviation: 0.2 }))));
  }
  return tuned;
}

it('agrees with the definitions, over batches and by example', async () => {
  const tuned = await disturbed();
  const model = tuned.model as TinyModel;
  const batches = tinyBatches({ count: 3 }).map((batch, i) => ({
    ...batch,
    indices: Int32Array.of(2 * i + 10, 2 * i + 11),
  }));
  const found = await evaluate(tuned, batches);

  const width = 17;
  let [loss, kl, entropy, rows] = [0, 0, 0, 0];
  const supervised: number[] = []; // logits (M,V)
  const perExample: { index: number; supervisedTokens: number; sum: number }[] = [];
  for (const batch of batches) {
    const student = logitsOf(model, batch);
    const teacher = tuned.withTeacher(() => logitsOf(model, batch));
    batch.targets.forEach((target, n) => {
      const segment = n < (batch.cuSeqlens[1] as number) ? 0 : 1;
      if (n === 0 || n === batch.cuSeqlens[1]) {
        perExample.push({ index: batch.indices[segment] as number, supervisedTokens: 0, sum: 0 });
      }
      if (target === -100) return;
      const row = student.subarray(n * width, (n + 1) * width);
      supervised.push(...row);
      const q = logSoftmax(row);
      const p = logSoftmax(teacher.subarray(n * width, (n + 1) * width));
      rows++;
      loss -= q[target] as number;
      const example = perExample[perExample.length - 1] as (typeof perExample)[number];
      example.supervisedTokens++;
      example.sum -= q[target] as number;
      for (let v = 0; v < width; v++) {
        kl += Math.exp(p[v] as number) * ((p[v] as number) - (q[v] as number));
        entropy -= Math.exp(q[v] as number) * (q[v] as number);
      }
    });
  }
  expect(found.supervisedTokens).toBe(rows);
  expect(found.tokens).toBe(36);
  expect(found.loss).toBeCloseTo(loss / rows, 5);
  expect(found.perplexity).toBeCloseTo(Math.exp(loss / rows), 4);
  expect(found.kl as number).toBeCloseTo(kl / rows, 5);
  expect(found.entropy).toBeCloseTo(entropy / rows, 5);
  const logits = tensor(Float64Array.from(supervised), { shape: [rows, width] });
  const sigma = singularValues(logits).dataSync() as Float64Array;
  // The effective rank is exp of the entropy of sigma / sum(sigma).
  const total = sigma.reduce((sum, value) => sum + value, 0);
  const shares = Array.from(sigma, (value) => value / total).filter((share) => share > 0);
  const expectedRank = Math.exp(-shares.reduce((sum, p) => sum + p * Math.log(p), 0));
  expect(found.effectiveRank / expectedRank).toBeCloseTo(1, 4);
  expect(found.examples.map(({ index }) => index)).toEqual([10, 11, 12, 13, 14, 15]);
  found.examples.forEach((example, i) => {
    const expected = perExample[i] as (typeof perExample)[number];
    expect(example.supervisedTokens).toBe(expected.supervisedTokens);
    expect(example.tokens).toBe(6);
    expect(example.loss as number).toBeCloseTo(expected.sum / expected.supervisedTokens, 5);
  });
});

it('reports a KL of 0 for a fresh adapter, and null without a teacher', async () => {
  const fresh = await AdapterModel.create(new TinyModel(), { r: 2 });
  expect((await evaluate(fresh, tinyBatches({ count: 1 }))).kl).toBe(0);
  expect((await evaluate(new FullModel(new TinyModel()), tinyBatches({ count: 1 }))).kl).toBeNull();
});

it('is an error for weights that are not finite, with what to do', async () => {
  const tuned = await disturbed();
  const [first] = tuned.parameters();
  noGrad(() => fill_((first as NamedTensor).tensor, Number.NaN));
  await expect(evaluate(tuned, tinyBatches({ count: 2 }))).rejects.toMatchObject({
    code: 'ERR_NOT_FINITE',
    message: expect.stringMatching(/^evaluate: the loss is NaN: .* earlier checkpoint/),
  });
});

it('fails where nothing is supervised, and stops at an abort', async () => {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 2 });
  const [batch] = tinyBatches({ count: 1 }) as [Batch];
  const none = { ...batch, targets: new Int32Array(batch.targets.length).fill(-100) };
  await expect(evaluate(tuned, [none])).rejects.toThrow(/no supervised token/);
  const stopped = evaluate(tuned, [batch], { signal: AbortSignal.abort() });
  await expect(stopped).rejects.toThrow(/abort/i);
});

it('keeps no tensor of a batch whose terms cannot be computed', async () => {
  const tuned = await disturbed();
  await evaluate(tuned, tinyBatches({ count: 1 })); // what is made once is there
  const before = memoryStats().liveTensors;
  let calls = 0;
  const broken = {
    ...{ model: tuned.model, hasTeacher: true },
    withTeacher<T>(body: (model: CausalLM) => T): T {
      if (++calls === 2) throw new Error('no head');
      return tuned.withTeacher(body);
    },
  };
  await expect(evaluate(broken, tinyBatches({ count: 1 }))).rejects.toThrow('no head');
  expect(calls).toBe(2);
  expect(memoryStats().liveTensors).toBe(before);
});
