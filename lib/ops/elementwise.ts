// Elementwise functions. Two tensors broadcast (shapes aligned right, extent 1 stretches) and must have one dtype; a number
// takes the tensor's dtype. Arithmetic runs in f32 (f64 for f64) and is rounded once.
import { withDevice } from '../device.ts';
import { ArgumentError } from '../errors.ts';
import { native } from '../native.ts';
import { checkKeys } from '../options/call.ts';
import { Tensor } from '../tensor.ts';

/** A tensor, or a number that stands for a tensor of the other operand's dtype and device. */
export type Operand = Tensor | number;

/** Calls `run` with the handles of both operands; a number becomes a tensor, which is freed after the call. */
function withHandles(
  op: string,
  a: Operand,
  b: Operand,
  run: (a: number, b: number) => number,
): Tensor {
  const like = a instanceof Tensor ? a : b;
  if (!(like instanceof Tensor)) throw new ArgumentError(`${op}: one operand must be a tensor`);
  const temporary: number[] = [];
  const handleOf = (operand: Operand): number => {
    if (operand instanceof Tensor) return operand.handle;
    temporary.push(withDevice(like.device, () => native.full([], operand, like.dtype)));
    return temporary.at(-1) as number;
  };
  try {
    return new Tensor(run(handleOf(a), handleOf(b)));
  } finally {
    for (const handle of temporary) native.dispose(handle);
  }
}

const isFloat = (x: Tensor): boolean =>
  x.dtype === 'f32' || x.dtype === 'bf16' || x.dtype === 'f16' || x.dtype === 'f64';

function binary(name: string, a: Operand, b: Operand): Tensor {
  return withHandles(name, a, b, (x, y) => native.binary(x, y, name));
}

const affine = (x: Tensor, a: number, b: number): Tensor =>
  new Tensor(native.affine(x.handle, a, b));

/** a + b. Any dtype but u8; integers wrap around. */
export function add(a: Operand, b: Operand): Tensor {
  if (a instanceof Tensor && typeof b === 'number' && isFloat(a)) return affine(a, 1, b);
  if (b instanceof Tensor && typeof a === 'number' && isFloat(b)) return affine(b, 1, a);
  return binary('add', a, b);
}

/** a - b. Any dtype but u8; integers wrap around. */
export function sub(a: Operand, b: Operand): Tensor {
  if (a instanceof Tensor && typeof b === 'number' && isFloat(a)) return affine(a, 1, -b);
  if (b instanceof Tensor && typeof a === 'number' && isFloat(b)) return affine(b, -1, a);
  return binary('sub', a, b);
}

/** a * b. Any dtype but u8; integers wrap around. */
export function mul(a: Operand, b: Operand): Tensor {
  if (a instanceof Tensor && typeof b === 'number' && isFloat(a)) return affine(a, b, 0);
  if (b instanceof Tensor && typeof a === 'number' && isFloat(b)) return affine(b, a, 0);
  return binary('mul', a, b);
}

/** a / b. Float dtypes. */
export function div(a: Operand, b: Operand): Tensor {
  return binary('div', a, b);
}

/** a to the power b. Float dtypes; its gradient to a is 0 where b is 0, and to b where a is 0. */
export function pow(a: Operand, b: Operand): Tensor {
  return binary('pow', a, b);
}

/** The larger of both; a NaN on either side wins. Any dtype but u8. A tie gives each half of the gradient. */
export function maximum(a: Operand, b: Operand): Tensor {
  return binary('maximum', a, b);
}

/** The smaller of both; a NaN on either side wins. Any dtype but u8. A tie gives each half of the gradient. */
export function minimum(a: Operand, b: Operand): Tensor {
  return binary('minimum', a, b);
}

const unary = (x: Tensor, name: string): Tensor => new Tensor(native.unary(x.handle, name));

/** -x. Float dtypes, like every function below. */
export const neg = (x: Tensor): Tensor => unary(x, 'neg');
/** |x|; gradient 0 at 0. */
export const abs = (x: Tensor): Tensor => unary(x, 'abs');
/** e^x. */
export const exp = (x: Tensor): Tensor => unary(x, 'exp');
/** Natural logarithm; -Infinity at 0, NaN below. */
export const log = (x: Tensor): Tensor => unary(x, 'log');
/** Square root; NaN below 0. */
export const sqrt = (x: Tensor): Tensor => unary(x, 'sqrt');
/** 1 / sqrt(x). */
export const rsqrt = (x: Tensor): Tensor => unary(x, 'rsqrt');
/** x * x. */
export const square = (x: Tensor): Tensor => unary(x, 'square');
/** Sine of x in radians. */
export const sin = (x: Tensor): Tensor => unary(x, 'sin');
/** Cosine of x in radians. */
export const cos = (x: Tensor): Tensor => unary(x, 'cos');
/** Hyperbolic tangent. */
export const tanh = (x: Tensor): Tensor => unary(x, 'tanh');
/** 1 / (1 + e^-x). */
export const sigmoid = (x: Tensor): Tensor => unary(x, 'sigmoid');
/** max(x, 0); gradient 0 at 0. */
export const relu = (x: Tensor): Tensor => unary(x, 'relu');
/** x * sigmoid(x). */
export const silu = (x: Tensor): Tensor => unary(x, 'silu');
/** ln(1 + e^x), without overflow or cancellation. */
export const softplus = (x: Tensor): Tensor => unary(x, 'softplus');

/**
 * GELU, x * Phi(x) with Phi the normal distribution function (Hendrycks and Gimpel, 2016).
 * @param options approximate: 'none' (default) through erf; 'tanh' x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
 */
export function gelu(x: Tensor, options: { approximate?: 'none' | 'tanh' } = {}): Tensor {
  checkKeys('gelu', options, 'approximate');
  return unary(x, options.approximate === 'tanh' ? 'gelu_tanh' : 'gelu');
}

/**
 * x limited to [low, high]; the gradient passes inside and at the limits. Either may be left out. NaN stays.
 * @throws ArgumentError when low > high.
 */
export function clamp(x: Tensor, options: { low?: number; high?: number }): Tensor {
  const { low = -Infinity, high = Infinity } = checkKeys('clamp', options, 'low high');
  return new Tensor(native.clamp(x.handle, low, high));
}

function compare(name: string, a: Operand, b: Operand): Tensor {
  return withHandles(name, a, b, (x, y) => native.compare(x, y, name));
}

/** a == b elementwise, as u8 (1 where true). Any dtype; a NaN equals nothing. No gradient, like every comparison. */
export const equal = (a: Operand, b: Operand): Tensor => compare('equal', a, b);
/** a != b, as u8. */
export const notEqual = (a: Operand, b: Operand): Tensor => compare('not_equal', a, b);
/** a < b, as u8. */
export const less = (a: Operand, b: Operand): Tensor => compare('less', a, b);
/** a <= b, as u8. */
export const lessEqual = (a: Operand, b: Operand): Tensor => compare('less_equal', a, b);
/** a > b, as u8. */
export const greater = (a: Operand, b: Operand): Tensor => compare('greater', a, b);
/** a >= b, as u8. */
export const greaterEqual = (a: Operand, b: Operand): Tensor => compare('greater_equal', a, b);

/**
 * Elements of a where the condition is not 0, otherwise of b. All three broadcast; the gradient goes to the selected operand.
 * @param condition u8
 */
export function where(condition: Tensor, a: Operand, b: Operand): Tensor {
  return withHandles('where', a, b, (x, y) => native.where(condition.handle, x, y));
}

/** u8, 1 where x is neither NaN nor infinite. No gradient. */
export function finiteMask(x: Tensor): Tensor {
  return new Tensor(native.isFinite(x.handle));
}

/** () u8 on the device: 1 when no element of any tensor is a NaN or an infinity. No gradient. */
export function allFinite(tensors: readonly Tensor[]): Tensor {
  return new Tensor(native.allFinite(tensors.map((t) => t.handle)));
}

/** Options of {@link dropout}. */
export interface DropoutOptions {
  /** Probability of a zero, in [0, 1]. */
  p: number;
  /** Seed of the mask: the same seed and `stream` drop the same elements on every device. */
  seed: number;
  /** Stream of the mask, which should differ between the calls of a training step. Default 0. */
  stream?: number;
}

/**
 * Inverted dropout (Srivastava et al., 2014): 0 with probability p, else x / (1 - p). The mask is a function of seed, stream and
 * index (Philox), so backward computes it again instead of storing it. Leave the call out in evaluation.
 */
export function dropout(x: Tensor, options: DropoutOptions): Tensor {
  const { p, seed, stream = 0 } = checkKeys('dropout', options, 'p seed stream');
  return new Tensor(native.dropout(x.handle, p, seed, stream));
}
