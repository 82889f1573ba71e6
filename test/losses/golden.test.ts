// Values and gradients of every golden case of the language-model losses, in f64 and f32, plain and fused.
// Tolerances: ../fixtures/losses (f64 1e-9; f32 1e-5 of the largest gradient, with the exceptions its README measures).
import { describe, expect, it } from 'vitest';
import {
  baLoraPlainLoss,
  consistencyLoss,
  diversityLoss,
  headLogits,
  svdLoss,
} from '../../lib/losses/plain.ts';
import { gram, headLosses, svd, svdRatio, svdRatioGram } from '../../lib/ops/index.ts';
import { noGrad, type Tensor, tensor } from '../../lib/tensor.ts';
import { goldenTensor } from '../support/fixtures.ts';
import type { GoldenArray } from '../support/golden.ts';
import {
  array,
  type Case,
  type Dtype,
  dtypes,
  expectGrad,
  expectValue,
  gradOf,
  has,
  headSetting,
  identity,
  load,
  ofKind,
  plainValues,
  weightsOf,
} from '../support/golden_losses.ts';

/** Value and gradient of a function of Z. The fused forms use the identity as the head, so that Z = H. */
function onLogits(c: Case, dtype: Dtype, f: (z: Tensor) => Tensor) {
  const z = load(c, 'Z', dtype, true);
  const value = f(z);
  value.backward();
  return { value: value.itemSync(), dZ: gradOf(z) };
}

describe.each(dtypes)('consistency in %s', (dtype) => {
  it.each(ofKind('nlg_consistency'))('$name', (c) => {
    const temperature = c.params.T as number;
    const [rows, vocabulary] = array(c, 'Z').shape as [number, number];
    const forms: ((z: Tensor) => Tensor)[] = [
      (z) => consistencyLoss(z, load(c, 'P', dtype), { temperature }),
      (z) =>
        headLosses({
          hidden: z,
          teacher: load(c, 'P', dtype),
          head: identity(vocabulary, dtype),
          temperature,
          entropyTopK: -1,
          consistencyScale: 1 / rows,
        }).loss,
    ];
    for (const form of forms) {
      const { value, dZ } = onLogits(c, dtype, form);
      // Where rows are shifted by a constant, the error is the rounding of the shifted logits (torch: 4.8e-6).
      expectValue(value, c.value as number, dtype, c.name.includes('shifted') ? 10 : 1);
      expectGrad(dZ, array(c, 'dZ').data as Float64Array, dtype);
      if (c.name === 'nlg_kl_identical') expect(Math.abs(value)).toBeLessThanOrEqual(1e-15);
    }
  });
});

describe.each(dtypes)('diversity in %s', (dtype) => {
  it.each(ofKind('nlg_diversity'))('$name', (c) => {
    const topK = c.params.K as number;
    const [rows, vocabulary] = array(c, 'Z').shape as [number, number];
    const forms: ((z: Tensor) => Tensor)[] = [
      (z) => diversityLoss(z, { topK }),
      (z) =>
        headLosses({
          hidden: z,
          head: identity(vocabulary, dtype),
          entropyTopK: topK,
          diversityScale: 1 / rows,
        }).loss,
    ];
    for (const form of forms) {
      const { value, dZ } = onLogits(c, dtype, form);
      expectValue(value, c.value as number, dtype);
      expectGrad(dZ, array(c, 'dZ').data as Float64Array, dtype);
    }
  });
});

type Norm = 'frobenius' | 'nuclear';
const svdForms = {
  plain: (z: Tensor, _: Dtype, k: number, norm: Norm) => svdLoss(z, { k, norm }),
  gram: (z: Tensor, dtype: Dtype, k: number, norm: Norm) =>
    svdRatioGram(z, gram(identity(z.shape[1] as number, dtype)), { k, norm }),
  tiles: (z: Tensor, dtype: Dtype, k: number, norm: Norm) =>
    svdRatio(z, identity(z.shape[1] as number, dtype), { k, norm, chunkBytes: 4000 }),
};

describe.each(dtypes)('svd in %s', (dtype) => {
  const all = Object.keys(svdForms) as (keyof typeof svdForms)[];
  it.each(ofKind('nlg_svd').flatMap((c) => all.map((form) => ({ ...c, form }))))(
    '$form: $name',
    (c) => {
      const { value, dZ } = onLogits(c, dtype, (z) =>
        svdForms[c.form](z, dtype, c.params.k as number, c.params.norm),
      );
      // By a Gram matrix, singular values near the rounding of the stored Z are zero; the case allows 1e-5.
      const deficient = /nearly_deficient|rank3/.test(c.name) && c.form !== 'plain';
      if (c.value === null) expect(Math.abs(value)).toBe(0);
      else if (deficient) expect(Math.abs(value - c.value)).toBeLessThanOrEqual(1e-5);
      else expectValue(value, c.value, dtype);
      checkSvdGradient(c, dZ, deficient ? 'f32' : dtype);
    },
  );
});

/** Checks the gradient as grad_check demands: entirely, only finite with <dZ,Z> >= 0, or on the leading singular directions. */
function checkSvdGradient(c: Case, dZ: Float64Array, dtype: Dtype): void {
  expect(Array.from(dZ).every(Number.isFinite)).toBe(true);
  const z = array(c, 'Z').data as Float32Array;
  const dot = dZ.reduce((s, v, i) => s + v * (z[i] as number), 0);
  expect(dot).toBeGreaterThanOrEqual(-1e-5);
  if (c.grad_check === 'finite') return;
  const expected = array(c, 'dZ').data as Float64Array;
  if (c.grad_check === 'full') {
    expectGrad(dZ, expected, dtype);
    return;
  }
  const coordinates = leadingCoordinates(
    array(c, 'Z'),
    Number(c.grad_check.replace('leading:', '')),
  );
  expectGrad(coordinates(dZ), coordinates(expected), 'f32');
}

/** The map X -> U^T X V with the r leading singular vectors of Z. */
function leadingCoordinates(z: GoldenArray, r: number): (x: Float64Array) => Float64Array {
  const [m, n] = z.shape as [number, number];
  const { u, vt } = svd(goldenTensor(z, 'f64'));
  const [us, vs, k] = [plainValues(u), plainValues(vt), u.shape[1] as number];
  return (x) =>
    Float64Array.from({ length: r * r }, (_, at) => {
      const [a, b] = [Math.floor(at / r), at % r];
      let total = 0;
      for (let i = 0; i < m; i++) {
        for (let j = 0; j < n; j++) {
          total += (us[i * k + a] as number) * (x[i * n + j] as number) * (vs[b * n + j] as number);
        }
      }
      return total;
    });
}

describe.each(dtypes)('plain head losses in %s', (dtype) => {
  it.each(ofKind('nlg_head'))('$name', (c) => {
    const { softcap, ...setting } = headSetting(c);
    const hidden = load(c, 'H', dtype, true);
    const weight = load(c, 'W', dtype, true);
    const teacherWeight = has(c, 'Wt') ? load(c, 'Wt', dtype) : weight;
    const { loss, ...terms } = baLoraPlainLoss(
      {
        logits: headLogits(hidden, weight, { softcap }),
        teacherLogits: noGrad(() => headLogits(load(c, 'Ht', dtype), teacherWeight, { softcap })),
        targets: tensor(Int32Array.from(array(c, 'c').data as BigInt64Array, Number)),
      },
      { ...setting, weights: weightsOf(c.params.lambda) },
    );
    loss.backward();
    expectValue(loss.itemSync(), c.value as number, dtype);
    for (const [term, expected] of Object.entries(c.terms ?? {})) {
      expectValue((terms[term as keyof typeof terms] as Tensor).itemSync(), expected, dtype);
    }
    expectGrad(gradOf(hidden), array(c, 'dH').data as Float64Array, dtype);
    expectGrad(gradOf(weight), array(c, 'dW').data as Float64Array, dtype);
  });
});
