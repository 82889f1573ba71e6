// Ops of transformer layers: gated activations, positions, attention, softmax and its loss.
import { native } from '../native.ts';
import { checkKeys } from '../options/call.ts';
import { Tensor } from '../tensor.ts';

/**
 * The gated activation of LLaMA's mlp: silu(gate) * up, silu(z) = z / (1 + e^-z) (Shazeer 2020, "GLU variants").
 * Only gate and up are kept for the backward.
 * @param gate (..., F), any float dtype; may be a row-strided slice of a fused product
 * @param up like gate
 * @returns (..., F), rounded once
 */
export function swiglu(gate: Tensor, up: Tensor): Tensor {
  return new Tensor(native.gated(gate.handle, up.handle, 'silu'));
}

/**
 * gelu(gate) * up, the gated activation of Gemma (approximate 'tanh') and T5 v1.1.
 * @param gate (..., F), any float dtype; may be a row-strided slice of a fused product
 * @param up like gate
 * @param options approximate: 'none' (default): 0.5 z (1 + erf(z / sqrt 2)); 'tanh': 0.5 z (1 + tanh(sqrt(2/pi)
 *   (z + 0.044715 z^3))), called gelu_new and gelu_pytorch_tanh in checkpoints
 * @returns (..., F), rounded once
 */
export function geglu(
  gate: Tensor,
  up: Tensor,
  options: { approximate?: 'none' | 'tanh' } = {},
): Tensor {
  checkKeys('geglu', options, 'approximate');
  const activation = options.approximate === 'tanh' ? 'gelu_tanh' : 'gelu';
  return new Tensor(native.gated(gate.handle, up.handle, activation));
}

/** Cosines and sines of the angles of a rotary embedding, by position. */
export interface RopeTables {
  /** (P, Drot/2) f32, f64 for f64 tensors: cos(position * frequency), scaled where the variant scales. */
  cos: Tensor;
  /** Like cos. */
  sin: Tensor;
}

/**
 * Rotary position embedding (Su et al. 2021) in the rotate-half convention of the HF checkpoints: with h = Drot/2,
 * y[i] = x[i] cos - x[i+h] sin and y[i+h] = x[i+h] cos + x[i] sin for i < h; channels from Drot on pass through.
 * @param x (N, H, D), any float dtype, D >= Drot; may be a row-strided slice of a fused q, k, v product
 * @param tables angles of P positions
 * @param positions (N) i32, each below P (a value outside is a NativeError at the next read)
 * @returns (N, H, D)
 */
export function rope(x: Tensor, { cos, sin }: RopeTables, positions: Tensor): Tensor {
  return new Tensor(native.rope(x.handle, cos.handle, sin.handle, positions.handle));
}

/** Segments, mask and scale of {@link attention}. */
export interface AttentionOptions {
  /** (B+1) i32, rising from 0 to N: rows [cuSeqlens[b], cuSeqlens[b+1]) are one sequence. */
  cuSeqlens: Tensor;
  /**
   * (B+1) i32, rising from 0 to M: rows [cuQueries[b], cuQueries[b+1]) of q are queries for the last rows of sequence b, at most as
   * many as it has. Default: queries for all rows.
   */
  cuQueries?: Tensor | null;
  /** (B) i32: rows of each segment that are not padding; the rest get zeros and give no gradient. Default: all. */
  lengths?: Tensor | null;
  /** Whether a row attends to no later row of its sequence. Default true. */
  causal?: boolean;
  /** Size of the window: a row attends to itself and window - 1 rows before it (and after it, if not causal). Default 0: no limit. */
  window?: number;
  /** Scores become softcap * tanh(score / softcap), after the scale (Gemma-2). Default 0: none. */
  softcap?: number;
  /**
   * (H), f32 (f64 with f64): a score by head that joins each softmax without a value, after scale and soft-cap, so that a row's weights
   * may sum to less than 1 (GPT-OSS). Default: none. CPU only.
   */
  sinks?: Tensor | null;
  /** Default 1 / sqrt(D). */
  scale?: number;
}

/**
 * Attention by sequence and head: softmax(scale * q k^T + mask) v, in tiles with an online softmax (FlashAttention,
 * Dao et al. 2022), so no matrix of scores is ever kept. H must be a multiple of Hkv: query head h reads key and value
 * head floor(h * Hkv / H). Deterministic for a given number of threads.
 * @param q (M, H, D), any float dtype; q, k and v may be row-strided slices of one fused product, used in place
 * @param k (N, Hkv, D), of q's dtype; without cuQueries M is N
 * @param v like k
 * @returns (M, H, D); bad cuSeqlens, cuQueries or lengths are a NativeError at the next read
 */
export function attention(q: Tensor, k: Tensor, v: Tensor, options: AttentionOptions): Tensor {
  const own = 'cuSeqlens cuQueries lengths causal window softcap sinks scale';
  const {
    cuSeqlens,
    cuQueries = null,
    lengths = null,
    causal = true,
  } = checkKeys('attention', options, own);
  const {
    window = 0,
    softcap = 0,
    sinks = null,
    scale = 1 / Math.sqrt(q.shape.at(-1) ?? 1),
  } = options;
  return new Tensor(
    native.attention(
      q.handle,
      k.handle,
      v.handle,
      sinks?.handle ?? null,
      {
        cuSeqlens: cuSeqlens.handle,
        cuQueries: cuQueries?.handle ?? null,
        lengths: lengths?.handle ?? null,
      },
      { scale, softcap, window, causal },
    ),
  );
}

/** Options of {@link relativeAttention}. */
export interface RelativeAttentionOptions {
  /** (B+1) i32, rising from 0 to N: rows [cuQueries[b], cuQueries[b+1]) of q are one sequence. */
  cuQueries: Tensor;
  /** (B+1) i32, rising from 0 to M: rows [cuKeys[b], cuKeys[b+1]) of k are the keys of sequence b. Default cuQueries. */
  cuKeys?: Tensor;
  /** (B) i32: queries of each segment that are not padding; the rest get zeros and give no gradient. Default: all. */
  queryLengths?: Tensor | null;
  /** (B) i32, likewise for the keys. Default: queryLengths, unless there are cuKeys. */
  keyLengths?: Tensor | null;
  /** (R, H), R odd: added to the scores of key - query = r - (R-1)/2, after the scale (T5). Must reach all of them. */
  bias?: Tensor | null;
  /** (P, H, D): q_t positionKeys[p] is added to q_t k_j, p = index[r] (DeBERTa's c2p). */
  positionKeys?: Tensor | null;
  /** (P, H, D): k_j positionQueries[p] likewise (p2c). */
  positionQueries?: Tensor | null;
  /** (R) i32, R odd: the row of the tables for key - query = r - (R-1)/2. */
  index?: Tensor | null;
  /** Whether a query attends to keys of its own and lower positions alone. Default false. */
  causal?: boolean;
  /** Factor of the scores q k^T. Default 1 / sqrt(D). */
  scale?: number;
}

/**
 * Attention with relative positions, within a sequence or from one to another:
 * softmax(scale * (q_t k_j + q_t positionKeys[p] + k_j positionQueries[p]) + bias[r]) v by head. The bias is T5's (Raffel
 * et al. 2020), the position terms are DeBERTa's disentangled attention (He et al. 2021). No matrix of scores is kept.
 * @param q (N, H, D), any float dtype; q, k and v may be row-strided slices of a fused product
 * @param k (M, H, D), of q's dtype
 * @param v like k
 * @returns (N, H, D); a query without keys gives zeros. Bad segments or an index out of range are a NativeError at
 *   the next read
 */
export function relativeAttention(
  q: Tensor,
  k: Tensor,
  v: Tensor,
  options: RelativeAttentionOptions,
): Tensor {
  checkKeys(
    'relativeAttention',
    options,
    'cuQueries cuKeys queryLengths keyLengths bias positionKeys positionQueries index causal scale',
  );
  const { cuQueries, cuKeys = cuQueries, queryLengths = null } = options;
  const { keyLengths = options.cuKeys === undefined ? queryLengths : null } = options;
  const { bias, positionKeys, positionQueries, index, causal = false } = options;
  return new Tensor(
    native.relativeAttention(
      {
        q: q.handle,
        k: k.handle,
        v: v.handle,
        cuQueries: cuQueries.handle,
        cuKeys: cuKeys.handle,
        queryLengths: queryLengths?.handle ?? null,
        keyLengths: keyLengths?.handle ?? null,
        bias: bias?.handle ?? null,
        positionKeys: positionKeys?.handle ?? null,
        positionQueries: positionQueries?.handle ?? null,
        index: index?.handle ?? null,
      },
      options.scale ?? 1 / Math.sqrt(q.shape.at(-1) ?? 1),
      causal,
    ),
  );
}

/**
 * e^x / sum(e^x) over the last dimension; sums are kept in f64.
 * @param x (..., C), any float dtype
 */
export function softmax(x: Tensor): Tensor {
  return new Tensor(native.softmax(x.handle));
}

/**
 * x - ln(sum(e^x)) over the last dimension; sums are kept in f64, so a vocabulary of 50k is right to f32's last places.
 * @param x (..., C), any float dtype
 */
export function logSoftmax(x: Tensor): Tensor {
  return new Tensor(native.logSoftmax(x.handle));
}

/** Options of {@link crossEntropy}. */
export interface CrossEntropyOptions {
  /**
   * 'mean' (default) over the rows that count, 'sum', or 'none': one loss a row, 0 where it is ignored. The mean over
   * no row at all is NaN.
   */
  reduction?: 'mean' | 'sum' | 'none';
}

/**
 * -ln softmax(logits)[target], for logits that exist as a tensor (the fused head losses never build them).
 * @param logits (N, V), any float dtype
 * @param targets (N) i32: class ids, or -100 for a row that does not count (another value outside 0..V-1 is a NativeError
 *   at the next read)
 * @returns () or (N), f32 (f64 for f64), summed in f64
 */
export function crossEntropy(
  logits: Tensor,
  targets: Tensor,
  options: CrossEntropyOptions = {},
): Tensor {
  const { reduction = 'mean' } = checkKeys('crossEntropy', options, 'reduction');
  return new Tensor(native.crossEntropy(logits.handle, targets.handle, reduction));
}
