// Matrix products and linear layers, with the low-rank parts of adapters.
import { native } from '../native.ts';
import { checkKeys } from '../options/call.ts';
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
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions = {}): Tensor {
  checkKeys('matmul', options, 'transposeA transposeB');
  const { transposeA = false, transposeB = false } = options;
  return new Tensor(native.matmul(a.handle, b.handle, transposeA, transposeB));
}

/**
 * A low-rank part of a linear: it adds scale * (x a^T) b^T (LoRA, Hu et al. 2021) or, with a start,
 * scale * ((x a^T) b^T - (x start.a^T) start.b^T) (PiSSA).
 */
export interface LowRank {
  /** (R, I): f32 (f64 beside f64) whatever x is, so that small steps are not lost; x's dtype is widened. */
  a: Tensor;
  /** (O, R), likewise. */
  b: Tensor;
  /** Default 1. */
  scale?: number;
  /**
   * The first values of a and b, of their shapes, if W contains them already: they are subtracted and never get a gradient. Default null.
   */
  start?: { readonly a: Tensor; readonly b: Tensor } | null;
  /** How it is computed beside a bf16 weight. Default `sinceStart` with a start, which allows no other, and `exact` without one. */
  form?: PairForm;
}

/**
 * How a low-rank part is computed beside a bf16 weight. `exact`: with both halves of its factors, which are f32. `change`: b a is a small
 * change of the linear, as LoRA's is, and no difference of large terms, as that of an exported PiSSA pair; the CPU then represents each
 * value of x a^T and b by one bf16, which loses 2^-9 of the change. `sinceStart`: from what has changed since its start, of which as much
 * is lost, so that it adds exactly 0 before the first step.
 */
export type PairForm = 'exact' | 'change' | 'sinceStart';

/** One linear of a group. */
export interface LinearOperands {
  /** (O, I), of x's dtype. Frozen (`weight.freeze()`): never given a gradient; the CPU packs f32 once a direction. */
  weight: Tensor;
  /** (O), of x's dtype. */
  bias?: Tensor | null;
  /**
   * (O), f32 (f64 beside f64) whatever x is: multiplied into the sum of the base and the parts, before the bias and the rounding
   * (DoRA's factor). Default 1.
   */
  outputScale?: Tensor | null;
  /**
   * C (O, I), of x's dtype: a change of the weight, which reads what the low-rank parts read. Its product is a term of the sum of
   * its own, so that y answers to a change far below the rounding of W. Its gradient is f32 (f64). Default null.
   */
  weightChange?: Tensor | null;
  lowRank?: readonly LowRank[];
}

/** Terms that {@link linear} adds to the product. */
export interface LinearOptions {
  /** Input of the changes of weights and of the low-rank parts in place of x: x after LoRA's dropout. Default x itself. */
  adapterInput?: Tensor | null;
  /**
   * (G + 1) i32, rising from 0 to the number of rows N of x: rows rowOffsets[g] to rowOffsets[g + 1], without the latter, form group g (the
   * tokens of an expert) and meet operands of their own, which stand at g of weight (G, O, I), bias (G, O), weightChange (G, O, I),
   * a (G, R, I) and b (G, O, R). Under `batchInvariant` a row has the bits of a linear of its group alone; a group without rows gives its
   * operands zeros as gradients. On the CPU; without outputScale, and not where products are in int8. Default null: one group, whose
   * operands have no G.
   */
  rowOffsets?: Tensor | null;
}

/**
 * Linears that share their input (q, k, v; gate, up): y = outputScale * (x W^T + x C^T + their low-rank parts) + bias for each,
 * C the change of W. The base, the change and the parts meet in one f32 sum, rounded once; so does the gradient of x over the
 * whole group, in which W + C is rounded to x's dtype unless there is an `adapterInput`. The backward never forms a gradient of
 * W that is not wanted, nor one of x below the first adapter; it keeps x, x a^T and the unscaled sum (in x's dtype) only where a
 * gradient needs them.
 * @param x (..., I), any float dtype
 * @returns (..., O) for each linear
 * @throws ArgumentError for an empty group, or shapes and dtypes that do not fit; NativeError at the next read for `rowOffsets` that do
 * not rise from 0 to N. UnsupportedError for `rowOffsets` on another device, in int8 or with an outputScale.
 */
export function linearGroup(
  x: Tensor,
  linears: readonly LinearOperands[],
  options: LinearOptions = {},
): Tensor[] {
  checkKeys('linearGroup', options, 'adapterInput rowOffsets');
  for (const one of linears)
    checkKeys('linearGroup', one, 'weight bias outputScale weightChange lowRank');
  return groupOf(x, linears, options);
}

function groupOf(
  x: Tensor,
  linears: readonly LinearOperands[],
  { adapterInput, rowOffsets }: LinearOptions,
): Tensor[] {
  return native
    .linearGroup(
      x.handle,
      adapterInput?.handle ?? null,
      rowOffsets?.handle ?? null,
      linears.map(({ weight, bias, outputScale, weightChange, lowRank = [] }) => ({
        weight: weight.handle,
        bias: bias?.handle ?? null,
        outputScale: outputScale?.handle ?? null,
        weightChange: weightChange?.handle ?? null,
        lowRank: lowRank.map(nativePart),
      })),
    )
    .map((handle) => new Tensor(handle));
}

/** A low-rank part with handles in place of tensors. */
function nativePart(part: LowRank) {
  checkKeys('lowRank', part, 'a b scale start form');
  const { a, b, scale = 1, start = null, form } = part;
  return {
    ...{ a: a.handle, b: b.handle, scale, form: form ?? (start ? 'sinceStart' : 'exact') },
    start: start && { a: start.a.handle, b: start.b.handle },
  };
}

/**
 * A linear layer y = outputScale * (x W^T + x C^T + low-rank parts) + bias: a `linearGroup` of one.
 * @param x (..., I), any float dtype
 * @param weight (O, I); with `rowOffsets` (G, O, I)
 * @returns (..., O)
 */
export function linear(
  x: Tensor,
  weight: Tensor,
  options: Omit<LinearOperands, 'weight'> & LinearOptions = {},
): Tensor {
  checkKeys('linear', options, 'bias outputScale weightChange lowRank adapterInput rowOffsets');
  return groupOf(x, [{ weight, ...options }], options)[0] as Tensor;
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
 * The norm of each row of weight + sum of scale * (b a - start.b start.a), computed without making that sum as a whole. It has no gradient, since DoRA
 * (Liu et al. 2024) holds this norm constant.
 * @param weight (O, I), any float dtype
 * @param parts a (R, I) and b (O, R), f32 (f64 beside f64)
 * @returns (O) f32 (f64)
 */
export function rowNorm(weight: Tensor, parts: readonly LowRank[]): Tensor {
  return new Tensor(native.rowNorm(weight.handle, parts.map(nativePart)));
}
