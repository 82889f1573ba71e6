/** Gradient checks: the gradient of a random projection of a function's outputs, by backward() and by central differences. */
import { ArgumentError, BaloraError } from './errors.ts';
import { checkKeys } from './options/call.ts';
import { enableGrad, noGrad, scope, type Tensor, tensor } from './tensor.ts';

/** Options of {@link gradcheck}. */
export interface GradcheckOptions {
  /** Step h of the central difference. Default 1e-6. */
  step?: number;
  /** Largest |difference| allowed, relative to the largest |gradient| of the input, or to 1 if that is smaller. Default 1e-6. */
  tolerance?: number;
  /** Number of elements tried in each input; all of them when there are fewer. Default 40. */
  samples?: number;
  /** Seed of the projection and of the choice of elements. Default 7. */
  seed?: number;
}

/** A small repeatable generator (mulberry32), uniform in [-1, 1). */
export function uniform(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 15), z | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return (((z ^ (z >>> 14)) >>> 0) / 4294967296) * 2 - 1;
  };
}

/**
 * Compares d<f(inputs), p>/d(inputs), for a fixed random p, with central differences (f(x + h) - f(x - h)) / 2h. Blocks the event
 * loop. `f` is called twice for each element that is tried, so give small inputs.
 * @param f returns one tensor or several, f64, all of which are checked. It must return the same for the same inputs
 * @param inputs f64, of any shape; their `grad` is not changed
 * @example gradcheck((x) => cube(x), [tensor([0.5, -1], { dtype: 'f64' })]);
 * @throws BaloraError (`ERR_GRADIENT`) with input, element and both numbers where they disagree; ArgumentError for inputs or
 *   outputs that are not f64
 */
export function gradcheck(
  f: (...inputs: Tensor[]) => Tensor | Tensor[],
  inputs: readonly Tensor[],
  options: GradcheckOptions = {},
): void {
  checkKeys('gradcheck', options, 'step tolerance samples seed');
  const { step = 1e-6, tolerance = 1e-6, samples = 40, seed = 7 } = options;
  for (const [i, input] of inputs.entries()) checkType(`input ${i}`, input);
  const outputs = (given: readonly Tensor[]): Tensor[] => [f(...given)].flat();
  const projections = scope(() =>
    noGrad(() => outputs(inputs).map((y, i) => projection(y, { seed: seed + i, index: i }))),
  );
  const value = (given: readonly Tensor[]): number =>
    scope(() =>
      noGrad(() => outputs(given).reduce((sum, y, i) => sum + dot(y, projections[i] as Tensor), 0)),
    );
  const leaves = inputs.map((x) =>
    tensor(x.dataSync(), { shape: x.shape, device: x.device, requiresGrad: true }),
  );
  try {
    scope(() =>
      enableGrad(() => {
        outputs(leaves).forEach((y, i) => {
          if (y.requiresGrad) y.backward(projections[i], { retainGraph: true });
        });
      }),
    );
    for (const [index, leaf] of leaves.entries()) {
      const found = scope(
        () => (leaf.grad?.dataSync() ?? new Float64Array(leaf.size)) as Float64Array,
      );
      const base = leaf.dataSync() as Float64Array;
      const scale = Math.max(1, ...Array.from(found, Math.abs));
      for (const at of coordinates(base.length, { samples, seed: seed + 100 + index })) {
        const moved = (delta: number): number => {
          const shifted = base.slice();
          shifted[at] = (shifted[at] as number) + delta;
          return scope(() =>
            value(
              leaves.map((x, i) =>
                i === index ? tensor(shifted, { shape: x.shape, device: x.device }) : x,
              ),
            ),
          );
        };
        const numeric = (moved(step) - moved(-step)) / (2 * step);
        // Not `>`: a NaN on either side disagrees, too.
        if (Math.abs(numeric - (found[at] as number)) <= tolerance * scale) continue;
        throw new BaloraError({
          code: 'ERR_GRADIENT',
          fact: `gradcheck: input ${index}, element ${at}: backward gives ${found[at]}, the central difference is ${numeric}`,
          advice: 'mend the backward function, or leave out points where the function has a kink',
        });
      }
    }
  } finally {
    for (const made of [...projections, ...leaves]) made.dispose();
  }
}

function checkType(what: string, { dtype }: Tensor): void {
  if (dtype === 'f64') return;
  throw new ArgumentError(
    `gradcheck: ${what} must be f64, got ${dtype}, because central differences need the digits`,
  );
}

/** Random factors for the elements of an output. */
function projection(y: Tensor, { seed, index }: { seed: number; index: number }): Tensor {
  checkType(`output ${index}`, y);
  const random = uniform(seed);
  return tensor(Float64Array.from({ length: y.size }, random), {
    shape: y.shape,
    device: y.device,
  });
}

function dot(y: Tensor, factors: Tensor): number {
  const [a, b] = [y.dataSync() as Float64Array, factors.dataSync() as Float64Array];
  return a.reduce((sum, value, i) => sum + value * (b[i] as number), 0);
}

/** All coordinates of an input of that size, or a sample of them. */
function coordinates(size: number, { samples, seed }: { samples: number; seed: number }): number[] {
  if (size <= samples) return Array.from({ length: size }, (_, at) => at);
  const random = uniform(seed);
  return Array.from({ length: samples }, () => Math.floor(((random() + 1) / 2) * size) % size);
}
