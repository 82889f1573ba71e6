// Gradient checks in float64: the tape's gradient of a random projection of f's output against central differences.
import { expect } from 'vitest';
import { noGrad, scope, type Tensor, tensor } from '../../lib/tensor.ts';

export interface GradcheckOptions {
  /** Step of the central difference. Default 1e-6. */
  step?: number;
  /** Largest |difference| allowed, relative to the largest gradient (and at least 1). Default 1e-6. */
  tolerance?: number;
  /** Coordinates tried of each input; all of them when there are fewer. Default 40. */
  samples?: number;
  seed?: number;
}

/** A small repeatable generator for test data (mulberry32), uniform in [-1, 1). */
export function testRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 15), z | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return (((z ^ (z >>> 14)) >>> 0) / 4294967296) * 2 - 1;
  };
}

/** Random values of a shape; f64 unless said. */
export function randomTensor(
  shape: readonly number[],
  { seed = 1, dtype = 'f64' as Tensor['dtype'], requiresGrad = false } = {},
): Tensor {
  const random = testRandom(seed);
  const size = shape.reduce((product, extent) => product * extent, 1);
  const values = Float64Array.from({ length: size }, random);
  return tensor(values, { shape, dtype, requiresGrad });
}

/**
 * Compares d<f(inputs), p>/d(inputs), p fixed and random, with central differences. Inputs must be f64.
 * @param f returns one tensor or several; every output takes part.
 */
export function gradcheck(
  f: (...inputs: Tensor[]) => Tensor | Tensor[],
  inputs: readonly Tensor[],
  { step = 1e-6, tolerance = 1e-6, samples = 40, seed = 7 }: GradcheckOptions = {},
): void {
  const outputs = (given: readonly Tensor[]): Tensor[] => [f(...given)].flat();
  const projections = scope(() =>
    noGrad(() => outputs(inputs).map((y, i) => randomTensor(y.shape, { seed: seed + i }))),
  );
  const value = (given: readonly Tensor[]): number =>
    scope(() =>
      noGrad(() =>
        outputs(given).reduce((sum, y, i) => {
          const a = y.dataSync() as Float64Array;
          const b = (projections[i] as Tensor).dataSync() as Float64Array;
          return sum + a.reduce((dot, v, j) => dot + v * (b[j] as number), 0);
        }, 0),
      ),
    );

  const leaves = inputs.map((x) => tensor(x.dataSync(), { shape: x.shape, requiresGrad: true }));
  for (const leaf of leaves) expect(leaf.dtype, 'gradcheck inputs are f64').toBe('f64');
  scope(() => {
    const ys = outputs(leaves);
    ys.forEach((y, i) => {
      y.backward(projections[i], { retainGraph: true });
    });
  });

  leaves.forEach((leaf, index) => {
    const analytic = (leaf.grad?.dataSync() ?? new Float64Array(leaf.size)) as Float64Array;
    const base = leaf.dataSync() as Float64Array;
    const scale = Math.max(1, ...Array.from(analytic, Math.abs));
    const random = testRandom(seed + 100 + index);
    const count = Math.min(samples, base.length);
    for (let s = 0; s < count; ++s) {
      const at =
        count === base.length ? s : Math.floor(((random() + 1) / 2) * base.length) % base.length;
      const moved = (delta: number): number => {
        const shifted = base.slice();
        shifted[at] = (shifted[at] as number) + delta;
        return value(leaves.map((x, i) => (i === index ? tensor(shifted, { shape: x.shape }) : x)));
      };
      const numeric = (moved(step) - moved(-step)) / (2 * step);
      const found = analytic[at] as number;
      expect(
        Math.abs(numeric - found),
        `input ${index}, element ${at}: tape ${found}, central difference ${numeric}`,
      ).toBeLessThanOrEqual(tolerance * scale);
    }
  });
}
