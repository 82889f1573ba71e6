// headLogits with the soft-cap of a loss's context.
import { expect, it } from 'vitest';
import { headLogits } from '../../lib/losses/index.ts';
import { tensor } from '../../lib/tensor.ts';
import type { LossContext } from '../../lib/train/types.ts';

it('headLogits accepts the soft-cap of a context unchanged', () => {
  const [hidden, weight] = [tensor([[3, 4]]), tensor([[1, 2]])];
  const logits = (softcap: LossContext['logitSoftcap']) =>
    (headLogits(hidden, weight, { softcap }).dataSync() as Float32Array)[0];
  expect(logits(null)).toBe(11);
  expect(logits(0)).toBe(11);
  expect(logits(5)).toBeCloseTo(5 * Math.tanh(11 / 5), 5);
});
