/** Times of matrix products that run alone, packed where a weight is frozen: the roofline that a step is compared with. */
import { sharesProcessMemory } from '../../lib/device.ts';
import { linear, matmul, rand } from '../../lib/ops/index.ts';
import { noGrad, type Tensor } from '../../lib/tensor.ts';
import type { Product } from './flops.ts';
import { median } from './statistics.ts';
import { timeOps } from './timing.ts';
import type { BenchDType } from './types.ts';

function operand(shape: readonly number[], dtype: BenchDType, seed: number): Tensor {
  return rand(shape, { dtype, seed, low: -1, high: 1 });
}

/** Median seconds of (m,k) x (k,n). */
async function productSeconds(
  { m, k, n, packed }: Omit<Product, 'count'>,
  dtype: BenchDType,
): Promise<number> {
  // A packed product is x (m,k) by a frozen weight (n,k); a plain one reads its first factor as a transpose, as the
  // gradient of a pair does.
  using x = operand(packed ? [m, k] : [k, m], dtype, 1);
  using y = operand(packed ? [n, k] : [k, n], dtype, 2);
  if (packed) y.freeze();
  const run = (): void => {
    noGrad(() => (packed ? linear(x, y) : matmul(x, y, { transposeA: true })));
  };
  return median(await timeOps(run, { least: 5, most: 15, seconds: 0.05 }));
}

/** Seconds of all products of a step; each shape is timed once and multiplied by its count. */
export async function productsSeconds(
  products: readonly Product[],
  dtype: BenchDType,
): Promise<number> {
  const known = new Map<string, number>();
  let total = 0;
  for (const product of products) {
    const { m, k, n, packed, count } = product;
    const key = `${m} ${k} ${n} ${packed}`;
    let seconds = known.get(key);
    if (seconds === undefined) {
      seconds = await productSeconds(product, dtype);
      known.set(key, seconds);
    }
    total += seconds * count;
  }
  return total;
}

/** Sizes among which small and large processors have their best rate. */
const kPeakSizes = [
  { m: 1024, k: 1024, n: 1024 },
  { m: 2048, k: 2048, n: 2048 },
  { m: 2048, k: 1536, n: 4096 },
];

/** Sizes for a GPU, whose best rate needs products that would take a CPU seconds. */
const kLargePeakSizes = [...kPeakSizes, { m: 8192, k: 8192, n: 8192 }];

/** Sizes to try the benchmark itself. */
const kTrialSizes = [{ m: 64, k: 64, n: 64 }];

/** Operations per second of the fastest packed product. @param trial uses a tiny size, to try the benchmark itself */
export async function peakRate(dtype: BenchDType, { trial = false } = {}): Promise<number> {
  let best = 0;
  const large = sharesProcessMemory() ? kPeakSizes : kLargePeakSizes;
  for (const { m, k, n } of trial ? kTrialSizes : large) {
    const seconds = await productSeconds({ m, k, n, packed: true }, dtype);
    best = Math.max(best, (2 * m * k * n) / seconds);
  }
  return best;
}
