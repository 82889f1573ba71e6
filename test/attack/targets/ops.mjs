// Ops on tensors of any shape (no elements included), memory layout and dtype, against plain loops in f64; their gradients' shapes; and
// wrong arguments, which are refused.
import { BaloraError, scope, tensor } from 'balora';
import * as ops from 'balora/ops';
import * as plain from '../arrays.mjs';
import { Finding, require, requireClose } from '../finding.mjs';

const kFloats = ['f32', 'f32', 'f64', 'bf16', 'f16'];
/** Relative distance between neighbouring numbers, in the type in which kernels compute and in that of the loops. */
const unitOf = (dtype) => (dtype === 'f64' ? 2 ** -52 : 2 ** -23);
const kLoopUnit = 2 ** -52;
/** Rounding of a computed number to the dtype of the result: relative, and for numbers that are subnormal there. */
const kRounding = { bf16: [2 ** -8, 2 ** -134], f16: [2 ** -11, 2 ** -25], f32: [0, 2 ** -150], f64: [0, 2 ** -1075] };
/** Largest number of elements of an operand. The loops take up to a second for so many. */
const kMostElements = 2 ** 15;
const kExtents = [0, 1, 1, 2, 2, 3, 4, 5, 7, 8, 16, 17, 33];

const sigmoid = (x) => 1 / (1 + Math.exp(-x));
const kTanh = Math.sqrt(2 / Math.PI);
const kUnary = {
  ...{ neg: (x) => -x, abs: Math.abs, exp: Math.exp, log: Math.log, sqrt: Math.sqrt, rsqrt: (x) => 1 / Math.sqrt(x) },
  ...{ square: (x) => x * x, sin: Math.sin, cos: Math.cos, tanh: Math.tanh, sigmoid, relu: (x) => Math.max(x, 0) },
  ...{ silu: (x) => x * sigmoid(x), softplus: (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))) },
  gelu: (x) => (x / 2) * plain.erfc(-x / Math.SQRT2),
};
const kBinary = {
  ...{ add: (a, b) => a + b, sub: (a, b) => a - b, mul: (a, b) => a * b, div: (a, b) => a / b },
  ...{ maximum: (a, b) => Math.max(a, b), minimum: (a, b) => Math.min(a, b) },
};
const kCompare = {
  ...{ equal: (a, b) => a === b, notEqual: (a, b) => a !== b, less: (a, b) => a < b },
  ...{ lessEqual: (a, b) => a <= b, greater: (a, b) => a > b, greaterEqual: (a, b) => a >= b },
};
const sum = (values) => values.reduce((all, value) => all + value, 0);
const mean = (values) => sum(values) / values.length;
const logSumExp = (values) => {
  const most = Math.max(...values);
  return most + Math.log(sum(values.map((value) => Math.exp(value - most))));
};
const kReduce = {
  ...{ sum, mean, logSumExp, max: (values) => Math.max(...values), min: (values) => Math.min(...values) },
  variance: (values) => {
    const center = mean(values);
    return sum(values.map((value) => (value - center) ** 2)) / (values.length - 1);
  },
};
/** Reductions that are errors over nothing. */
const kLeast = { sum: 0, mean: 1, logSumExp: 1, max: 1, min: 1, variance: 2 };

const axisOf = (random, shape) => random.integer(-shape.length, shape.length - 1);
const normal = (axis, rank) => (axis < 0 ? axis + rank : axis);

/** A description of an operand: shape, dtype, layout in memory, and values that every float dtype represents. */
function operand(random, shape, dtype, { least = -64, most = 64 } = {}) {
  const data = Array.from({ length: plain.sizeOf(shape) }, () => random.integer(least, most) / 8);
  const layout = random.pick(['dense', 'dense', 'permuted', 'step', 'offset']);
  return { shape, dtype, layout, data, grad: random.chance(0.3) };
}
const indices = (random, shape, limit) => {
  const data = Array.from({ length: plain.sizeOf(shape) }, () => random.below(Math.max(1, limit)));
  return { shape, dtype: random.pick(['i32', 'i32', 'i64']), layout: 'dense', data, grad: false };
};

/** The tensor of a description. */
function make({ shape, dtype, layout, data, grad }) {
  const dense = (of, values) => {
    if (dtype === 'i32') return tensor(Int32Array.from(values), { shape: of });
    if (dtype === 'i64') return tensor(BigInt64Array.from(values, BigInt), { shape: of });
    return tensor(Float64Array.from(values), { shape: of }).to(dtype);
  };
  // Values between and around the elements must not matter.
  const other = dtype[0] === 'i' ? 99 : Number.NaN;
  let made;
  if (layout === 'permuted') {
    const order = shape.map((_, i) => shape.length - 1 - i);
    const turned = plain.permute({ shape, data }, order);
    made = ops.permute(dense(turned.shape, turned.data), order);
  } else if (layout === 'step' && shape.length > 0) {
    const wide = [...shape.slice(0, -1), 2 * shape.at(-1)];
    made = ops.slice(dense(wide, data.flatMap((value) => [value, other])), shape.length - 1, { step: 2 });
  } else if (layout === 'offset' && shape.length > 0) {
    const row = plain.sizeOf(shape.slice(1));
    const padded = [...Array(row).fill(other), ...data, ...Array(row).fill(other)];
    made = ops.slice(dense([shape[0] + 2, ...shape.slice(1)], padded), 0, { start: 1, stop: shape[0] + 1 });
  } else made = dense(shape, data);
  if (grad) {
    made = made.detach();
    made.requiresGrad = true;
  }
  return made;
}

function shapeOf(random, least = 0, most = 4) {
  const shape = random.several(least, most, () => random.pick(kExtents));
  while (plain.sizeOf(shape) > kMostElements) shape[shape.indexOf(Math.max(...shape))] = 2;
  return shape;
}

/** A shape that broadcasts with another one. */
const partner = (random, shape) => shape.slice(random.below(shape.length + 1)).map((extent) => (random.chance(0.3) ? 1 : extent));

/**
 * Errors of functions of one number, in units of the type in which they are computed, by x and y = f(x). Kernels of f32 have those of
 * native/kernels/cpu/runtime/vec_math.h (exp, log 1.5; tanh, erf 2; sigmoid 2.5 units in the last place of their results), those of f64
 * and the loops those of the C library and V8, which are smaller. Every rounding of an operation adds half a unit of its result.
 */
const kUnaryErrors = {
  ...{ neg: () => 0, abs: () => 0, relu: () => 0 },
  ...{ square: (_, y) => 0.5 * y, sqrt: (_, y) => 0.5 * y, rsqrt: (_, y) => y, sin: (_, y) => Math.abs(y), cos: (_, y) => Math.abs(y) },
  ...{ exp: (_, y) => 1.5 * y, log: (_, y) => 1.5 * Math.abs(y), tanh: (_, y) => 2 * Math.abs(y), sigmoid: (_, y) => 2.5 * y },
  silu: (_, y) => 3 * Math.abs(y), // the sigmoid's error, and the product's
  // max(x, 0) + r, r = ln(1 + e^-|x|), which exp, log, a difference and a quotient make.
  softplus: (x, y) => 5 * Math.log1p(Math.exp(-Math.abs(x))) + 0.5 * y,
  // x (1 + erf(z)) / 2, z = x / sqrt(2): 2 of erf, 0.5 by the rounding of z (z erf'(z) < 0.5, of a unit), 0.5 of the sum; halved, times |x|.
  gelu: (x, y) => 1.5 * Math.abs(x) + 0.5 * Math.abs(y),
};
const halfOf = (y) => 0.5 * Math.abs(y);
/** Error of log sum e^x over n numbers, the exps of which are summed in the kernel's type: 1.5 of each exp, (n - 1) / 2 of the sum. */
const logSumError = (n, y) => 1.5 + 0.5 * (n - 1) + halfOf(y);

/**
 * The ops. Each makes its case from random choices: operands, the call, the same by plain loops, and `errors`: a bound of each result's
 * error in units of the type in which the kernel computes, by a forward analysis of its formula. Operands are multiples of 1/8 up to 8, so
 * that their sums and the sums of their products are exact in f32: without `errors` a result is the exact one, rounded to its dtype.
 */
const kCases = {
  unary: (random) => {
    const name = random.pick(Object.keys(kUnary));
    const positive = ['log', 'sqrt', 'rsqrt'].includes(name);
    const x = operand(random, shapeOf(random), random.pick(kFloats), positive ? { least: 1 } : {});
    const errors = ([a], y) => y.map((value, i) => kUnaryErrors[name](a.data[i], value));
    return { name, operands: [x], call: ([a]) => ops[name](a), expect: ([a]) => plain.map(a, kUnary[name]), errors };
  },
  binary: (random) => {
    const name = random.pick(Object.keys(kBinary));
    const shape = shapeOf(random);
    const dtype = random.pick(name === 'div' ? kFloats : [...kFloats, 'i32', 'i64']);
    const whole = (description) => (dtype[0] === 'i' ? { ...description, data: description.data.map((value) => Math.round(value)), grad: false } : description);
    const a = whole(operand(random, shape, dtype));
    const b = whole(operand(random, partner(random, shape), dtype, name === 'div' ? { least: 1 } : {}));
    const [first, second] = random.chance(0.5) && name !== 'div' ? [b, a] : [a, b];
    return { name, operands: [first, second], call: ([x, y]) => ops[name](x, y), expect: ([x, y]) => plain.combine(x, y, kBinary[name]), errors: name === 'div' ? (_, y) => y.map(halfOf) : null };
  },
  compare: (random) => {
    const name = random.pick(Object.keys(kCompare));
    const shape = shapeOf(random);
    const dtype = random.pick(kFloats);
    const operands = [shape, partner(random, shape)].map((of) => ({ ...operand(random, of, dtype, { least: -3, most: 3 }), grad: false }));
    return { name, operands, call: ([x, y]) => ops[name](x, y), expect: ([x, y]) => plain.combine(x, y, (a, b) => Number(kCompare[name](a, b))) };
  },
  reduce: (random) => {
    const name = random.pick(Object.keys(kReduce));
    const x = operand(random, shapeOf(random), random.pick(kFloats));
    const rank = x.shape.length;
    const axes = rank === 0 || random.chance(0.3) ? [] : [...new Set(random.several(1, rank, () => random.below(rank)))];
    const keepDims = random.chance(0.4);
    const over = axes.length === 0 ? x.shape : axes.map((axis) => x.shape[axis]);
    const options = { keepDims, ...(axes.length > 0 && { axis: axes.length === 1 && random.chance(0.5) ? axes[0] - (random.chance(0.5) ? rank : 0) : axes }) };
    const count = plain.sizeOf(over);
    // Sums are in f64, in the loops as in the kernels: n of its units. The kernel's own type rounds exps and the result.
    const errors = {
      ...{ mean: (_, y) => y.map(halfOf), variance: (_, y) => y.map(halfOf) },
      logSumExp: (_, y) => y.map((value) => 1.5 + halfOf(value)),
    };
    const loopErrors = {
      mean: (_, y) => y.map(halfOf),
      variance: (_, y) => y.map((value) => 2 * count * value),
      logSumExp: (_, y) => y.map((value) => 2 * (count + Math.abs(value))),
    };
    return {
      ...{ name, operands: [x], call: ([a]) => ops[name](a, options), refused: count < kLeast[name] },
      ...{ expect: ([a]) => plain.reduce(a, axes, keepDims, kReduce[name]), errors: errors[name], loopErrors: loopErrors[name] },
    };
  },
  argument: (random) => {
    const name = random.pick(['argmax', 'argmin']);
    const x = { ...operand(random, shapeOf(random, 1), random.pick(kFloats), { least: -5, most: 5 }), grad: false };
    const axis = axisOf(random, x.shape);
    const keepDims = random.chance(0.3);
    const best = name === 'argmax' ? (values) => values.indexOf(Math.max(...values)) : (values) => values.indexOf(Math.min(...values));
    return {
      ...{ name, operands: [x], call: ([a]) => ops[name](a, { axis, keepDims }), refused: x.shape.at(axis) === 0 },
      ...{ expect: ([a]) => plain.reduce(a, [axis], keepDims, best) },
    };
  },
  softmax: (random) => {
    const name = random.pick(['softmax', 'logSoftmax']);
    const x = operand(random, shapeOf(random, 1), random.pick(kFloats));
    const shares = (values) => {
      const powers = values.map((value) => Math.exp(value - Math.max(...values)));
      return powers.map((power) => power / sum(powers));
    };
    const row = name === 'softmax' ? shares : (values) => values.map((value) => value - logSumExp(values));
    // z = x - lse has the error of lse and of the difference; e^z has it relative to itself, and 1.5 of exp.
    const errorsOf = (values) => {
      const lse = logSumExp(values);
      return values.map((value) => {
        const error = logSumError(values.length, lse) + halfOf(value - lse);
        return name === 'softmax' ? Math.exp(value - lse) * (error + 1.5) : error + halfOf(value - lse);
      });
    };
    const errors = ([a]) => plain.mapRows(a, errorsOf).data;
    return { name, operands: [x], call: ([a]) => ops[name](a), expect: ([a]) => plain.mapRows(a, row), errors };
  },
  topK: (random) => {
    const x = operand(random, shapeOf(random, 1, 3), random.pick(kFloats));
    const k = random.below(x.shape.at(-1) + 1);
    const row = (values) => [...values].sort((a, b) => b - a).slice(0, k);
    return { name: 'topK', operands: [x], call: ([a]) => ops.topK(a, k).values, expect: ([a]) => plain.mapRows(a, row, k) };
  },
  rmsNorm: (random) => {
    const dtype = random.pick(kFloats);
    const shape = [...shapeOf(random, 0, 2), random.pick([1, 2, 5, 16, 33, 64])];
    const operands = [operand(random, shape, dtype), operand(random, [shape.at(-1)], dtype)];
    const row = (weights) => (values) => {
      const deviation = Math.sqrt(mean(values.map((value) => value * value)) + 1e-5);
      return values.map((value, i) => (value / deviation) * weights.data[i]);
    };
    // The sum of squares is exact. Half a unit each: mean, eps itself, the sum of both (halved by the root), root, quotient, two products.
    const errors = (_, y) => y.map((value) => 3 * Math.abs(value));
    return {
      ...{ name: 'rmsNorm', operands, call: ([x, w]) => ops.rmsNorm(x, w, { eps: 1e-5, castBeforeWeight: false }) },
      ...{ expect: ([x, w]) => plain.mapRows(x, row(w)), errors },
    };
  },
  layerNorm: (random) => {
    const dtype = random.pick(kFloats);
    const shape = [...shapeOf(random, 0, 2), random.pick([1, 2, 5, 16, 33, 64])];
    const operands = [operand(random, shape, dtype), operand(random, [shape.at(-1)], dtype), operand(random, [shape.at(-1)], dtype)];
    const row = (w, b) => (values) => {
      const center = mean(values);
      const width = Math.sqrt(mean(values.map((value) => (value - center) ** 2)) + 1e-5);
      return values.map((value, i) => ((value - center) / width) * w.data[i] + b.data[i]);
    };
    // c = x - mean has half a unit of the mean and of itself. So has each term of the variance, twice; its sum has n / 2 more.
    const errorsOf = (w, b) => (values) => {
      const [n, center] = [values.length, mean(values)];
      const centered = values.map((value) => Math.abs(value - center));
      const squares = sum(centered.map((c) => c * c));
      const deviation = Math.sqrt(squares / n + 1e-5);
      const ofVariance = ((1 + 0.5 * n) * squares + Math.abs(center) * sum(centered)) / (squares + n * 1e-5);
      return centered.map((c, i) => {
        const [normed, weight] = [c / deviation, Math.abs(w.data[i])];
        const ofNormed = (0.5 * (c + Math.abs(center))) / deviation + normed * (0.5 * ofVariance + 2.5);
        return weight * ofNormed + 0.5 * weight * normed + 0.5 * (weight * normed + Math.abs(b.data[i]));
      });
    };
    const errors = ([x, w, b]) => plain.mapRows(x, errorsOf(w, b)).data;
    return {
      ...{ name: 'layerNorm', operands, call: ([x, weight, bias]) => ops.layerNorm(x, { weight, bias, eps: 1e-5 }) },
      ...{ expect: ([x, w, b]) => plain.mapRows(x, row(w, b)), errors },
    };
  },
  matmul: (random) => {
    const dtype = random.pick(kFloats);
    const [m, k, n] = [0, 0, 0].map(() => random.pick([...kExtents, 64, 65]));
    const batch = random.pick([[], [], [2], [3, 1], [0]]);
    const [transposeA, transposeB] = [random.chance(0.4), random.chance(0.4)];
    const a = operand(random, [...batch, ...(transposeA ? [k, m] : [m, k])], dtype);
    const b = operand(random, [...partner(random, batch), ...(transposeB ? [n, k] : [k, n])], dtype);
    const turned = (x, swap) => (swap ? plain.permute(x, [...x.shape.keys()].slice(0, -2).concat([x.shape.length - 1, x.shape.length - 2])) : x);
    return {
      ...{ name: 'matmul', operands: [a, b], call: ([x, y]) => ops.matmul(x, y, { transposeA, transposeB }) },
      ...{ expect: ([x, y]) => plain.matmul(turned(x, transposeA), turned(y, transposeB)) },
    };
  },
  linear: (random) => {
    const dtype = random.pick(kFloats);
    const [rows, inputs, outputs] = [0, 0, 0].map(() => random.pick([...kExtents, 48, 64]));
    const bias = random.chance(0.5);
    const operands = [operand(random, [rows, inputs], dtype), operand(random, [outputs, inputs], dtype), ...(bias ? [operand(random, [outputs], dtype)] : [])];
    const product = (x, w) => plain.matmul(x, plain.permute(w, [1, 0]));
    return {
      ...{ name: 'linear', operands, call: ([x, weight, bias = null]) => ops.linear(x, weight, { bias }) },
      ...{ expect: ([x, w, b]) => (b ? plain.combine(product(x, w), b, (p, q) => p + q) : product(x, w)) },
    };
  },
  rows: (random) => {
    const name = random.pick(['embedding', 'indexSelect']);
    const [count, width] = [random.pick([1, 2, 5, 9]), random.pick(kExtents)];
    const ids = indices(random, name === 'embedding' ? shapeOf(random, 1, 2) : [random.pick(kExtents)], count);
    const operands = [operand(random, [count, width], random.pick(kFloats)), ids];
    const expect = ([x, index]) => plain.build([...index.shape, width], (place) => plain.exactly(x, [plain.exactly(index, place.slice(0, -1)), place.at(-1)]));
    return { name, operands, call: ([x, index]) => ops[name](x, index), expect };
  },
  gather: (random) => {
    const shape = shapeOf(random, 1, 3).map((extent) => Math.max(1, extent));
    const axis = axisOf(random, shape);
    const at = normal(axis, shape.length);
    const index = indices(random, shape.map((extent, i) => (i === at ? random.pick([1, 2, 5]) : extent)), shape[at]);
    const expect = ([x, of]) => plain.build(of.shape, (place) => plain.exactly(x, place.map((p, i) => (i === at ? plain.exactly(of, place) : p))));
    return { name: 'gather', operands: [operand(random, shape, random.pick(kFloats)), index], call: ([x, of]) => ops.gather(x, of, { axis }), expect };
  },
  permute: (random) => {
    const x = operand(random, shapeOf(random), random.pick(kFloats));
    const order = x.shape.map((_, i) => i).sort(() => random.below(3) - 1);
    return { name: 'permute', operands: [x], call: ([a]) => ops.permute(a, order), expect: ([a]) => plain.permute(a, order) };
  },
  slice: (random) => {
    const x = operand(random, shapeOf(random, 1), random.pick(kFloats));
    const axis = random.below(x.shape.length);
    const extent = x.shape[axis];
    const [start, stop] = [random.integer(-extent - 2, extent + 2), random.integer(-extent - 2, extent + 2)];
    const step = random.pick([1, 1, 2, 3]);
    const picked = Array.from({ length: extent }, (_, i) => i).slice(start, stop).filter((_, i) => i % step === 0);
    const shape = x.shape.map((size, i) => (i === axis ? picked.length : size));
    const expect = ([a]) => plain.build(shape, (place) => plain.exactly(a, place.map((p, i) => (i === axis ? picked[p] : p))));
    return { name: 'slice', operands: [x], call: ([a]) => ops.slice(a, axis, { start, stop, step }), expect };
  },
  concat: (random) => {
    const [shape, dtype] = [shapeOf(random, 1, 3), random.pick(kFloats)];
    const axis = random.below(shape.length);
    const operands = random.several(1, 3, () => operand(random, shape.map((extent, i) => (i === axis ? random.pick([0, 1, 2, 3]) : extent)), dtype));
    const total = operands.reduce((all, { shape: of }) => all + of[axis], 0);
    const expect = (parts) =>
      plain.build(shape.map((extent, i) => (i === axis ? total : extent)), (place) => {
        let offset = place[axis];
        for (const part of parts) {
          if (offset < part.shape[axis]) return plain.exactly(part, place.map((p, i) => (i === axis ? offset : p)));
          offset -= part.shape[axis];
        }
        return Number.NaN;
      });
    return { name: 'concat', operands, call: (parts) => ops.concat(parts, axis), expect };
  },
  crossEntropy: (random) => {
    const [rows, classes] = [random.pick([1, 2, 5, 17]), random.pick([1, 2, 7, 33])];
    const targets = { ...indices(random, [rows], classes), dtype: 'i32' };
    if (random.chance(0.5)) targets.data[0] = -100;
    const operands = [operand(random, [rows, classes], random.pick(kFloats)), targets];
    const losses = ([x, of]) => of.data.map((id, r) => (id === -100 ? 0 : logSumExp(x.data.slice(r * classes, (r + 1) * classes)) - x.data[r * classes + id]));
    const errors = ([x], y) => y.map((loss, r) => logSumError(classes, logSumExp(x.data.slice(r * classes, (r + 1) * classes))) + halfOf(loss));
    const call = ([x, of]) => ops.crossEntropy(x, of, { reduction: 'none' });
    return { name: 'crossEntropy', operands, call, expect: (all) => plain.array([rows], losses(all)), errors };
  },
};

/** Changes of a case after which it must be refused or give some result. */
const kWrong = [
  (random, operands) => {
    operands[random.below(operands.length)].shape.push(random.pick([0, 1, 2, 3]));
  },
  (random, operands) => {
    random.pick(operands).dtype = random.pick(['f32', 'f64', 'bf16', 'i32', 'i64']);
  },
  (random, operands) => {
    const { data } = random.pick(operands);
    if (data.length > 0) data[random.below(data.length)] = random.pick([-1, -100, 1000, 2 ** 31 - 1, -(2 ** 31)]);
  },
  (_random, operands) => {
    operands.pop();
    operands.push(operands[0] ?? { shape: [], dtype: 'f32', layout: 'dense', data: [1], grad: false });
  },
];

function input(random) {
  const kind = random.pick(Object.keys(kCases));
  const one = kCases[kind](random);
  const wrong = random.chance(0.2);
  if (!wrong) return { ...one, wrong };
  one.operands = one.operands.map((description) => ({ ...description, layout: 'dense', shape: [...description.shape], data: [...description.data] }));
  random.pick(kWrong)(random, one.operands);
  for (const description of one.operands) {
    const size = plain.sizeOf(description.shape);
    description.data = Array.from({ length: size }, (_, i) => description.data[i] ?? 0);
    if (description.dtype[0] === 'i') Object.assign(description, { data: description.data.map((value) => Math.round(value)), grad: false });
  }
  return { ...one, wrong };
}

/** Compares a result with the plain loops'. */
async function compare({ name, operands, expect, errors = null, loopErrors = errors }, found, dtype) {
  const values = operands.map(({ shape, data }) => ({ shape, data }));
  const expected = expect(values);
  require(found.shape.join() === expected.shape.join(), () => `${name} gives the shape (${found.shape}) instead of (${expected.shape})`);
  const [own, loop] = [errors, loopErrors].map((of) => of?.(values, expected.data));
  const [relative, least] = kRounding[found.dtype] ?? [0, 0];
  const bounds = expected.data.map((value, i) => {
    const computed = unitOf(dtype) * (own?.[i] ?? 0) + kLoopUnit * (loop?.[i] ?? 0);
    return computed + relative * (Math.abs(value) + computed) + least;
  });
  requireClose(`${name} of ${operands.map((o) => `${o.dtype}(${o.shape}) ${o.layout}`).join(', ')}`, await found.data(), expected.data, bounds);
}

async function checkGradients({ name }, tensors, result) {
  const leaves = tensors.filter(({ requiresGrad }) => requiresGrad);
  if (!result.requiresGrad || leaves.length === 0) return;
  scope(() => ops.sum(result).backward());
  for (const leaf of leaves) {
    require(leaf.grad === null || leaf.grad.shape.join() === leaf.shape.join(), () => `${name}: a gradient of the shape (${leaf.grad.shape})`);
    if (leaf.grad !== null) await leaf.grad.data();
  }
}

async function run(input) {
  const made = [];
  const { operands, call, wrong, refused } = input;
  try {
    let result;
    scope(() => {
      made.push(...operands.map(make));
      result = call(made);
      return [...made, result];
    });
    made.push(result);
    if (wrong) {
      await result.data();
      return;
    }
    require(!refused, `${input.name} gave a result for nothing to reduce`);
    await compare(input, result, operands[0].dtype);
    await checkGradients(input, made.slice(0, -1), result);
  } catch (error) {
    if (!wrong && !refused && error instanceof BaloraError) throw new Finding(`a valid ${input.name} was refused: ${error.message}`);
    throw error;
  } finally {
    for (const one of made) {
      one.grad?.dispose();
      one.dispose();
    }
  }
}

export default {
  what: 'ops on any shapes, layouts and dtypes against plain loops, and with wrong arguments',
  share: 2,
  input,
  run,
  accepts: ['ERR_NATIVE'],
};
