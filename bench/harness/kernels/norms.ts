/** Rows of the kernels between a block's products: norms, rotary embedding, activations, DoRA's scale. */
import {
  columnScale,
  dropout,
  layerNorm,
  logSoftmax,
  rmsNorm,
  rmsNormAdd,
  rope,
  rowNorm,
  silu,
  softmax,
  swiglu,
} from '../../../lib/ops/index.ts';
import { withInt8Products } from '../../../lib/runtime.ts';
import { kInner, kLogits, overArray } from './arrays.ts';
import {
  bytesOf,
  frozen,
  gradient,
  integers,
  type MicroCase,
  type MicroContext,
  type MicroTable,
  normal,
  plain,
} from './kit.ts';

function ropeCase({ sizes, rows, sequences, dtype }: MicroContext): MicroCase {
  const { heads, d } = sizes;
  const length = rows / sequences;
  const x = normal([rows, heads, d], dtype);
  const [cos, sin] = [normal([length, d / 2], 'f32'), normal([length, d / 2], 'f32')];
  const positions = integers(rows, (i) => i % length);
  const bytes = bytesOf(dtype, 2 * rows * heads * d);
  return plain(`x ${rows}x${heads}x${d}`, 'byte', bytes, () => rope(x, { cos, sin }, positions));
}

function rowNormCase({ sizes: { c, f }, rank, dtype }: MicroContext): MicroCase {
  const weight = frozen([f, c], dtype);
  const [a, b] = [normal([rank, c], 'f32'), normal([f, rank], 'f32')];
  const bytes = bytesOf(dtype, f * c) + bytesOf('f32', rank * (f + c), f);
  const shapes = `w ${f}x${c}, r ${rank}`;
  return plain(shapes, 'byte', bytes, () => rowNorm(weight, [{ a, b }]));
}

/** Gate and up, which are kept in int8 for backward, or decoded by it. */
function keptCase({ sizes: { f }, rows, dtype }: MicroContext, decodes: boolean): MicroCase {
  const [gate, up] = [normal([rows, f], dtype), normal([rows, f], dtype)];
  const forward = () => [withInt8Products({ savedActivations: true }, () => swiglu(gate, up))];
  const shapes = `x 2x${rows}x${f}`;
  const bytes = bytesOf(dtype, 2 * rows * f) + 2 * rows * (f + 4);
  const backward = gradient(shapes, 'byte', bytes, { leaves: [gate, up], forward });
  return decodes ? backward : { shapes, unit: 'byte', work: bytes, run: () => void forward() };
}

export const kMicroNorms: MicroTable = [
  ...overArray('rms-norm', {
    forward: { kernel: 'rms_norm_forward', moves: 2 },
    backward: { kernel: 'rms_norm_backward', moves: 3 },
    body: ({ x, weight }) => rmsNorm(x, weight),
  }),
  ...overArray('rms-norm-add', {
    forward: { kernel: 'rms_norm_add_forward', moves: 4 },
    backward: { kernel: 'rms_norm_backward', moves: 4 },
    body: ({ x, y, weight }) => rmsNormAdd(x, y, weight),
  }),
  ...overArray('layer-norm', {
    forward: { kernel: 'layer_norm_forward', moves: 2 },
    backward: { kernel: 'layer_norm_backward', moves: 3 },
    body: ({ x, weight }) => layerNorm(x, { weight }),
  }),
  ...overArray('swiglu', {
    size: kInner,
    forward: { kernel: 'gated_forward', moves: 3 },
    backward: { kernel: 'gated_backward', moves: 5 },
    body: ({ x, y }) => swiglu(x, y),
  }),
  { name: 'micro-rope', kernel: 'rope', make: ropeCase },
  ...overArray('silu', {
    size: kInner,
    forward: { kernel: 'unary', op: 'silu', moves: 2 },
    backward: { kernel: 'unary_backward', op: 'silu', moves: 3 },
    body: ({ x }) => silu(x),
  }),
  ...overArray('dropout', {
    forward: { kernel: 'dropout', moves: 2 },
    body: ({ x }) => dropout(x, { p: 0.1, seed: 1 }),
  }),
  ...overArray('column-scale', {
    forward: { kernel: 'column_scale_forward', moves: 2 },
    backward: { kernel: 'column_scale_backward', moves: 3 },
    body: ({ x, scale }) => columnScale(x, scale),
  }),
  {
    name: 'micro-quantize-rows',
    kernel: 'quantize_rows',
    make: (context) => keptCase(context, false),
  },
  {
    name: 'micro-dequantize-rows',
    kernel: 'dequantize_rows',
    make: (context) => keptCase(context, true),
  },
  { name: 'micro-row-norm', kernel: 'row_norm', make: rowNormCase },
  ...overArray('softmax', {
    size: kLogits,
    forward: { kernel: 'softmax_forward', moves: 2 },
    backward: { kernel: 'softmax_backward', moves: 3 },
    body: ({ x }) => softmax(x),
  }),
  ...overArray('log-softmax', {
    size: kLogits,
    forward: { kernel: 'softmax_forward', op: 'log_softmax', moves: 2 },
    backward: { kernel: 'softmax_backward', moves: 3 },
    body: ({ x }) => logSoftmax(x),
  }),
];
