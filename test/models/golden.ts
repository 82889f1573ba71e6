// Golden architectures: a batch with padding as unpadded rows, and expected values for its real rows.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect } from 'vitest';
import { loadSafetensors } from '../../lib/io/safetensors.ts';
import type { Tensor } from '../../lib/tensor.ts';
import { values } from '../support/compare.ts';

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

/** The golden checkpoints of a task: whatever lies in the folder of fixtures. */
export function goldenNames(task: GoldenTask): string[] {
  return readdirSync(architecture('')).filter((name) => {
    const facts = join(architecture(name), 'expected.json');
    return existsSync(facts) && JSON.parse(readFileSync(facts, 'utf8')).task === task;
  });
}

/** The configuration of a golden checkpoint. */
export const goldenConfig = (name: string): Record<string, unknown> =>
  JSON.parse(readFileSync(join(architecture(name), 'model', 'config.json'), 'utf8'));

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

/** Largest |actual - expected| over the real rows; `expected` is (B,T,K). */
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

/** max |actual - expected| / max |expected| */
export function relativeError(actual: Tensor, expected: Tensor): number {
  const [got, want] = [values(actual), values(expected)];
  expect(actual.shape).toEqual(expected.shape);
  const scale = want.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
  return want.reduce((worst, v, i) => {
    const error = Math.abs((got[i] as number) - v) / scale;
    return Math.max(error, worst);
  }, 0);
}
