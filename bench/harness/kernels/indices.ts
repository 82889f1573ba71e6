/** Rows of kernels that gather or scatter by indices. */
import {
  embedding,
  gather,
  indexSelect,
  reshape,
  scatterAdd,
  topK,
} from '../../../lib/ops/index.ts';
import { kLogits, overArray } from './arrays.ts';
import {
  bytesOf,
  gradient,
  ids,
  type MicroCase,
  type MicroContext,
  type MicroTable,
  normal,
  own,
  plain,
} from './kit.ts';

/** Selection of the loss's rows from the hidden states; backward, their gradient scattered into zeros, in f32. */
function selectCase(
  { sizes: { c }, rows, lossRows, dtype }: MicroContext,
  back: boolean,
): MicroCase {
  const [x, chosen] = [normal([rows, c], dtype), ids(lossRows, rows)];
  const forward = () => [indexSelect(x, chosen)];
  const shapes = `${lossRows} rows of ${rows}x${c}`;
  if (!back) return plain(shapes, 'byte', bytesOf(dtype, 2 * lossRows * c), forward);
  const bytes = bytesOf(dtype, lossRows * c) + bytesOf('f32', rows * c);
  return gradient(shapes, 'byte', bytes, { leaves: [x], forward });
}

/** Gather or scatterAdd with an index per element, anywhere in its row. */
function alongRows({ sizes: { c }, rows, dtype }: MicroContext, scatter: boolean): MicroCase {
  const [x, y] = [normal([rows, c], dtype), normal([rows, c], dtype)];
  const index = own(reshape(ids(rows * c, c), [rows, c]));
  const bytes = bytesOf(dtype, (scatter ? 3 : 2) * rows * c) + 4 * rows * c;
  const run = () => (scatter ? scatterAdd(x, index, y) : gather(x, index));
  return plain(`x ${rows}x${c}, an index each`, 'byte', bytes, run);
}

export const kMicroIndices: MicroTable = [
  {
    name: 'micro-embedding',
    kernel: 'select_rows',
    op: 'embedding',
    make: ({ sizes: { c, v }, rows, dtype }) => {
      const [table, chosen] = [normal([v, c], dtype), ids(rows, v)];
      const bytes = bytesOf(dtype, 2 * rows * c);
      const shapes = `${rows} rows of ${v}x${c}`;
      return plain(shapes, 'byte', bytes, () => embedding(table, chosen));
    },
  },
  {
    name: 'micro-index-select',
    kernel: 'select_rows',
    op: 'index_select',
    make: (context) => selectCase(context, false),
  },
  {
    name: 'micro-index-select-backward',
    kernel: 'select_rows_backward',
    op: 'index_select',
    make: (context) => selectCase(context, true),
  },
  { name: 'micro-gather', kernel: 'gather', make: (context) => alongRows(context, false) },
  { name: 'micro-scatter-add', kernel: 'scatter_add', make: (context) => alongRows(context, true) },
  ...overArray('top-k', {
    size: kLogits,
    forward: { kernel: 'topk', op: 'top_k', moves: 1 },
    body: ({ x }) => topK(x, 20).values,
  }),
];
