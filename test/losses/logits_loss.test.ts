// The regularizers of classification heads: values and gradients of every golden case, in f64 and f32; and NluLoss around them:
// accumulation over a window, the clamp and its warning, heads with one output.
import { describe, expect, it } from 'vitest';
import { NluLoss } from '../../lib/losses/balora.ts';
import { nluTaskLoss } from '../../lib/losses/logits_loss.ts';
import {
  binaryCrossEntropy,
  nluConsistencyLoss,
  nluDiversityLoss,
  nluSvdLoss,
  teacherEntropyRows,
} from '../../lib/losses/nlu_terms.ts';
import type { TermNote } from '../../lib/losses/term.ts';
import { TermSums } from '../../lib/losses/term.ts';
import { slice } from '../../lib/ops/index.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { goldenTensor } from '../support/fixtures.ts';
import {
  array,
  type Case,
  cases,
  type Dtype,
  dtypes,
  expectGrad,
  expectValue,
  gradOf,
  load,
  ofKind,
  weightsOf,
} from '../support/golden_losses.ts';
import { gradcheck, randomTensor } from '../support/gradcheck.ts';

type Variant = 'iclr' | '2024';

/** Compares a term with the golden one; a skipped term (null) contributes nothing. */
function check(c: Case, dtype: Dtype, term: (z: Tensor) => Tensor | null): void {
  const z = load(c, 'Z', dtype, true);
  const value = term(z);
  const expected = array(c, 'dZ').data as Float64Array;
  if (value === null) {
    expect(c.value === null || c.value === 0).toBe(true);
    expect(Array.from(expected).every((v) => v === 0)).toBe(true);
    return;
  }
  value.backward();
  if (c.value === null) expect(value.itemSync()).toBeCloseTo(0, 15);
  else expectValue(value.itemSync(), c.value, dtype);
  const found = gradOf(z);
  if (!c.grad_check.startsWith('rows:')) {
    expectGrad(found, expected, dtype);
    return;
  }
  expect(Array.from(found).every(Number.isFinite)).toBe(true);
  const width = array(c, 'Z').shape[1] as number;
  const rows = c.grad_check.slice('rows:'.length).split(',').map(Number);
  const pick = (x: Float64Array) =>
    rows.flatMap((row) => Array.from(x.slice(row * width, (row + 1) * width)));
  expectGrad(pick(found), pick(expected), dtype);
}

describe.each(dtypes)('terms in %s', (dtype) => {
  it.each(ofKind('nlu_consistency'))('$name', (c) => {
    const { variant, T } = c.params as unknown as { variant: Variant; T?: number };
    const options = T === undefined ? { variant } : { variant, temperature: T };
    check(c, dtype, (z) => nluConsistencyLoss(z, load(c, 'P', dtype), options));
  });
  it.each(ofKind('nlu_diversity'))('$name', (c) => {
    check(c, dtype, (z) => nluDiversityLoss(z));
  });
  it.each(ofKind('nlu_svd'))('$name', (c) => {
    check(c, dtype, (z) => nluSvdLoss(z, { k: c.params.k as number }));
  });
});

interface TotalParams {
  lambda: [number, number, number];
  T: number;
  variant: Variant;
  task?: 'mse';
  k: number;
  k_used: number;
}

/**
 * NluLoss of a case. For regression the golden total has the divergence of one class, which is 0, where
 * NluLoss has the squared distance.
 */
function lossOf(c: Case, onWarning: (warning: TermNote) => void = () => {}) {
  const params = c.params as unknown as TotalParams;
  const regression = params.task === 'mse';
  return new NluLoss({
    problemType: regression ? 'regression' : 'single_label_classification',
    variant: params.variant,
    temperature: params.T,
    svdTopK: params.k,
    terms: { consistency: !regression },
    onWarning,
  });
}
const labelsOf = (c: Case, dtype: Dtype) =>
  c.name.includes('regression')
    ? load(c, 'y', dtype)
    : tensor(Int32Array.from(array(c, 'y').data as BigInt64Array, Number));

describe.each(dtypes)('totals in %s', (dtype) => {
  it.each(ofKind('nlu_total'))('$name', async (c) => {
    const warnings: TermNote[] = [];
    const loss = lossOf(c, (warning) => warnings.push(warning));
    const z = load(c, 'Z', dtype, true);
    const batch = {
      logits: z,
      teacherLogits: load(c, 'P', dtype),
      labels: labelsOf(c, dtype),
      weights: weightsOf(c.params.lambda),
    };
    const result = loss.compute(batch);
    result.loss.backward();
    expectValue(result.loss.itemSync(), c.value as number, dtype);
    expectGrad(gradOf(z), array(c, 'dZ').data as Float64Array, dtype);
    const window = new TermSums(loss.terms);
    window.add(result);
    const found = await window.read(result.counts);
    for (const [term, value] of Object.entries(c.terms ?? {})) {
      expectValue(found[term as keyof typeof found] as number, value, dtype);
    }
    const { k, k_used: used } = c.params as unknown as TotalParams;
    loss.compute(batch); // does not warn a second time
    const code = used === 0 ? 'nlu_terms_undefined' : 'nlu_svd_clamped';
    expect(warnings.map((warning) => warning.code)).toEqual(used === k ? [] : [code]);
    if (used > 0 && used < k) expect(warnings[0]?.message).toContain(`clamped to ${used}`);
  });
});

it('every kind of the fixture has a test', () => {
  const kinds = new Set(cases.map(({ kind }) => kind).filter((kind) => kind.startsWith('nlu_')));
  expect([...kinds].sort()).toEqual(['nlu_consistency', 'nlu_diversity', 'nlu_svd', 'nlu_total']);
});

describe('NluLoss over a window', () => {
  const c = cases.find(({ name }) => name === 'nlu_total_2024_N16_D3') as Case;

  it('task and consistency of 1x16 and of 8+5+3 agree; the others are weighted means', async () => {
    const parts = [0, 8, 13, 16];
    const loss = lossOf(c);
    const z = load(c, 'Z', 'f64', true);
    const window = new TermSums(loss.terms);
    for (let i = 0; i + 1 < parts.length; i++) {
      const cut = (x: Tensor) =>
        slice(x, 0, { start: parts[i] as number, stop: parts[i + 1] as number });
      const result = loss.compute({
        logits: cut(z),
        teacherLogits: cut(load(c, 'P', 'f64')),
        labels: cut(labelsOf(c, 'f64')),
        weights: { consistency: 0.15, diversity: 0, svd: 0 },
        windowExamples: 16,
      });
      result.loss.backward();
      window.add(result);
    }
    const terms = await window.read({ supervised: 16, regularized: 16 });
    expect(terms.task).toBeCloseTo(c.terms?.task as number, 12);
    expect(terms.consistency).toBeCloseTo(c.terms?.consistency as number, 12);
    const whole = load(c, 'Z', 'f64', true);
    lossOf(c)
      .compute({
        logits: whole,
        teacherLogits: load(c, 'P', 'f64'),
        labels: labelsOf(c, 'f64'),
        weights: { consistency: 0.15, diversity: 0, svd: 0 },
      })
      .loss.backward();
    gradOf(whole).forEach((v, i) => {
      expect(gradOf(z)[i]).toBeCloseTo(v, 14);
    });
  });

  it('with one example skips diversity and svd with one warning', async () => {
    const warnings: string[] = [];
    const loss = new NluLoss({ onWarning: ({ code }) => warnings.push(code) });
    const result = loss.compute({
      logits: tensor([[1, 2, 3]]),
      teacherLogits: tensor([[1, 2, 3]]),
      labels: tensor(Int32Array.of(2)),
      weights: { consistency: 1, diversity: 1, svd: 1 },
    });
    const window = new TermSums(loss.terms);
    window.add(result);
    expect(warnings).toEqual(['nlu_single_example']);
    const terms = await window.read(result.counts);
    expect(terms).toMatchObject({ consistency: 0, diversity: null, svd: null });
    expect(result.loss.itemSync()).toBeCloseTo(terms.task, 6);
  });
});

describe('heads with one output and with independent labels', () => {
  it('regression: the consistency is the mean squared difference, in both variants', () => {
    const options = { problemType: 'regression' as const };
    const [z, p] = [tensor([[1], [3]]), tensor([[0], [1]])];
    expect(nluConsistencyLoss(z, p, options).itemSync()).toBe(2.5);
    expect(nluConsistencyLoss(z, p, { ...options, variant: '2024' }).itemSync()).toBe(2.5);
    expect(nluTaskLoss(z, tensor(Float32Array.of(1, 1)), 'regression').itemSync()).toBe(2);
  });

  it('multi-label: binary cross-entropy and the divergence of Bernoullis, against plain loops', () => {
    const [z, p] = [randomTensor([4, 3], { seed: 3 }), randomTensor([4, 3], { seed: 4 })];
    const y = tensor(Float64Array.of(1, 0, 1, 0, 0, 1, 1, 1, 0, 0, 0, 0), { shape: [4, 3] });
    const s = (x: number) => 1 / (1 + Math.exp(-x));
    const [zs, ps, ys] = [z, p, y].map((t) => t.dataSync() as Float64Array) as [
      Float64Array,
      Float64Array,
      Float64Array,
    ];
    let [bce, kl] = [0, 0];
    zs.forEach((value, i) => {
      const label = ys[i] as number;
      bce -= label * Math.log(s(value)) + (1 - label) * Math.log(1 - s(value));
      const [a, b] = [s((ps[i] as number) / 2), s(value / 2)];
      kl += a * Math.log(a / b) + (1 - a) * Math.log((1 - a) / (1 - b));
    });
    expect(binaryCrossEntropy(z, y).itemSync()).toBeCloseTo(bce / 12, 13);
    const problemType = 'multi_label_classification';
    expect(nluConsistencyLoss(z, p, { problemType }).itemSync()).toBeCloseTo((4 * kl) / 4, 13);
  });

  it("the teacher's entropy at T, of classes and of independent labels, against plain loops", () => {
    const p = randomTensor([4, 3], { seed: 6 });
    const rows = p.dataSync() as Float64Array;
    const entropyOf = (shares: number[]) => shares.reduce((sum, q) => sum - q * Math.log(q), 0);
    for (const problemType of [
      'single_label_classification',
      'multi_label_classification',
    ] as const) {
      const found = teacherEntropyRows(p, { problemType, temperature: 2 }).dataSync();
      for (let n = 0; n < 4; n++) {
        const halves = Array.from(rows.slice(3 * n, 3 * n + 3), (z) => z / 2);
        const total = halves.reduce((sum, z) => sum + Math.exp(z), 0);
        const yes = halves.map((z) => 1 / (1 + Math.exp(-z)));
        const expected =
          problemType === 'single_label_classification'
            ? entropyOf(halves.map((z) => Math.exp(z) / total))
            : yes.reduce((sum, q) => sum + entropyOf([q, 1 - q]), 0);
        expect(found[n]).toBeCloseTo(expected, 13);
      }
    }
  });

  it('gradients of the functions that no golden case has', () => {
    const [z, p] = [randomTensor([5, 3], { seed: 3 }), randomTensor([5, 3], { seed: 4 })];
    const y = randomTensor([5, 3], { seed: 5 });
    const problemType = 'multi_label_classification' as const;
    gradcheck((x) => nluConsistencyLoss(x, p, { problemType, temperature: 3 }), [z]);
    gradcheck((x) => nluConsistencyLoss(x, p, { problemType: 'regression' }), [z]);
    gradcheck((x) => binaryCrossEntropy(x, y), [z]);
  });

  it('bf16 logits are converted to f32', () => {
    const z = goldenTensor({ shape: [2, 2], data: Float32Array.of(1, 2, 4, 3) }, 'f32').to('bf16');
    const value = nluSvdLoss(z);
    expect(value?.dtype).toBe('f32');
  });
});

describe('bad arguments', () => {
  const weights = { consistency: 1, diversity: 0, svd: 0 };
  const logits = tensor([
    [1, 2],
    [3, 4],
  ]);
  it.each([
    [() => new NluLoss({ variant: '2023' as never }), /variant must be one of iclr, 2024/],
    [() => new NluLoss({ problemType: 'ranking' as never }), /problemType must be one of/],
    [() => new NluLoss({ temperature: 0 }), /temperature must be > 0/],
    [() => new NluLoss({ svdTopK: 0 }), /svdTopK must be a whole number >= 1/],
    [
      () => new NluLoss().compute({ logits, labels: tensor(Int32Array.of(0, 1)), weights }),
      /pass teacherLogits$/,
    ],
    [
      () => nluTaskLoss(logits, tensor(Float32Array.of(0, 1)), 'single_label_classification'),
      /must be \(2\) i32, got \(2\) f32/,
    ],
    [
      () => nluTaskLoss(logits, tensor(Float32Array.of(0, 1)), 'multi_label_classification'),
      /must be \(2,2\) of a float type, got \(2\) f32/,
    ],
    [
      () => nluConsistencyLoss(logits, tensor([[1, 2]])),
      /teacher must be as student, \(2,2\), got \(1,2\)/,
    ],
  ])('%#', (make, message) => {
    expect(make).toThrow(message);
  });
});
