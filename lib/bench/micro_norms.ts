/** Kernel rows between the products of a block: norms, rotary embedding, gated activation. They are bound by memory. */
import { layerNorm, ones, rmsNorm, rmsNormAdd, rope, swiglu } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import {
  bytesOf,
  gradient,
  integers,
  type MicroCase,
  type MicroContext,
  type MicroTable,
  normal,
  own,
  plain,
} from './micro_kit.ts';

type Body = (operands: { x: Tensor; other: Tensor; weight: Tensor }) => Tensor[];

/** A kernel over (rows, width) that moves `forward` such arrays, and `backward` in its gradient. */
function pointwise(
  name: string,
  {
    body,
    op,
    width,
    moves,
  }: {
    body: Body;
    op: string;
    width: (context: MicroContext) => number;
    /** Arrays read and written. */
    moves: { forward: number; backward: number };
  },
): MicroTable {
  const make = (context: MicroContext, back: boolean): MicroCase => {
    const { rows, dtype } = context;
    const c = width(context);
    const [x, other] = [normal([rows, c], dtype), normal([rows, c], dtype)];
    const weight = own(ones([c], { dtype }));
    const run = (): Tensor[] => body({ x, other, weight });
    const bytes = bytesOf(dtype, rows * c * (back ? moves.backward : moves.forward));
    if (!back) return plain(`x ${rows}x${c}`, 'byte', bytes, run);
    const ops = [`${op}_backward`];
    return gradient(`x ${rows}x${c}`, 'byte', bytes, { leaves: [x, other], forward: run, ops });
  };
  return [
    { name: `micro-${name}`, make: (context) => make(context, false) },
    { name: `micro-${name}-backward`, make: (context) => make(context, true) },
  ];
}

const hidden = ({ sizes }: MicroContext): number => sizes.c;

function ropeCase({ sizes, rows, sequences, dtype }: MicroContext): MicroCase {
  const { heads, d } = sizes;
  const length = rows / sequences;
  const x = normal([rows, heads, d], dtype);
  const [cos, sin] = [normal([length, d / 2], 'f32'), normal([length, d / 2], 'f32')];
  const positions = integers(rows, (i) => i % length);
  const bytes = bytesOf(dtype, 2 * rows * heads * d);
  return plain(`x ${rows}x${heads}x${d}`, 'byte', bytes, () => rope(x, { cos, sin }, positions));
}

export const kMicroNorms: MicroTable = [
  ...pointwise('rms-norm', {
    body: ({ x, weight }) => [rmsNorm(x, weight)],
    op: 'rms_norm',
    width: hidden,
    moves: { forward: 2, backward: 3 },
  }),
  ...pointwise('rms-norm-add', {
    body: ({ x, other, weight }) => rmsNormAdd(x, other, weight),
    op: 'rms_norm',
    width: hidden,
    moves: { forward: 4, backward: 4 },
  }),
  ...pointwise('layer-norm', {
    body: ({ x, weight }) => [layerNorm(x, { weight })],
    op: 'layer_norm',
    width: hidden,
    moves: { forward: 2, backward: 3 },
  }),
  ...pointwise('swiglu', {
    body: ({ x, other }) => [swiglu(x, other)],
    op: 'gated',
    width: ({ sizes }) => sizes.f,
    moves: { forward: 3, backward: 5 },
  }),
  { name: 'micro-rope', make: ropeCase },
];
