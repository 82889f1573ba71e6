// Golden architectures: a padded batch as unpadded rows, and the expected values of the rows that are no padding.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'vitest';
import type { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { loadSafetensors } from '../../lib/io/safetensors.ts';
import type { Model } from '../../lib/models/index.ts';
import { copy_ } from '../../lib/ops/index.ts';
import { noGrad, Tensor } from '../../lib/tensor.ts';
import { values } from './compare.ts';

export interface AdapterFacts {
  readonly loss: number;
  readonly tolerance: { logits_abs: number; loss_abs: number; grad_abs_over_max_abs: number };
}

export interface Golden {
  readonly folder: string;
  readonly batch: {
    inputIds: Int32Array;
    positions: Int32Array;
    cuSeqlens: Int32Array;
    targets: Int32Array;
  };
  /** Row n of the batch is row rows[n] of the padded (B T) outputs. */
  readonly rows: readonly number[];
  readonly expected: Record<string, Tensor>;
  readonly facts: {
    loss: number;
    loss_f64: number;
    tolerance: {
      logits_abs: number;
      last_hidden_state_abs: number;
      loss_abs: number;
      grad_abs_over_max_abs: number;
    };
    adapters: Record<string, AdapterFacts>;
  };
}

export const architecture = (name: string): string =>
  join(fileURLToPath(new URL('../fixtures/architectures', import.meta.url)), name);

export type GoldenTask = 'causal_lm' | 'seq_cls' | 'seq2seq_lm';

/** The names of all golden checkpoints of a task in the fixtures. */
export function goldenNames(task: GoldenTask): string[] {
  return readdirSync(architecture('')).filter((name) => {
    const facts = join(architecture(name), 'expected.json');
    return existsSync(facts) && JSON.parse(readFileSync(facts, 'utf8')).task === task;
  });
}

/** The configuration of a golden checkpoint. */
export const goldenConfig = (name: string): Record<string, unknown> =>
  JSON.parse(readFileSync(join(architecture(name), 'model', 'config.json'), 'utf8'));

/** The gradients of an adapter and its trained head, under the keys of PEFT's file. */
export function peftGradients<M extends Model>(tuned: AdapterModel<M>): Map<string, Tensor | null> {
  return new Map(
    tuned.parameters().map(({ name, tensor }) => {
      const ending = /\.lora_[AB]$/.test(name) ? '.weight' : '';
      return [`base_model.model.${name}${ending}`, tensor.grad];
    }),
  );
}

export async function readGolden(name: string): Promise<Golden> {
  const folder = architecture(name);
  const { tensors: inputs } = await loadSafetensors(join(folder, 'inputs.safetensors'));
  const { tensors: expected } = await loadSafetensors(join(folder, 'expected.safetensors'));
  const [b, t] = (inputs.input_ids as Tensor).shape as [number, number];
  const [ids, mask, labels] = ['input_ids', 'attention_mask', 'labels'].map((key) =>
    Array.from((inputs[key] as Tensor).dataSync(), Number),
  ) as [number[], number[], number[]];
  const rows = mask.flatMap((bit, i) => (bit ? [i] : []));
  const cuSeqlens = new Int32Array(b + 1);
  for (const row of rows) {
    const segment = Math.floor(row / t) + 1;
    cuSeqlens[segment] = (cuSeqlens[segment] as number) + 1;
  }
  for (let i = 0; i < b; ++i)
    cuSeqlens[i + 1] = (cuSeqlens[i + 1] as number) + (cuSeqlens[i] as number);
  const last = new Set(Array.from(cuSeqlens, (end) => end - 1));
  return {
    folder,
    batch: {
      inputIds: Int32Array.from(rows, (i) => ids[i] as number),
      positions: Int32Array.from(rows, (i) => i % t),
      cuSeqlens,
      targets: Int32Array.from(rows, (i, n) => (last.has(n) ? -100 : (labels[i + 1] as number))),
    },
    rows,
    expected,
    facts: JSON.parse(readFileSync(join(folder, 'expected.json'), 'utf8')),
  };
}

/** Largest |actual - expected| over the rows that are no padding; `expected` is (B,T,K). */
export function rowError(actual: Tensor, expected: Tensor, rows: readonly number[]): number {
  const [got, want] = [values(actual), values(expected)];
  const width = expected.shape.at(-1) as number;
  expect(actual.shape).toEqual([rows.length, width]);
  return rows.reduce((worst, row, n) => {
    for (let k = 0; k < width; ++k) {
      const error = Math.abs((got[n * width + k] as number) - (want[row * width + k] as number));
      worst = Math.max(error, worst);
    }
    return worst;
  }, 0);
}

/** The error max |actual - expected| / max |expected|. */
export function relativeError(actual: Tensor, expected: Tensor): number {
  const [got, want] = [values(actual), values(expected)];
  expect(actual.shape).toEqual(expected.shape);
  const scale = want.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
  return want.reduce((worst, v, i) => {
    const error = Math.abs((got[i] as number) - v) / scale;
    return Math.max(error, worst);
  }, 0);
}

/**
 * Compares gradients with the golden ones, which have the keys of their parameters behind "grad.".
 * @param gradientOf the gradient of the parameter with a key
 * @param tolerance of an error as a share of the largest value
 * @returns the number of gradients
 */
export function expectGradients(
  expected: Readonly<Record<string, Tensor>>,
  gradientOf: (key: string) => Tensor | null | undefined,
  tolerance: number,
): number {
  const prefix = 'grad.';
  const keys = Object.keys(expected).filter((key) => key.startsWith(prefix));
  for (const key of keys) {
    const grad = gradientOf(key.slice(prefix.length));
    expect(grad instanceof Tensor, key).toBe(true);
    expect(relativeError(grad as Tensor, expected[key] as Tensor), key).toBeLessThan(tolerance);
  }
  return keys.length;
}

/**
 * Tolerances of normError for tiny models in bf16. Rounding to bf16 has a relative error of up to 2^-9. Each of the 2 or 3 layers
 * rounds a value about ten times in sequence, so that logits should have an error of about 2^-9 sqrt(30), 1 per cent of their
 * norm, and gradients somewhat more, as they pass through everything twice. Measured on decoders: .009 to .019 and .015 to .035.
 * The tolerances are 1.5 times the largest. The tests in f32 and f64 find smaller mistakes (if_wrong of expected.json).
 */
export const kBf16Band = { logits: 0.03, gradients: 0.055 };

/**
 * Rounds the values of a model's parameters to bf16 and keeps their dtype. Run in f32, such a model shows the error that rounding
 * only the weights causes, a second measure beside kBf16Band of the error that bf16 may have.
 */
export function roundToBf16(model: Model): void {
  noGrad(() => {
    for (const weight of model.parameters()) copy_(weight, weight.to('bf16').to(weight.dtype));
  });
}

/** The error |actual - expected| / |expected| in the Euclidean norm. */
export function normError(actual: ArrayLike<number>, expected: ArrayLike<number>): number {
  let [difference, norm] = [0, 0];
  for (let i = 0; i < expected.length; ++i) {
    difference += ((actual[i] as number) - (expected[i] as number)) ** 2;
    norm += (expected[i] as number) ** 2;
  }
  return Math.sqrt(difference / norm);
}

/** normError over the rows that are no padding; `expected` is (B,T,K). */
export function rowNormError(actual: Tensor, expected: Tensor, rows: readonly number[]): number {
  const width = expected.shape.at(-1) as number;
  const want = values(expected);
  const chosen = rows.flatMap((row) => Array.from(want.subarray(row * width, (row + 1) * width)));
  return normError(values(actual), chosen);
}

/**
 * normError of all gradients in `expected` (its keys `grad.<key>`), each scaled to norm 1 first, so that all count the same.
 * @param found the gradient of a key, as the file stores it
 */
export function gradientNormError(
  expected: Readonly<Record<string, Tensor>>,
  found: (key: string) => Tensor,
): number {
  const pairs = Object.entries(expected).flatMap(([key, want]) => {
    if (!key.startsWith('grad.')) return [];
    const got = found(key.slice('grad.'.length));
    expect(got.shape, key).toEqual(want.shape);
    return [[values(got), values(want)] as const];
  });
  return meanNormError(pairs);
}

/** normError of several vectors, each pair scaled by the norm of the expected one, so that all count the same. */
export function meanNormError(
  pairs: readonly (readonly [actual: ArrayLike<number>, expected: ArrayLike<number>])[],
): number {
  expect(pairs.length).toBeGreaterThan(3);
  const squares = pairs.map(([actual, expected]) => normError(actual, expected) ** 2);
  return Math.sqrt(squares.reduce((sum, square) => sum + square, 0) / squares.length);
}
