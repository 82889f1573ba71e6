/** Logits of a model against golden ones, at the rows of a batch that are no padding. */
import type { CausalLM } from '../../lib/models/index.ts';
import { noGrad, scope } from '../../lib/tensor.ts';
import { values } from './compare.ts';
import type { GoldenArray } from './golden.ts';
import type { PaddedBatch } from './golden_batch.ts';

/** The logits of the rows that are no padding, and the expected ones. */
export function realRows(
  model: CausalLM,
  { batch, real }: PaddedBatch,
  expected: GoldenArray,
): [found: number[], wanted: number[]] {
  const logits = scope(() => noGrad(() => model.logits(model.forward(batch))));
  const vocabulary = logits.shape.at(-1) as number;
  const found = values(logits);
  logits.dispose();
  const pick = (from: (at: number) => number) =>
    Array.from(real).flatMap((row) =>
      Array.from({ length: vocabulary }, (_, v) => from(row * vocabulary + v)),
    );
  return [pick((at) => found[at] as number), pick((at) => Number(expected.data[at]))];
}

/** Largest |logit - expected| over the rows that are no padding. */
export function logitError(model: CausalLM, padded: PaddedBatch, expected: GoldenArray): number {
  const [found, wanted] = realRows(model, padded, expected);
  return found.reduce((worst, v, i) => Math.max(worst, Math.abs(v - (wanted[i] as number))), 0);
}
