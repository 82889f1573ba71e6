// Reductions. Float dtypes; sums run in f64 and are rounded once to x's dtype.
import { native } from '../native.ts';
import { checkKeys } from '../options/call.ts';
import { Tensor } from '../tensor.ts';

/** Axes of a reduction. */
export interface ReduceOptions {
  /** The axis or axes to reduce; negative ones count from the end. Default: all. */
  axis?: number | readonly number[];
  /** Whether to keep reduced axes with extent 1. Default false. */
  keepDims?: boolean;
}

function reduce(
  op: 'sum' | 'mean' | 'logSumExp' | 'max' | 'min',
  x: Tensor,
  options: ReduceOptions,
): Tensor {
  checkKeys(op, options, 'axis keepDims');
  return reduced(native[op], x, options);
}

type Reduction = (x: number, axes: readonly number[], keepDims: boolean) => number;

function reduced(op: Reduction, x: Tensor, { axis, keepDims = false }: ReduceOptions): Tensor {
  if (typeof axis === 'object' && axis.length === 0) return x; // no axes to reduce
  const axes = axis === undefined ? [] : typeof axis === 'number' ? [axis] : axis;
  return new Tensor(op(x.handle, axes, keepDims));
}

/** Sum over axes; 0 over nothing. */
export function sum(x: Tensor, options: ReduceOptions = {}): Tensor {
  return reduce('sum', x, options);
}

/** Mean over axes. @throws ArgumentError when there is nothing to reduce. */
export function mean(x: Tensor, options: ReduceOptions = {}): Tensor {
  return reduce('mean', x, options);
}

/** ln sum e^x over axes, shifted by the maximum. @throws ArgumentError when there is nothing to reduce. */
export function logSumExp(x: Tensor, options: ReduceOptions = {}): Tensor {
  return reduce('logSumExp', x, options);
}

/**
 * Variance over axes: sum (x - mean)^2 / (R - correction), in two passes.
 * @param options correction: 1 (default, Bessel's) or 0
 * @throws ArgumentError when R is not larger than the correction.
 */
export function variance(x: Tensor, options: ReduceOptions & { correction?: number } = {}): Tensor {
  const { correction = 1 } = checkKeys('variance', options, 'axis keepDims correction');
  return reduced((h, axes, keep) => native.variance(h, axes, keep, correction), x, options);
}

/** Maximum over axes; a NaN wins. The gradient goes to the first position that holds it. */
export function max(x: Tensor, options: ReduceOptions = {}): Tensor {
  return reduce('max', x, options);
}

/** Minimum over axes; a NaN wins. The gradient goes to the first position that holds it. */
export function min(x: Tensor, options: ReduceOptions = {}): Tensor {
  return reduce('min', x, options);
}

/** Options of {@link argmax} and {@link argmin}. */
export interface ArgOptions {
  /** Default -1. */
  axis?: number;
  /** Whether to keep the axis with extent 1. Default false. */
  keepDims?: boolean;
}

/** Position of the maximum along one axis, i32; the first of equals, a NaN above every number. No gradient. */
export function argmax(x: Tensor, options: ArgOptions = {}): Tensor {
  const { axis = -1, keepDims = false } = checkKeys('argmax', options, 'axis keepDims');
  return new Tensor(native.argmax(x.handle, axis, keepDims));
}

/** Position of the minimum along one axis, i32; the first of equals, a NaN below every number. No gradient. */
export function argmin(x: Tensor, options: ArgOptions = {}): Tensor {
  const { axis = -1, keepDims = false } = checkKeys('argmin', options, 'axis keepDims');
  return new Tensor(native.argmin(x.handle, axis, keepDims));
}
