/**
 * Intruder dimensions (Shuttleworth et al. 2024): leading singular vectors of a tuned weight that resemble none of the weight before. They
 * go with forgetting. Computed as PEFT's tools do, from the left singular vectors.
 */
import type { AdapterModel } from '../adapters/adapter_model.ts';
import type { Model } from '../models/index.ts';
import { abs, matmul, max, slice, svd, transpose } from '../ops/index.ts';
import { type CallTable, checkCall, finiteNumber, kCall, wholeNumber } from '../options/call.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';

/** Options of {@link intruderDimensions}. */
export interface IntruderOptions {
  /** Number of leading singular vectors of the tuned weight that are looked at. Default 10. */
  readonly topK?: number;
  /** The cosine that an intruder stays below with every singular vector of the weight before. Default 0.5. */
  readonly threshold?: number;
}

/** PEFT's defaults. */
const kTopK = 10;
const kThreshold = 0.5;

const kTable: CallTable<IntruderOptions> = {
  topK: wholeNumber({ least: 1 }),
  threshold: finiteNumber({ least: 0, most: 1 }),
};

/** The singular vectors of a tuned weight that were looked at. */
export interface IntruderDimensions {
  /** Places of the intruders among the singular vectors of the tuned weight, from 0, the largest first. */
  readonly indices: readonly number[];
  /** The largest absolute cosine of each vector that was looked at with those of the weight before. */
  readonly cosines: readonly number[];
}

/**
 * Finds the intruder dimensions of a tuned weight, in f64.
 * @param base the weight before (out, in), any float dtype
 * @param tuned the weight after, of the same shape
 */
export async function intruderDimensions(
  base: Tensor,
  tuned: Tensor,
  options: IntruderOptions = {},
): Promise<IntruderDimensions> {
  checkCall('intruderDimensions', options, kTable);
  const { topK, threshold } = options;
  const found = scope(() => noGrad(() => largestCosines(base, tuned, topK)));
  return readIntruders(found, threshold);
}

/** The largest absolute cosine of each leading singular vector of `tuned` with those of `base`, (min(topK, K)) f64. */
export function largestCosines(base: Tensor, tuned: Tensor, topK = kTopK): Tensor {
  const before = svd(base.to('f64')).u; // (out, K)
  const leading = slice(svd(tuned.to('f64')).u, 1, { stop: topK });
  return max(abs(matmul(transpose(leading), before)), { axis: 1 });
}

/** Places of the intruders by the largest cosine of each vector. */
export function intrudersOf(cosines: readonly number[], threshold = kThreshold): number[] {
  return cosines.flatMap((cosine, i) => (cosine < threshold ? [i] : []));
}

/** The intruders by the cosines, whose tensor is freed. */
async function readIntruders(found: Tensor, threshold?: number): Promise<IntruderDimensions> {
  try {
    const cosines = Array.from((await found.data()) as Float64Array);
    return { indices: intrudersOf(cosines, threshold), cosines };
  } finally {
    found.dispose();
  }
}

/** The intruder dimensions of an adapter's modules. */
export interface AdapterIntruders {
  /** The number of intruders in all modules. */
  readonly count: number;
  /** The intruders of each module, by its path in the model. */
  readonly modules: Readonly<Record<string, IntruderDimensions>>;
}

/** Options of {@link adapterIntruders}. */
export interface AdapterIntruderOptions extends IntruderOptions {
  readonly signal?: AbortSignal | undefined;
  /** Called after each module with the number of modules that have been looked at, and of all. */
  readonly onProgress?: (done: number, all: number) => void;
}

const kAdapterTable: CallTable<AdapterIntruderOptions> = {
  ...kTable,
  signal: kCall.signal,
  onProgress: kCall.function,
};

/** Finds the intruder dimensions of each module of the active adapter. The time is that of two decompositions a module. */
export async function adapterIntruders(
  tuned: AdapterModel<Model>,
  options: AdapterIntruderOptions = {},
): Promise<AdapterIntruders> {
  checkCall('adapterIntruders', options, kAdapterTable);
  const { topK, threshold, signal, onProgress } = options;
  const modules: Record<string, IntruderDimensions> = {};
  let count = 0;
  for (const [done, module] of tuned.modules.entries()) {
    signal?.throwIfAborted();
    const cosines = scope(() =>
      noGrad(() => {
        const base = module.linear.weight.to('f64');
        return largestCosines(
          base,
          module.variant.mergedWeight(module, module.startWeight()),
          topK,
        );
      }),
    );
    const found = await readIntruders(cosines, threshold);
    modules[module.name] = found;
    count += found.indices.length;
    onProgress?.(done + 1, tuned.modules.length);
  }
  return { count, modules };
}
