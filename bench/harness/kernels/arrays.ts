/** Rows of kernels that pass over whole arrays and are bound by memory: forward, backward, or both. */
import { ones } from '../../../lib/ops/index.ts';
import type { Tensor } from '../../../lib/tensor.ts';
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

type Size = (context: MicroContext) => readonly [rows: number, columns: number];

/** Sizes of hidden states, of the inner activations of an mlp, and of logits that are materialised. */
const kHidden: Size = ({ rows, sizes }) => [rows, sizes.c];
export const kInner: Size = ({ rows, sizes }) => [rows, sizes.f];
export const kLogits: Size = ({ sizes }) => [256, sizes.v];

interface Pass {
  readonly kernel: string;
  readonly op?: string;
  /** Number of arrays of the row's dtype that are read or written. */
  readonly moves: number;
  /** Bytes per element of arrays of other dtypes; default 0. */
  readonly aside?: number;
}

interface Operands {
  /** (rows, columns) in the row's dtype; they require gradients in the backward pass. */
  readonly x: Tensor;
  readonly y: Tensor;
  /** (columns) ones in the row's dtype, without a gradient. */
  readonly weight: Tensor;
  /** (columns) ones in f32, which require a gradient in the backward pass. */
  readonly scale: Tensor;
  /** (rows) i32, each the index of a column. */
  readonly targets: Tensor;
  readonly context: MicroContext;
}

interface ArrayKernel {
  readonly size?: Size;
  readonly forward?: Pass;
  readonly backward?: Pass;
  readonly body: (operands: Operands) => unknown;
}

/** The rows `micro-NAME` and `micro-NAME-backward`, for the passes that are given. */
export function overArray(
  name: string,
  { size = kHidden, body, ...passes }: ArrayKernel,
): MicroTable {
  const make = (context: MicroContext, { moves, aside = 0 }: Pass, back: boolean): MicroCase => {
    const { dtype } = context;
    const [rows, columns] = size(context);
    const [x, y] = [normal([rows, columns], dtype), normal([rows, columns], dtype)];
    const [weight, scale] = [own(ones([columns], { dtype })), own(ones([columns]))];
    const targets = ids(rows, columns);
    const run = () => body({ x, y, weight, scale, targets, context });
    const shapes = `x ${rows}x${columns}`;
    const work = bytesOf(dtype, rows * columns * moves) + rows * columns * aside;
    if (!back) return plain(shapes, 'byte', work, run);
    const forward = (): Tensor[] => [run()].flat() as Tensor[];
    return gradient(shapes, 'byte', work, { leaves: [x, y, scale], forward });
  };
  const entry = (suffix: string, pass: Pass | undefined): MicroTable => {
    if (pass === undefined) return [];
    const { kernel, op } = pass;
    const named = { name: `micro-${name}${suffix}`, kernel, ...(op === undefined ? {} : { op }) };
    return [{ ...named, make: (context) => make(context, pass, suffix !== '') }];
  };
  return [...entry('', passes.forward), ...entry('-backward', passes.backward)];
}
