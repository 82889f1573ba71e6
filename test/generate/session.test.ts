// The part that sessions have in common: the forwards of a call are enqueued together, and leave nothing behind when one fails.
import { expect, it } from 'vitest';
import { logitRows } from '../../lib/generate/session.ts';
import { memoryStats } from '../../lib/runtime.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { collectGarbage } from '../support/collect_garbage.ts';

const run = <T>(body: () => T): T => body();

it('logitRows has the rows of all parts in order, in float32', async () => {
  const forward = (part: number): Tensor =>
    tensor([part, part + 1, part + 2, part + 3], { shape: [2, 2], dtype: 'f64' });
  expect(await logitRows(run, [1, 5], forward)).toEqual([
    ...[Float32Array.of(1, 2), Float32Array.of(3, 4)],
    ...[Float32Array.of(5, 6), Float32Array.of(7, 8)],
  ]);
});

it('logitRows frees the logits of earlier parts when a later one fails', async () => {
  const forward = (part: number): Tensor => {
    if (part === 3) throw new Error('part 3');
    return tensor([part], { shape: [1, 1] });
  };
  await collectGarbage();
  const before = memoryStats().liveTensors;
  await expect(logitRows(run, [1, 2, 3], forward)).rejects.toThrow('part 3');
  expect(memoryStats().liveTensors).toBe(before);
});
