// Ops on a cache of keys and values in blocks, for decoding. Neither has a gradient.
import { native } from '../native.ts';
import { checkKeys } from '../options/call.ts';
import { Tensor } from '../tensor.ts';
import type { AttentionOptions } from './nn.ts';

/** Number of positions of a block of a cache. */
export const kCacheBlock = 32;

/** Number of channels to which a head's are rounded up in a cache. */
export const kCacheChannels = 32;

/** A cache of keys and values as one layer sees it. The blocks of all chunks are numbered one after the other. */
export interface KvCacheView {
  /**
   * (blocks, layers, 2, Hkv, kCacheBlock, Dp) each, with Dp the channels D of a head rounded up to a multiple of kCacheChannels.
   */
  readonly chunks: readonly Tensor[];
  readonly layer: number;
  /** (B+1) i32: rows [cuRows[b], cuRows[b+1]) of the call belong to sequence b. */
  readonly cuRows: Tensor;
  /** (B) i32: positions of each sequence. */
  readonly lengths: Tensor;
  /** (B, W) i32: the blocks of each sequence, from block firstBlocks[b] of its positions on. */
  readonly tables: Tensor;
  /** (B) i32: the blocks before are not kept. Default: all are. */
  readonly firstBlocks: Tensor | null;
}

const operandsOf = ({ chunks, layer, cuRows, lengths, tables, firstBlocks }: KvCacheView) => ({
  chunks: chunks.map(({ handle }) => handle),
  layer,
  cuRows: cuRows.handle,
  lengths: lengths.handle,
  tables: tables.handle,
  firstBlocks: firstBlocks?.handle ?? null,
});

/**
 * Writes the keys and values of the newest positions of each sequence into the cache: the rows of a call are the last positions of
 * their sequences. Positions in blocks that are not kept are left out.
 * @param k (N, Hkv, D) of the chunks' dtype; may be a row-strided slice
 * @param v like k
 */
export function cacheAppend(k: Tensor, v: Tensor, cache: KvCacheView): void {
  native.cacheAppend(k.handle, v.handle, operandsOf(cache));
}

/** Goes on with a chunk of which an aborted forward was to write rows that nobody will read: the others are as they were. */
export function keepAborted(chunk: Tensor): void {
  native.keepAborted(chunk.handle);
}

/** Options of {@link cachedAttention}. */
export interface CachedAttentionOptions
  extends Omit<AttentionOptions, 'cuSeqlens' | 'cuQueries' | 'lengths'> {
  /** (R, H) of q's dtype: added to the score of a key by its distance from the query, causal only. R is no less than any length. */
  bias?: Tensor | null;
  /** Whether rows are the last positions of their sequences and see no later key. Default true. */
  causal?: boolean;
}

/**
 * Attention of rows to the cached keys and values of their sequences, by head; see `attention`. What a row gets depends on its own
 * sequence alone, bit for bit: not on the other sequences, nor on the number of threads.
 * @param q (N, H, D); H must be a multiple of the cache's heads
 * @returns (N, H, D); lists of blocks that do not fit are a NativeError at the next read
 */
export function cachedAttention(
  q: Tensor,
  cache: KvCacheView,
  options: CachedAttentionOptions = {},
): Tensor {
  checkKeys('cachedAttention', options, 'bias causal window softcap sinks scale');
  const { bias = null, causal = true, window = 0, softcap = 0 } = options;
  const { sinks = null, scale = 1 / Math.sqrt(q.shape.at(-1) ?? 1) } = options;
  return new Tensor(
    native.cachedAttention(
      q.handle,
      operandsOf(cache),
      bias?.handle ?? null,
      sinks?.handle ?? null,
      {
        scale,
        softcap,
        window,
        causal,
      },
    ),
  );
}
