// The ops of DoRA: scaling and shifting of columns, and the norms of the rows of W + s B A.
import { describe, expect, it } from 'vitest';
import { columnScale, type LowRank, rowNorm } from '../../lib/ops/index.ts';
import { getNumThreads, setNumThreads } from '../../lib/runtime.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { expectClose, kFloatTypes, roundingOf, values } from '../support/compare.ts';
import { gradcheck, randomTensor } from '../support/gradcheck.ts';

/** Each part, and its start as one with the scale negated. */
const withStarts = (parts: readonly LowRank[]): LowRank[] =>
  parts.flatMap(({ start, ...part }) => [
    part,
    ...(start ? [{ ...start, scale: -(part.scale ?? 1) }] : []),
  ]);

const masterOf = (dtype: (typeof kFloatTypes)[number]) => (dtype === 'f64' ? 'f64' : 'f32');

describe('columnScale', () => {
  for (const dtype of kFloatTypes) {
    it(`is x * scale + bias in ${dtype}`, () => {
      for (const [rows, columns] of [
        [1, 1],
        [33, 31],
        [31, 123],
        [3, 4099],
      ] as const) {
        const x = randomTensor([rows, columns], { seed: 1, dtype });
        const scale = randomTensor([columns], { seed: 2, dtype: masterOf(dtype) });
        const bias = randomTensor([columns], { seed: 3, dtype });
        const [vx, vs, vb] = [values(x), values(scale), values(bias)];
        const plain = vx.map((v, i) => v * (vs[i % columns] as number));
        expectClose(columnScale(x, scale), plain, roundingOf(dtype) + 1e-15);
        const shifted = plain.map((v, i) => v + (vb[i % columns] as number));
        const y = columnScale(x, scale, bias);
        expect(y.dtype).toBe(dtype);
        // In f32 the product is rounded before the addition.
        expectClose(
          y,
          shifted,
          roundingOf(dtype) * (dtype === 'f32' ? 2 : 1) +
            2e-7 * +(dtype !== 'f64' && dtype !== 'f32') +
            1e-15,
        );
      }
    });
  }

  it('has the gradients of x, scale and bias', () => {
    for (const [rows, columns] of [
      [1, 3],
      [31, 33],
    ] as const) {
      gradcheck(
        (x, scale, bias) => columnScale(x as never, scale as never, bias as never),
        [
          randomTensor([rows, columns], { seed: 1 }),
          randomTensor([columns], { seed: 2 }),
          randomTensor([columns], { seed: 3 }),
        ],
      );
    }
  });

  it('sums the gradient of scale in f32 also for bf16, and does not keep x where scale is frozen', () => {
    const x = randomTensor([123, 5], { seed: 1, dtype: 'bf16', requiresGrad: true });
    const scale = tensor([1, 2, 3, 4, 5], { requiresGrad: true });
    const y = columnScale(x, scale);
    const dy = randomTensor([123, 5], { seed: 2, dtype: 'bf16' });
    y.backward(dy);
    const [vx, vd] = [values(x), values(dy)];
    const expected = new Float64Array(5);
    vx.forEach((v, i) => {
      expected[i % 5] = (expected[i % 5] as number) + v * (vd[i] as number);
    });
    expect(scale.grad?.dtype).toBe('f32');
    expectClose(scale.grad as never, expected, 1e-5);
    const other = randomTensor([2, 5], { seed: 1, dtype: 'f32', requiresGrad: true });
    columnScale(other, tensor([1, 2, 3, 4, 5])).backward(
      tensor([
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
      ]),
    );
    expectClose(other.grad as never, [1, 2, 3, 4, 5, 1, 2, 3, 4, 5], 0);
  });

  it('refuses bad arguments by name', () => {
    const x = randomTensor([2, 3], { dtype: 'bf16' });
    const scale = randomTensor([3], { dtype: 'f32' });
    expect(() => columnScale(x, randomTensor([2], { dtype: 'f32' }))).toThrow(
      'column_scale: scale must be (C)=(3), got (2)',
    );
    expect(() => columnScale(x, randomTensor([3], { dtype: 'bf16' }))).toThrow(
      'column_scale: scale must be f32, got bf16',
    );
    expect(() => columnScale(x, scale, randomTensor([3], { dtype: 'f32' }))).toThrow(
      'column_scale: bias must be bf16, got f32',
    );
  });
});

describe('rowNorm', () => {
  for (const dtype of kFloatTypes) {
    it(`is the norm of each row of W + sum s B A in ${dtype}`, () => {
      for (const [outs, ins] of [
        [1, 1],
        [31, 33],
        [33, 123],
        [9, 1300],
      ] as const) {
        const weight = randomTensor([outs, ins], { seed: 1, dtype });
        const part = (rank: number, scale: number): LowRank => ({
          a: randomTensor([rank, ins], { seed: rank, dtype: masterOf(dtype) }),
          b: randomTensor([outs, rank], { seed: rank + 1, dtype: masterOf(dtype) }),
          scale,
        });
        const start = {
          a: randomTensor([5, ins], { seed: 40, dtype: masterOf(dtype) }),
          b: randomTensor([outs, 5], { seed: 41, dtype: masterOf(dtype) }),
        };
        const lists: LowRank[][] = [[], [part(1, 2)], [part(5, 0.5), part(7, -0.5)]];
        for (const parts of [...lists, [{ ...part(5, 0.5), start }, part(3, 1)]]) {
          const sum = values(weight);
          for (const { a, b, scale = 1 } of withStarts(parts)) {
            const [va, vb, rank] = [values(a), values(b), a.shape[0] as number];
            sum.forEach((_, i) => {
              const [o, c] = [Math.floor(i / ins), i % ins];
              for (let k = 0; k < rank; ++k) {
                sum[i] =
                  (sum[i] as number) +
                  scale * (vb[o * rank + k] as number) * (va[k * ins + c] as number);
              }
            });
          }
          const expected = Float64Array.from({ length: outs }, (_, o) =>
            Math.hypot(...sum.slice(o * ins, (o + 1) * ins)),
          );
          const norm = rowNorm(weight, parts);
          expect(norm.dtype).toBe(masterOf(dtype));
          expectClose(norm, expected, dtype === 'f64' ? 1e-14 : 1e-6);
        }
      }
    });
  }

  it('has the same bits with any number of threads, as have the sums of columns', () => {
    const before = getNumThreads();
    const run = (threads: number): Float64Array[] => {
      setNumThreads(threads);
      const weight = randomTensor([301, 700], { seed: 1, dtype: 'bf16' });
      const norm = rowNorm(weight, [
        {
          a: randomTensor([5, 700], { seed: 2, dtype: 'f32' }),
          b: randomTensor([301, 5], { seed: 3, dtype: 'f32' }),
        },
      ]);
      const scale = randomTensor([700], { seed: 4, dtype: 'f32', requiresGrad: true });
      columnScale(weight, scale).backward(randomTensor([301, 700], { seed: 5, dtype: 'bf16' }));
      return [values(norm), values(scale.grad as Tensor)];
    };
    try {
      expect(run(3)).toEqual(run(1));
    } finally {
      setNumThreads(before);
    }
  });

  it('refuses bad arguments by name', () => {
    const weight = randomTensor([4, 3], { dtype: 'f32' });
    const [a, b] = [randomTensor([2, 3], { dtype: 'f32' }), randomTensor([4, 2], { dtype: 'f32' })];
    expect(() => rowNorm(weight, [{ a: b, b }])).toThrow('row_norm: a must be (R,I)=(4,3)');
    expect(() => rowNorm(weight, [{ a, b: a }])).toThrow('row_norm: b must be (O,R)=(4,2)');
    expect(() => rowNorm(weight, [{ a, b, scale: Number.NaN }])).toThrow(
      'row_norm: the scale of a low-rank part must be finite, got nan',
    );
    expect(() => rowNorm(weight, [{ a: randomTensor([2, 3]), b }])).toThrow(
      'row_norm: a must be f32, got f64',
    );
  });
});
