// Products with frozen weights in int8 as a setting: what it changes, what it leaves alone, and what it refuses.
import { describe, expect, it } from 'vitest';
import { backward, checkpoint } from '../../lib/autograd.ts';
import { UnsupportedError } from '../../lib/errors.ts';
import { linear, linearGroup, mul, randn } from '../../lib/ops/index.ts';
import { memoryStats, synchronize, withInt8Products } from '../../lib/runtime.ts';
import { type DType, scope, type Tensor } from '../../lib/tensor.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { values } from '../support/compare.ts';

const kBoth = { forward: true, inputGradient: true };
const [kRows, kIn, kOut] = [5, 64, 40];

const random = (shape: number[], seed: number, dtype: DType = 'f32'): Tensor =>
  randn(shape, { seed, dtype });
const frozen = (seed = 1, dtype: DType = 'f32'): Tensor =>
  random([kOut, kIn], seed, dtype).freeze();
const gradient = ({ grad }: Tensor): Float64Array => values(grad as Tensor);

/** Error of values, in norms. */
function errorOf(actual: Float64Array, expected: Float64Array): number {
  const norm = (v: Float64Array): number => Math.hypot(...v);
  return norm(actual.map((value, i) => value - (expected[i] as number))) / norm(expected);
}

describe('withInt8Products', () => {
  it.each(['f32', 'bf16', 'f16'] as const)('computes %s within 2%', (dtype) => {
    scope(() => {
      const run = (products: Parameters<typeof withInt8Products>[0]) => {
        const x = random([kRows, kIn], 2, dtype);
        x.requiresGrad = true;
        const y = withInt8Products(products, () => linear(x, frozen(1, dtype)));
        y.backward(random([kRows, kOut], 3, dtype));
        return { y: values(y), dx: gradient(x) };
      };
      const [exact, int8] = [run(undefined), run(kBoth)];
      const [forward, back] = [run({ forward: true }), run({ inputGradient: true })];
      for (const key of ['y', 'dx'] as const) {
        expect(errorOf(int8[key], exact[key])).toBeGreaterThan(1e-3);
        expect(errorOf(int8[key], exact[key])).toBeLessThan(0.02);
      }
      expect([forward.y, forward.dx]).toEqual([int8.y, exact.dx]);
      expect(back.y).toEqual(exact.y);
      expect(errorOf(back.dx, exact.dx)).toBeLessThan(0.02);
    });
  });

  it('leaves weights that are not frozen, and the gradients of low-rank parts, as they are', () => {
    scope(() => {
      const run = (products: Parameters<typeof withInt8Products>[0]) => {
        const x = random([kRows, kIn], 2);
        const [a, b] = [random([3, kIn], 4), random([kOut, 3], 5)];
        for (const leaf of [a, b]) leaf.requiresGrad = true;
        const trained = random([kOut, kIn], 6);
        trained.requiresGrad = true;
        const [first, second] = withInt8Products(products, () =>
          linearGroup(x, [{ weight: frozen(), lowRank: [{ a, b }] }, { weight: trained }]),
        ) as [Tensor, Tensor];
        const dy = random([kRows, kOut], 3);
        backward([first, second], [dy, dy]);
        return [values(second), ...[a, b, trained].map(gradient)];
      };
      expect(run({ inputGradient: true })).toEqual(run(undefined));
      expect(run({ forward: true })[0]).toEqual(run(undefined)[0]);
    });
  });

  it('is repeated by the backward pass of a checkpointed segment', () => {
    scope(() => {
      const weight = frozen();
      const run = (wrapped: boolean) => {
        const x = random([kRows, kIn], 2);
        x.requiresGrad = true;
        const segment = (input: Tensor): Tensor => {
          const y = linear(input, weight);
          return mul(y, y);
        };
        const y = withInt8Products(kBoth, () => (wrapped ? checkpoint(segment, [x]) : segment(x)));
        y.backward(random([kRows, kOut], 3));
        return [values(y), gradient(x)];
      };
      expect(run(true)).toEqual(run(false));
    });
  });

  it('ends with its body, and keeps one copy of a weight for both directions', async () => {
    const weight = scope(() => frozen());
    const run = (products: Parameters<typeof withInt8Products>[0]) =>
      scope(() => {
        const x = random([kRows, kIn], 2);
        x.requiresGrad = true;
        const y = withInt8Products(products, () => linear(x, weight));
        y.backward(random([kRows, kOut], 3));
        return values(y);
      });
    await collectGarbage(); // tensors of earlier tests, which would be collected during this one
    const { derivedBytes: before } = memoryStats();
    run({ inputGradient: true, rotated: true });
    await synchronize();
    const { derivedBytes: one } = memoryStats();
    run(kBoth);
    await synchronize();
    const codes = kIn * kOut;
    expect(one - before).toBeGreaterThanOrEqual(codes);
    expect(memoryStats().derivedBytes).toBe(one);
    const exact = run(undefined);
    expect(() => withInt8Products(kBoth, () => linearGroup(weight, []))).toThrow();
    expect(run(undefined)).toEqual(exact);
    weight.dispose();
  });

  it('refuses a frozen weight with more terms than 32 bits can sum, at the call', () => {
    scope(() => {
      const product = (weight: Tensor) => () =>
        withInt8Products(kBoth, () => linear(random([2, 1], 2), weight));
      expect(product(random([131073, 1], 1).freeze())).toThrow(
        'linear: sums in int8 have up to 131072 terms, the weight is (131073,1)',
      );
      expect(product(random([131073, 1], 1))).not.toThrow();
    });
  });

  it('refuses f64 by name', () => {
    scope(() => {
      const refused = () =>
        withInt8Products(kBoth, () => linear(random([2, kIn], 2, 'f64'), frozen(1, 'f64')));
      expect(refused).toThrow(UnsupportedError);
      expect(refused).toThrow('linear: f64 is computed in f64, not in int8');
    });
  });
});
