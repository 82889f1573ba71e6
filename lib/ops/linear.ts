// Matrix products and linear layers, with the low-rank parts of adapters.
import { ArgumentError } from '../errors.ts';
import { native } from '../native.ts';
import { Tensor } from '../tensor.ts';

/** Options of {@link matmul}: the operands that are transposed. */
export interface MatmulOptions {
  /** Whether to read a as its transpose over the last two dimensions, without a copy. Default false. */
  transposeA?: boolean;
  /** Whether to read b as its transpose. Default false. */
  transposeB?: boolean;
}

/**
 * The matrix product over the last two dimensions; batch dimensions broadcast as in NumPy.
 * @param a (..., M, K), any float dtype
 * @param b (..., K, N), of a's dtype
 * @returns (..., M, N): accumulated in f32 (f64 for f64) and rounded once
 * @throws ArgumentError for one-dimensional operands, other dtypes, or shapes that do not fit.
 */
export function matmul(
  a: Tensor,
  b: Tensor,
  { transposeA = false, transposeB = false }: MatmulOptions = {},
): Tensor {
  return new Tensor(native.matmul(a.handle, b.handle, transposeA, transposeB));
}

/** A low-rank part of a linear: it adds scale * (x a^T) b^T (LoRA, Hu et al. 2021). */
export interface LowRank {
  /** (R, I): f32 (f64 beside f64) whatever x is, so that small steps are not lost; x's dtype is widened. */
  a: Tensor;
  /** (O, R), likewise. */
  b: Tensor;
  /** Default 1. A negative scale subtracts a frozen pair (PiSSA: W + s (B A - B0 A0)). */
  scale?: number;
  /**
   * Whether the part by itself is a small change of the linear, as LoRA's is, and not a difference of large terms, as that of an
   * exported PiSSA pair. Beside a bf16 weight the CPU then represents each value of x a^T and b by one bf16 instead of two, which
   * loses 2^-9 of the change. Default false.
   */
  isChange?: boolean;
}

/** One linear of a group. */
export interface LinearOperands {
  /** (O, I), of x's dtype. Frozen (`weight.freeze()`): never given a gradient; the CPU packs f32 once a direction. */
  weight: Tensor;
  /** (O), of x's dtype. */
  bias?: Tensor | null;
  lowRank?: readonly LowRank[];
}

/** Terms that {@link linear} adds to the product. */
export interface LinearOptions {
  /** Input of the low-rank parts in place of x: x after LoRA's dropout. Default x itself. */
  adapterInput?: Tensor | null;
}

/**
 * Linears that share their input (q, k, v; gate, up): y = x W^T + bias + sum of scale * (x a^T) b^T for each. The base and
 * the low-rank parts meet in one f32 sum, rounded once; so does the gradient of x over the whole group. The backward
 * never forms a gradient of W that is not wanted, nor one of x below the first adapter; it keeps x and x a^T only where
 * a gradient needs them.
 * @param x (..., I), any float dtype
 * @returns (..., O) for each linear
 * @throws ArgumentError for an empty group, or shapes and dtypes that do not fit.
 */
export function linearGroup(
  x: Tensor,
  linears: readonly LinearOperands[],
  { adapterInput = null }: LinearOptions = {},
): Tensor[] {
  const parts = linears.flatMap(({ lowRank = [] }, linear) =>
    lowRank.map(({ a, b, scale = 1, isChange = false }) => {
      if (!Number.isFinite(scale)) {
        throw new ArgumentError(
          `linear: the scale of a low-rank part must be finite, got ${scale}`,
        );
      }
      return { a: a.handle, b: b.handle, scale, linear, isChange: Number(isChange) };
    }),
  );
  return native
    .linearGroup(
      x.handle,
      adapterInput?.handle ?? null,
      linears.map(({ weight }) => weight.handle),
      linears.map(({ bias }) => bias?.handle ?? null),
      parts.map(({ a }) => a),
      parts.map(({ b }) => b),
      parts.map(({ scale }) => scale),
      parts.map(({ linear }) => linear),
      parts.map(({ isChange }) => isChange),
    )
    .map((handle) => new Tensor(handle));
}

/**
 * A linear layer y = x W^T + bias + sum of scale * (x a^T) b^T: a `linearGroup` of one.
 * @param x (..., I), any float dtype
 * @param weight (O, I)
 * @returns (..., O)
 */
export function linear(
  x: Tensor,
  weight: Tensor,
  options: Omit<LinearOperands, 'weight'> & LinearOptions = {},
): Tensor {
  const { adapterInput = null, ...rest } = options;
  return linearGroup(x, [{ weight, ...rest }], { adapterInput })[0] as Tensor;
}

/**
 * Multiplies each column by a factor and adds a bias, y = x * scale + bias, computed in f32 (f64) and rounded once.
 * @param x (..., C), any float dtype
 * @param scale (C), f32 (f64 beside f64) whatever x is
 * @param bias (C), of x's dtype; null: none
 * @returns (..., C)
 */
export function columnScale(x: Tensor, scale: Tensor, bias: Tensor | null = null): Tensor {
  return new Tensor(native.columnScale(x.handle, scale.handle, bias?.handle ?? null));
}

/**
 * The norm of each row of weight + sum of scale * b a, computed without making that sum as a whole. It has no gradient, since DoRA
 * (Liu et al. 2024) holds this norm constant.
 * @param weight (O, I), any float dtype
 * @param parts a (R, I) and b (O, R), f32 (f64 beside f64)
 * @returns (O) f32 (f64)
 */
export function rowNorm(weight: Tensor, parts: readonly LowRank[]): Tensor {
  return new Tensor(
    native.rowNorm(
      weight.handle,
      parts.map(({ a }) => a.handle),
      parts.map(({ b }) => b.handle),
      parts.map(({ scale = 1 }) => scale),
    ),
  );
}
