/** The golden cases of the language-model losses, with the tolerances of their README. */
import { expect } from 'vitest';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { fixturePath, goldenTensor, readJson } from './fixtures.ts';
import { type GoldenArray, goldenArrays } from './golden.ts';

export type Dtype = 'f32' | 'f64';
export const dtypes: Dtype[] = ['f64', 'f32'];

export interface Case {
  name: string;
  kind: string;
  params: Record<string, number> & {
    lambda: [number, number, number];
    norm: 'frobenius' | 'nuclear';
    counts: number[];
  };
  value: number | null;
  terms?: Record<'task' | 'consistency' | 'diversity' | 'svd', number>;
  grad_check: string;
  expect?: string;
}

export const { cases } = readJson(fixturePath('losses/losses.json')) as { cases: Case[] };
const arrays = goldenArrays(fixturePath('losses/losses.safetensors'));

export const ofKind = (kind: string): Case[] => cases.filter((c) => c.kind === kind);

export function array(c: Case, name: string): GoldenArray {
  const found = arrays.get(`${c.name}/${name}`);
  if (!found) throw new Error(`no golden array ${c.name}/${name}`);
  return found;
}
export const has = (c: Case, name: string): boolean => arrays.has(`${c.name}/${name}`);

export function load(c: Case, name: string, dtype: Dtype, requiresGrad = false): Tensor {
  return goldenTensor(array(c, name), dtype, { requiresGrad });
}
export const plainValues = (t: Tensor): Float64Array =>
  Float64Array.from(t.dataSync() as Float64Array);
export const gradOf = (t: Tensor): Float64Array => plainValues(t.grad as Tensor);

export function identity(size: number, dtype: Dtype): Tensor {
  const values = Float64Array.from({ length: size * size }, (_, i) => Number(i % (size + 1) === 0));
  return tensor(dtype === 'f64' ? values : Float32Array.from(values), { shape: [size, size] });
}

export function expectValue(found: number, expected: number, dtype: Dtype, loose = 1): void {
  const tolerance =
    dtype === 'f64'
      ? 1e-9 * Math.abs(expected) + 1e-12
      : loose * (1e-5 * Math.abs(expected) + 1e-6);
  expect(Math.abs(found - expected), `value ${found}, expected ${expected}`).toBeLessThanOrEqual(
    tolerance,
  );
}

export function expectGrad(
  found: ArrayLike<number>,
  expected: ArrayLike<number>,
  dtype: Dtype,
): void {
  expect(found.length).toBe(expected.length);
  // The golden README's tolerances.
  const [relative, absolute] = dtype === 'f64' ? [1e-9, 1e-12] : [1e-5, 1e-7];
  let scale = 0;
  let worst = 0;
  for (let i = 0; i < expected.length; i++) {
    scale = Math.max(scale, Math.abs(expected[i] as number));
    const error = Math.abs((found[i] as number) - (expected[i] as number));
    if (!(error <= worst)) worst = error; // NaN counts as the worst
  }
  expect(worst, `gradient scale ${scale}`).toBeLessThanOrEqual(relative * scale + absolute);
}

export function headSetting(c: Case) {
  return {
    softcap: c.params.softcap ?? 0,
    temperature: c.params.T as number,
    entropyTopK: c.params.K as number,
    svdTopK: c.params.k as number,
    svdNorm: c.params.norm,
  };
}

export const weightsOf = ([consistency, diversity, svd]: [number, number, number]) => ({
  consistency,
  diversity,
  svd,
});
