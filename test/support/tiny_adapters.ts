/** Helpers for tests of adapters on a TinyModel: running it, changing the trained values, comparing. */
import { join } from 'node:path';
import { expect } from 'vitest';
import type { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { Batch } from '../../lib/data/collate.ts';
import { copy_, randn } from '../../lib/ops/index.ts';
import { noGrad, scope, tensor } from '../../lib/tensor.ts';
import { goldenArray, goldenArrays } from './golden.ts';
import { type TinyModel, tinyBatches } from './tiny_model.ts';

const batch = tinyBatches({ count: 1, rows: 16 })[0] as Batch;

/** The hidden states of a batch. */
export const hidden = (model: TinyModel): number[] =>
  scope(() => noGrad(() => Array.from(model.forward(batch).dataSync() as Float32Array)));

/** Changes every trainable value, as training would. */
export function disturb(tuned: AdapterModel, first = 100, deviation = 0.3): void {
  let seed = first;
  for (const { tensor: parameter } of tuned.parameters()) {
    scope(() =>
      noGrad(() => copy_(parameter, randn(parameter.shape, { seed: seed++, deviation }))),
    );
  }
  tuned.afterStep();
}

/** Reads the weights of a model folder into a model. */
export function readWeights(model: TinyModel, folder: string): TinyModel {
  const weights = goldenArrays(join(folder, 'model.safetensors'));
  for (const [name, parameter] of model.namedParameters()) {
    const { data, shape } = goldenArray(weights, name);
    scope(() => noGrad(() => copy_(parameter, tensor(data, { shape }))));
  }
  return model;
}

export function expectNear(
  found: readonly number[],
  expected: readonly number[],
  tolerance: number,
): void {
  expect(found).toHaveLength(expected.length);
  found.forEach((value, i) => {
    expect(Math.abs(value - (expected[i] as number)), `[${i}]`).toBeLessThanOrEqual(tolerance);
  });
}
