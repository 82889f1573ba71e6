// Tensors from nothing. Random values are pure functions of (seed, stream, index): Philox 4x32-10 counters, so there is
// no hidden state and no default seed.
import { withDevice } from '../device.ts';
import { type DType, native } from '../native.ts';
import { checkKeys } from '../options/call.ts';
import { Tensor } from '../tensor.ts';

/** Type of a new tensor. */
export interface FactoryOptions {
  /** Element type. Default f32. */
  dtype?: DType;
  /** Whether backward() collects a gradient. Default false. */
  requiresGrad?: boolean;
  /** "cpu", "cuda", "cuda:1". Default: see `getDefaultDevice()`. */
  device?: string;
}

function created(
  make: () => number,
  { requiresGrad = false, device }: Pick<FactoryOptions, 'requiresGrad' | 'device'>,
): Tensor {
  const made = withDevice(device, () => new Tensor(make()));
  if (requiresGrad) made.requiresGrad = true;
  return made;
}

function filled(
  where: string,
  [shape, value]: readonly [readonly number[], number],
  options: FactoryOptions,
): Tensor {
  const { dtype = 'f32', ...rest } = checkKeys(where, options, 'dtype requiresGrad device');
  return created(() => native.full(shape, value, dtype), rest);
}

/** A tensor with every element `value` (truncated towards zero for integer types). */
export function full(
  shape: readonly number[],
  value: number,
  options: FactoryOptions = {},
): Tensor {
  return filled('full', [shape, value], options);
}

/** A tensor of zeros. */
export function zeros(shape: readonly number[], options: FactoryOptions = {}): Tensor {
  return filled('zeros', [shape, 0], options);
}

/** A tensor of ones. */
export function ones(shape: readonly number[], options: FactoryOptions = {}): Tensor {
  return filled('ones', [shape, 1], options);
}

/** Bounds and step of {@link arange}. */
export interface ArangeOptions {
  /** Default 1; negative counts down. */
  step?: number;
  /** Default i32. */
  dtype?: DType;
  /** Default: see `getDefaultDevice()`. */
  device?: string;
}

/**
 * The values start, start + step, ... before stop; none where stop is on the other side of start.
 * @returns (ceil((stop - start) / step))
 * @throws ArgumentError for a step of 0 or a value that is not finite.
 */
export function arange(start: number, stop: number, options: ArangeOptions = {}): Tensor {
  const { step = 1, dtype = 'i32', ...rest } = checkKeys('arange', options, 'step dtype device');
  return created(() => native.arange(start, stop, step, dtype), rest);
}

/** Seed and type of random values; one seed gives the same values on every device. */
export interface RandomOptions extends FactoryOptions {
  /** Whole number from 0 to 2^53. The same seed gives the same values on every device and thread count. */
  seed: number;
  /** Number of an independent stream of values of the same seed. Default 0. */
  stream?: number;
}

/** Range of {@link rand}. */
export interface UniformOptions extends RandomOptions {
  /** Default 0. */
  low?: number;
  /** Default 1. */
  high?: number;
}

/**
 * Uniform values in [low, high): as many random bits as the dtype holds (24 for f32, 53 for f64, 8 for bf16, 11 for f16),
 * bit for bit the same on every device.
 * @throws ArgumentError for an integer dtype or low > high.
 */
export function rand(shape: readonly number[], options: UniformOptions): Tensor {
  checkKeys('rand', options, 'seed stream low high dtype requiresGrad device');
  const { seed, stream = 0, low = 0, high = 1, dtype = 'f32', ...rest } = options;
  return created(() => native.randomUniform(shape, low, high, seed, stream, dtype), rest);
}

/** Options of {@link randn}. */
export interface NormalOptions extends RandomOptions {
  /** Default 0. */
  mean?: number;
  /** Standard deviation. Default 1. */
  deviation?: number;
}

/**
 * Normal values by Box and Muller's transform, computed in f64 and rounded once.
 * @throws ArgumentError for an integer dtype or a negative deviation.
 */
export function randn(shape: readonly number[], options: NormalOptions): Tensor {
  checkKeys('randn', options, 'seed stream mean deviation dtype requiresGrad device');
  const { seed, stream = 0, mean = 0, deviation = 1, dtype = 'f32', ...rest } = options;
  return created(() => native.randomNormal(shape, mean, deviation, seed, stream, dtype), rest);
}

/**
 * The raw 32-bit words of Philox 4x32-10 that rand() and dropout() are made of: word i is word i % 4 of the block whose
 * counter is (i / 4, stream) under the key seed (Salmon et al., SC 2011).
 * @returns (count) i64
 */
export function randomWords(
  count: number,
  options: Pick<RandomOptions, 'seed' | 'stream' | 'device'>,
): Tensor {
  const { seed, stream = 0, device } = checkKeys('randomWords', options, 'seed stream device');
  return created(() => native.randomWords(count, seed, stream), { device });
}
