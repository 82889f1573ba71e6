// Shapes. reshape (of contiguous tensors), permute, transpose, expand, slice and split are views: no value moves, and a
// write in place to one is seen by the other. All are differentiable in every dtype.
import { ArgumentError } from '../errors.ts';
import { native } from '../native.ts';
import { checkKeys } from '../options/call.ts';
import { Tensor } from '../tensor.ts';

/**
 * The same values in row-major order with another shape. One extent may be -1, which is computed from the others.
 * @throws ArgumentError when the numbers of elements differ.
 */
export function reshape(x: Tensor, shape: readonly number[]): Tensor {
  return new Tensor(native.reshape(x.handle, shape));
}

/** Axes in another order: result axis i is x's axis order[i]. */
export function permute(x: Tensor, order: readonly number[]): Tensor {
  return new Tensor(native.permute(x.handle, order));
}

/** Swaps two axes. Default: the last two. */
export function transpose(x: Tensor, axisA = -2, axisB = -1): Tensor {
  const order = x.shape.map((_, i) => i);
  const a = normalAxis('transpose', axisA, x.ndim);
  const b = normalAxis('transpose', axisB, x.ndim);
  [order[a], order[b]] = [b, a];
  return permute(x, order);
}

function normalAxis(op: string, axis: number, ndim: number): number {
  const index = axis < 0 ? axis + ndim : axis;
  if (!Number.isInteger(index) || index < 0 || index >= ndim) {
    throw new ArgumentError(
      `${op}: axis must be ${-ndim} to ${ndim - 1} for ${ndim} dimensions, got ${axis}`,
    );
  }
  return index;
}

/** A view of x broadcast to a shape; the gradient is summed over the repeated axes. */
export function expand(x: Tensor, shape: readonly number[]): Tensor {
  return new Tensor(native.expand(x.handle, shape));
}

/** A new axis of extent 1 before `axis` (counted in the result). */
export function unsqueeze(x: Tensor, axis: number): Tensor {
  const at = normalAxis('unsqueeze', axis, x.ndim + 1);
  return reshape(x, [...x.shape.slice(0, at), 1, ...x.shape.slice(at)]);
}

/** Removes an axis of extent 1. @throws ArgumentError if its extent is another. */
export function squeeze(x: Tensor, axis: number): Tensor {
  const at = normalAxis('squeeze', axis, x.ndim);
  if (x.shape[at] !== 1) {
    throw new ArgumentError(
      `squeeze: axis ${axis} of (${x.shape.join(',')}) must have extent 1, got ${x.shape[at]}`,
    );
  }
  return reshape(x, [...x.shape.slice(0, at), ...x.shape.slice(at + 1)]);
}

/** Axis and range of {@link slice}. */
export interface SliceOptions {
  /** First index; negative counts from the end. Default 0. */
  start?: number;
  /** One past the last index; negative counts from the end. Default: the end. */
  stop?: number;
  /** Default 1. */
  step?: number;
}

/** Every step-th element of an axis from start up to stop, limited to what there is, as Array.prototype.slice. */
export function slice(x: Tensor, axis: number, options: SliceOptions): Tensor {
  checkKeys('slice', options, 'start stop step');
  const { start = 0, stop = Number.MAX_SAFE_INTEGER, step = 1 } = options;
  return new Tensor(native.slice(x.handle, axis, start, stop, step));
}

/**
 * Splits an axis into consecutive parts, as one node on the tape, so that the parts' gradients are joined once.
 * @param sizes extents of the parts; they add up to the axis.
 */
export function split(x: Tensor, sizes: readonly number[], axis = -1): Tensor[] {
  return native.split(x.handle, sizes, axis).map((handle) => new Tensor(handle));
}

/** Joins tensors of one dtype along an axis; the others must be equal. */
export function concat(parts: readonly Tensor[], axis = 0): Tensor {
  return new Tensor(
    native.concatTensors(
      parts.map((part) => part.handle),
      axis,
    ),
  );
}

/** Joins tensors of one shape and dtype along a new axis. */
export function stack(parts: readonly Tensor[], axis = 0): Tensor {
  const raised = parts.map((part) => unsqueeze(part, axis));
  const joined = concat(raised, axis);
  for (const part of raised) part.dispose();
  return joined;
}

/** x itself where it is contiguous already, else a copy in row-major order. */
export function contiguous(x: Tensor): Tensor {
  return new Tensor(native.contiguous(x.handle));
}
