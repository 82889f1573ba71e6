// In-place writes to shared memory or memory without a value: overlapping and expanded views, tensors whose op failed.
import { describe, expect, it } from 'vitest';
import {
  adafactorStep,
  adamwStep,
  add_,
  copy_,
  expand,
  fill_,
  gramAdd,
  permute,
  reshape,
  scale_,
  sgdStep,
  slice,
  sum,
  zeros,
} from '../../lib/ops/index.ts';
import { setMemoryLimit, synchronize } from '../../lib/runtime.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { expectClose, values } from '../support/compare.ts';
import { randomTensor } from '../support/gradcheck.ts';

describe('a source that overlaps the target', () => {
  it('is read before the target is written', () => {
    const size = 65;
    const x = randomTensor([size, size], { seed: 1 });
    const before = values(x);
    copy_(x, permute(x, [1, 0]));
    expectClose(
      x,
      before.map((_, i) => before[(i % size) * size + Math.floor(i / size)] as number),
      0,
    );
  });

  it.each([1, 100_001])('is read first, for %i elements after the first', (count) => {
    const from = (x: Tensor) => slice(x, 0, { stop: count });
    const to = (x: Tensor) => slice(x, 0, { start: 1 });
    const start = randomTensor([count + 1], { seed: 2, dtype: 'f32' });
    const given = values(start);
    const copied = tensor(given, { dtype: 'f32' });
    copy_(to(copied), from(copied));
    expectClose(
      copied,
      given.map((value, i) => (i === 0 ? value : (given[i - 1] as number))),
      0,
    );
    const added = tensor(given, { dtype: 'f32' });
    add_(to(added), from(added));
    expectClose(
      added,
      given.map((value, i) => (i === 0 ? value : Math.fround(value + (given[i - 1] as number)))),
      0,
    );
  });

  it('may be the target itself, or contain the factor', () => {
    const x = tensor([1, 2, 3], { dtype: 'f64' });
    add_(x, x);
    copy_(x, x);
    expectClose(x, [2, 4, 6], 0);
    scale_(x, reshape(slice(x, 0, { stop: 1 }), []));
    expectClose(x, [4, 8, 12], 0);
  });

  it('is no target where it is an expanded view', () => {
    const x = expand(zeros([3, 1]), [3, 2]);
    expect(() => copy_(x, zeros([3, 2]))).toThrow(
      'copy_: x (3,2) repeats its values along axis 1 (expand) and cannot be written in place',
    );
    expect(() => fill_(x, 1)).toThrow('fill_: x (3,2) repeats its values along axis 1');
    fill_(expand(zeros([1, 1]), [1, 1]), 1);
  });
});

describe('a tensor whose op failed', () => {
  /** Zeros whose allocation failed. */
  async function lost(shape: number[], dtype: 'f32' | 'f64' = 'f32'): Promise<Tensor> {
    await synchronize();
    setMemoryLimit(1);
    try {
      const x = zeros(shape, { dtype });
      await expect(synchronize()).rejects.toThrow('full: out of memory');
      return x;
    } finally {
      setMemoryLimit(0);
    }
  }
  const like = (x: Tensor): Tensor => zeros(x.shape, { dtype: x.dtype });
  const adamw = { step: 1, lr: 0.1, betas: [0.9, 0.99], eps: 1e-8, weightDecay: 0 } as const;
  const adafactor = { lr: 1, beta1: 0, beta2: 0, eps: 1e-30, clip: 1, weightDecay: 0 } as const;
  const updates: Record<string, (x: Tensor) => unknown> = {
    add_: (x) => add_(x, like(x)),
    scale_: (x) => scale_(x, tensor(2, { dtype: 'f64' })),
    'copy_ into a part': (x) => copy_(slice(x, 0, { stop: 1 }), zeros([1, 8])),
    'fill_ of a part': (x) => fill_(slice(x, 1, { stop: 3 }), 1),
    'adamw_step of a moment': (x) => adamwStep(like(x), like(x), { m: like(x), v: x, ...adamw }),
    sgd_step: (x) => sgdStep(x, like(x), { lr: 0.1 }),
    adafactor_step: (x) =>
      adafactorStep(x, like(x), {
        row: zeros([8]),
        column: zeros([8]),
        m: null,
        scaleFloor: 1e-3,
        ...adafactor,
      }),
  };

  it.each(Object.entries(updates))('is refused by %s', async (_, update) => {
    const x = await lost([8, 8]);
    update(x);
    await expect(synchronize()).rejects.toThrow('has no value, the op that makes it failed');
    await expect(x.data()).rejects.toThrow('has no value');
  });

  it('is refused for the sum of a Gram matrix or a gradient', async () => {
    const g = await lost([8, 8], 'f64');
    gramAdd(g, zeros([3, 8]));
    await expect(synchronize()).rejects.toThrow('gram_add: operand 1 has no value');
    const leaf = zeros([8, 8]);
    leaf.requiresGrad = true;
    leaf.grad = await lost([8, 8]);
    sum(leaf).backward();
    await expect(synchronize()).rejects.toThrow('accumulate: operand 1 has no value');
  });

  it('has a value again once all of it is written', async () => {
    const filled = await lost([4, 4]);
    fill_(filled, 3);
    expectClose(filled, new Float64Array(16).fill(3), 0);
    const copied = await lost([2, 3]);
    copy_(permute(copied, [1, 0]), randomTensor([3, 2], { seed: 1, dtype: 'f32' }));
    expect(values(copied).every(Number.isFinite)).toBe(true);
  });
});
