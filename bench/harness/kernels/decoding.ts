/** Rows of decoding: keys and values into a cache, attention to it, and a linear of one row. */
import { linear, zeros } from '../../../lib/ops/index.ts';
import {
  cacheAppend,
  cachedAttention,
  type KvCacheView,
  kCacheBlock,
  kCacheChannels,
} from '../../../lib/ops/kv_cache.ts';
import { batchInvariant } from '../../../lib/runtime.ts';
import { tensor } from '../../../lib/tensor.ts';
import {
  bytesOf,
  frozen,
  integers,
  type MicroCase,
  type MicroContext,
  type MicroTable,
  normal,
  own,
  plain,
} from './kit.ts';

/** A cache with the sequences of a micro-batch; each call has the given number of new rows of each. */
function cacheOf({ sizes, rows, sequences, dtype }: MicroContext, added: number): KvCacheView {
  const { keyValueHeads, d } = sizes;
  const length = rows / sequences;
  const blocks = Math.ceil(length / kCacheBlock);
  const channels = Math.ceil(d / kCacheChannels) * kCacheChannels;
  const shape = [sequences * blocks, 1, 2, keyValueHeads, kCacheBlock, channels];
  const tables = Int32Array.from({ length: sequences * blocks }, (_, i) => i);
  return {
    chunks: [own(zeros(shape, { dtype }))],
    layer: 0,
    cuRows: integers(sequences + 1, (i) => i * added),
    lengths: integers(sequences, () => length),
    tables: own(tensor(tables, { shape: [sequences, blocks] })),
    firstBlocks: null,
  };
}

/** Writes all keys and values of a prompt. */
function appendCase(context: MicroContext): MicroCase {
  const { sizes, rows, sequences, dtype } = context;
  const { keyValueHeads, d } = sizes;
  const cache = cacheOf(context, rows / sequences);
  const [k, v] = [normal([rows, keyValueHeads, d], dtype), normal([rows, keyValueHeads, d], dtype)];
  const bytes = bytesOf(dtype, 4 * rows * keyValueHeads * d);
  return plain(`${rows} rows, ${keyValueHeads} heads of ${d}`, 'byte', bytes, () =>
    cacheAppend(k, v, cache),
  );
}

/** One new row of each sequence. */
function attentionCase(context: MicroContext): MicroCase {
  const { sizes, rows, sequences, dtype } = context;
  const { heads, keyValueHeads, d } = sizes;
  const cache = cacheOf(context, 1);
  const q = normal([sequences, heads, d], dtype);
  const bytes = bytesOf(dtype, 2 * rows * keyValueHeads * d);
  const shapes = `${sequences} rows, ${rows / sequences} keys each, heads ${heads}/${keyValueHeads} of ${d}`;
  return plain(shapes, 'byte', bytes, () => cachedAttention(q, cache));
}

/** A linear of few rows, which reads its weight once. */
function linearCase({ sizes: { c, f }, dtype }: MicroContext, count: number): MicroCase {
  const [x, weight] = [normal([count, c], dtype), frozen([f, c], dtype)];
  const forward = () => batchInvariant(() => linear(x, weight));
  return plain(`x ${count}x${c}, w ${f}x${c}`, 'byte', bytesOf(dtype, f * c), forward);
}

export const kMicroDecoding: MicroTable = [
  { name: 'micro-cache-append', kernel: 'cache_append', make: appendCase },
  { name: 'micro-cached-attention', kernel: 'cached_attention', make: attentionCase },
  ...[1, 16].map((count) => ({
    name: `micro-linear-${count}-${count === 1 ? 'row' : 'rows'}`,
    kernel: 'linear_forward',
    make: (context: MicroContext) => linearCase(context, count),
  })),
];
