/** The attention of decoders and encoders over unpadded rows, and the module that most decoders share. */
import { type Linear, LinearGroup, Module, type RMSNorm } from '../nn/index.ts';
import { attention, indexSelect, type RmsNormOptions, reshape, rope } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import type { ModelInputs } from './model.ts';
import type { RowTables } from './rope.ts';
import type { WeightLoader } from './weights.ts';

/** The bounds of a batch's segments, and the rows of a decoder that are computed. */
export type Rows = Pick<ModelInputs, 'positions' | 'cuSeqlens' | 'lengths'> &
  Partial<Pick<ModelInputs, 'rowOf' | 'cuOwn' | 'cached'>>;

/** The rows of a forward, as attention reads them. */
export function rowsOf({ positions, cuSeqlens, lengths, rowOf, cuOwn, cached }: ModelInputs): Rows {
  const rows = { positions, cuSeqlens, lengths, rowOf, cuOwn };
  return cached === undefined ? rows : { ...rows, cached };
}

/** Inputs that all layers of a decoder share. */
export interface DecoderInputs {
  readonly rows: Rows;
  /** The tables of every rotary embedding that some layer uses. */
  readonly ropes: readonly RowTables[];
}

export interface HeadShape {
  readonly numHeads: number;
  readonly numKeyValueHeads: number;
  readonly headDim: number;
}

export interface AttendOptions {
  /** Default true. */
  readonly causal?: boolean;
  /** Number of keys that a row attends to, itself included; 0: no limit. Default 0. */
  readonly window?: number;
  /** See `attention`. Default 0: none. */
  readonly softcap?: number;
  /** Default headDim^-1/2. */
  readonly scale?: number;
  /** Norms of each head of q and k, before the rotary embedding. */
  readonly headNorms?: readonly [q: RMSNorm, k: RMSNorm] | null;
  /** Rotary embedding of q and k. */
  readonly rope?: RowTables | null;
  /** The number of the attention among those that a cache keeps, see `Model.cachedLayers`. Default: it has none. */
  readonly layer?: number;
}

/**
 * Attention over heads that lie side by side in the channels. R rows are computed: all N, unless rows of several segments are the same.
 * @param qkv q (R, H*D), k and v (R, Hkv*D); may be row-strided parts of one product
 * @returns (R, H*D)
 */
export function attend(
  [q, k, v]: readonly [Tensor, Tensor, Tensor],
  { numHeads, numKeyValueHeads, headDim }: HeadShape,
  { positions, cuSeqlens, lengths, rowOf = null, cuOwn = null, cached }: Rows,
  { headNorms = null, rope: tables = null, layer, ...options }: AttendOptions = {},
): Tensor {
  const n = q.shape[0] as number;
  const rotated = (x: Tensor, heads: number, norm: RMSNorm | undefined): Tensor => {
    const byHead = reshape(x, [n, heads, headDim]);
    const normed = norm === undefined ? byHead : norm.forward(byHead);
    return tables === null ? normed : rope(normed, tables, tables.rows ?? positions);
  };
  if (cached !== undefined && layer !== undefined) {
    const qkv = [
      rotated(q, numHeads, headNorms?.[0]),
      rotated(k, numKeyValueHeads, headNorms?.[1]),
      reshape(v, [n, numKeyValueHeads, headDim]),
    ] as const;
    return reshape(cached.pass.attend(layer, qkv, options), [n, numHeads * headDim]);
  }
  // A shared row is one query and a key in each of its segments; the gradients that it gets from these add up.
  const perSegment = (x: Tensor): Tensor => (rowOf === null ? x : indexSelect(x, rowOf));
  const attended = attention(
    rotated(q, numHeads, headNorms?.[0]),
    perSegment(rotated(k, numKeyValueHeads, headNorms?.[1])),
    perSegment(reshape(v, [n, numKeyValueHeads, headDim])),
    { cuSeqlens, cuQueries: cuOwn, lengths, ...options },
  );
  return reshape(attended, [n, numHeads * headDim]);
}

/** The attention of one decoder layer. */
export interface AttentionConfig extends HeadShape {
  readonly hiddenSize: number;
  readonly qkvBias: boolean;
  readonly outputBias: boolean;
  /** RMSNorms of q and k: of each head, of the whole vector, or none. */
  readonly qkNorm: 'head' | 'whole' | null;
  readonly norm: Readonly<RmsNormOptions>;
  readonly window: number;
  readonly softcap: number;
  readonly scale: number;
  /** Index into DecoderInputs.ropes; null: no rotary embedding. */
  readonly rope: number | null;
  /** The index of the layer. */
  readonly layer: number;
}

/** The tables of a layer's rotary embedding; null: it has none. */
export function ropeOf(
  { ropes }: DecoderInputs,
  { rope: index }: AttentionConfig,
): RowTables | null {
  return index === null ? null : (ropes[index] as RowTables);
}

/** Rotary attention with four projections, q, k and v as one product. */
export class SelfAttention extends Module {
  readonly q_proj: Linear;
  readonly k_proj: Linear;
  readonly v_proj: Linear;
  readonly o_proj: Linear;
  readonly q_norm: RMSNorm | null;
  readonly k_norm: RMSNorm | null;
  readonly #qkv: LinearGroup;
  readonly #config: AttentionConfig;

  constructor(config: AttentionConfig, weights: WeightLoader) {
    super();
    const { hiddenSize: c, headDim: d, numHeads, numKeyValueHeads, qkvBias, outputBias } = config;
    this.q_proj = weights.linear('q_proj', [numHeads * d, c], qkvBias);
    this.k_proj = weights.linear('k_proj', [numKeyValueHeads * d, c], qkvBias);
    this.v_proj = weights.linear('v_proj', [numKeyValueHeads * d, c], qkvBias);
    this.o_proj = weights.linear('o_proj', [c, numHeads * d], outputBias);
    const qkNorm = (name: string, heads: number): RMSNorm | null =>
      config.qkNorm === null
        ? null
        : weights.rmsNorm(name, config.qkNorm === 'head' ? d : heads * d, config.norm);
    this.q_norm = qkNorm('q_norm', numHeads);
    this.k_norm = qkNorm('k_norm', numKeyValueHeads);
    this.#qkv = new LinearGroup([this.q_proj, this.k_proj, this.v_proj]);
    this.#config = config;
  }

  /** x (N,C) -> (N,H*D), the input of o_proj */
  forward(x: Tensor, inputs: DecoderInputs): Tensor {
    const { qkNorm, window, softcap, scale, layer } = this.#config;
    let [q, k, v] = this.#qkv.forward(x) as [Tensor, Tensor, Tensor];
    const norms =
      this.q_norm === null || this.k_norm === null ? null : ([this.q_norm, this.k_norm] as const);
    if (norms !== null && qkNorm === 'whole') [q, k] = [norms[0].forward(q), norms[1].forward(k)];
    return attend([q, k, v], this.#config, inputs.rows, {
      window,
      softcap,
      scale,
      layer,
      rope: ropeOf(inputs, this.#config),
      headNorms: qkNorm === 'head' ? norms : null,
    });
  }
}
