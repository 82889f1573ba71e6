/** Files under test/fixtures, and golden arrays as tensors. */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import type { GoldenArray } from './golden.ts';

/** Path of a file under test/fixtures. */
export function fixturePath(path: string): string {
  return fileURLToPath(new URL(`../fixtures/${path}`, import.meta.url));
}

export function readJson(path: string): unknown {
  return JSON.parse(readFileSync(path, 'utf8'));
}

/** A golden array as a tensor of a float dtype. */
export function goldenTensor(
  { data, shape }: GoldenArray,
  dtype: 'f32' | 'f64',
  { requiresGrad = false } = {},
): Tensor {
  const values = Float64Array.from(data as ArrayLike<number>, Number);
  return tensor(dtype === 'f64' ? values : Float32Array.from(values), { shape, requiresGrad });
}

/** The error max |a - b| / max |b|, or max |a| where b is all zero. */
export function relativeError(a: ArrayLike<number>, b: ArrayLike<number>): number {
  let worst = 0;
  let scale = 0;
  for (let i = 0; i < b.length; i++) {
    const difference = Math.abs((a[i] as number) - (b[i] as number));
    if (!(difference <= worst)) worst = difference; // NaN counts as the worst
    scale = Math.max(scale, Math.abs(b[i] as number));
  }
  return scale > 0 ? worst / scale : worst;
}
