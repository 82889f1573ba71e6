// Arrays of numbers with a shape, and ops on them by plain loops, which the engine's results are compared with.

/** An array in row-major order. */
export const array = (shape, data) => ({ shape, data });
export const sizeOf = (shape) => shape.reduce((product, extent) => product * extent, 1);

/** The index of each axis for each element in row-major order, passed to `visit` with the element's number. */
export function eachIndex(shape, visit) {
  const index = shape.map(() => 0);
  const size = sizeOf(shape);
  for (let n = 0; n < size; ++n) {
    visit(index, n);
    for (let axis = shape.length - 1; axis >= 0; --axis) {
      if (++index[axis] < shape[axis]) break;
      index[axis] = 0;
    }
  }
}

/** The array whose element at each index is given by a function of the index. */
export function build(shape, valueAt) {
  const data = [];
  eachIndex(shape, (index) => data.push(valueAt(index)));
  return array(shape, data);
}

/** The element at an index, in which an axis of extent 1 counts for every index. */
export function at({ shape, data }, index) {
  const skip = index.length - shape.length;
  return data[shape.reduce((n, extent, axis) => n * extent + (extent === 1 ? 0 : index[axis + skip]), 0)];
}

/** The shape to which both broadcast; null where they do not. */
export function broadcast(a, b) {
  const rank = Math.max(a.length, b.length);
  const shape = Array.from({ length: rank }, (_, i) => {
    const [x, y] = [a[i - rank + a.length] ?? 1, b[i - rank + b.length] ?? 1];
    return x === y || y === 1 ? x : x === 1 ? y : null;
  });
  return shape.includes(null) ? null : shape;
}

/** A function of each pair of elements. */
export function combine(a, b, f) {
  return build(broadcast(a.shape, b.shape), (index) => f(at(a, index), at(b, index)));
}

export const map = ({ shape, data }, f) => array(shape, data.map(f));

/** The rows of the last axis, each replaced by the list that a function makes of it, of one length for all. */
export function mapRows({ shape, data }, f, width = shape.at(-1)) {
  const inner = shape.at(-1);
  const rows = Array.from({ length: sizeOf(shape.slice(0, -1)) }, (_, r) => f(data.slice(r * inner, (r + 1) * inner), r));
  return array([...shape.slice(0, -1), width], rows.flat());
}

/** A function of the elements along some axes (all where there are none). */
export function reduce(x, axes, keepDims, f) {
  const over = axes.length === 0 ? x.shape.map((_, i) => i) : axes.map((axis) => (axis < 0 ? axis + x.shape.length : axis));
  const kept = x.shape.map((extent, axis) => (over.includes(axis) ? 1 : extent));
  const groups = Array.from({ length: sizeOf(kept) }, () => []);
  eachIndex(x.shape, (index, n) => {
    const place = kept.reduce((m, extent, axis) => m * extent + (extent === 1 ? 0 : index[axis]), 0);
    groups[place].push(x.data[n]);
  });
  return array(keepDims ? kept : x.shape.filter((_, axis) => !over.includes(axis)), groups.map(f));
}

/** (..., M, K) times (..., K, N). */
export function matmul(a, b) {
  const [m, k, n] = [a.shape.at(-2), a.shape.at(-1), b.shape.at(-1)];
  const batch = broadcast(a.shape.slice(0, -2), b.shape.slice(0, -2));
  return build([...batch, m, n], (index) => {
    const [outer, row, column] = [index.slice(0, -2), index.at(-2), index.at(-1)];
    let sum = 0;
    for (let i = 0; i < k; ++i) sum += at2(a, outer, row, i) * at2(b, outer, i, column);
    return sum;
  });
}

/** Like at(), but the last two axes never count for every index. */
function at2({ shape, data }, outer, row, column) {
  const batch = shape.slice(0, -2);
  const skip = outer.length - batch.length;
  const place = batch.reduce((n, extent, axis) => n * extent + (extent === 1 ? 0 : outer[axis + skip]), 0);
  return data[(place * shape.at(-2) + row) * shape.at(-1) + column];
}

/** Axes in another order. */
export function permute(x, order) {
  return build(order.map((axis) => x.shape[axis]), (index) => {
    const original = [];
    order.forEach((axis, i) => {
      original[axis] = index[i];
    });
    return exactly(x, original);
  });
}

/** The element at an index of all axes. */
export const exactly = ({ shape, data }, index) => data[shape.reduce((n, extent, axis) => n * extent + index[axis], 0)];

/**
 * 1 - erf(x), to a few units in the last place: a series of positive terms near 0 (Abramowitz and Stegun 7.1.6), where 1 - erf(x) loses
 * three bits, and beyond that a continued fraction (7.1.14), which has converged after 400 terms for |x| >= 1.
 */
export function erfc(x) {
  const z = Math.abs(x);
  const scale = Math.exp(-z * z) / Math.sqrt(Math.PI);
  if (z < 1) {
    let [term, sum] = [z, z];
    for (let n = 1; term > 1e-18 * sum; ++n) {
      term *= (2 * z * z) / (2 * n + 1);
      sum += term;
    }
    return 1 - Math.sign(x) * 2 * scale * sum;
  }
  let fraction = z;
  for (let n = 400; n > 0; --n) fraction = z + n / 2 / fraction;
  const tail = scale / fraction;
  return x > 0 ? tail : 2 - tail;
}
