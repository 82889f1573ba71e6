/** Helpers for the tables of kernel rows: operands by shape, counts of bytes, and cases of a backward pass alone. */
import { backward } from '../../../lib/autograd.ts';
import { rand, randn } from '../../../lib/ops/index.ts';
import { DTYPE_BYTES, noGrad, type Tensor, tensor, unscoped } from '../../../lib/tensor.ts';
import type { Sizes } from '../shapes.ts';
import type { BenchDType } from '../types.ts';

export interface MicroContext {
  readonly sizes: Sizes;
  readonly dtype: BenchDType;
  /** Rows of a micro-batch. */
  readonly rows: number;
  /** Sequences of a micro-batch. */
  readonly sequences: number;
  /** Rows that the loss reads. */
  readonly lossRows: number;
  /** Rank of the adapter. */
  readonly rank: number;
  /** Rows and vocabulary of a large head. */
  readonly large: { readonly rows: number; readonly v: number };
}

/** One kernel at one size, ready to run. */
export interface MicroCase {
  /** The operands, in words. */
  readonly shapes: string;
  readonly unit: 'flop' | 'byte';
  /** Number of operations, or of bytes that are read or written, each counted once. */
  readonly work: number;
  readonly run: () => void;
  /** Called before each run, not timed. */
  readonly prepare?: () => void;
}

export interface MicroEntry {
  readonly name: string;
  /** Name of the timed kernel in kernels.def. */
  readonly kernel: string;
  /** Name in opTimes() of the op that runs it. Default: the kernel's name without `_forward`. */
  readonly op?: string;
  /** Dtype of the peak rate that products are compared with. Default: the row's own. */
  readonly peak?: BenchDType;
  make(context: MicroContext): MicroCase;
}

/** The kernels of a group. */
export type MicroTable = readonly MicroEntry[];

export function opOf({ kernel, op = kernel.replace(/_forward$/, '') }: MicroEntry): string {
  return op;
}

let seed = 1;

/** Operands of the current case, which live as long as it does. */
let owned: Tensor[] = [];

export function own(operand: Tensor): Tensor {
  owned.push(operand);
  return operand;
}

/** Frees the operands of the last case. */
export function disposeOperands(): void {
  for (const operand of owned) operand.dispose();
  owned = [];
}

export function normal(shape: readonly number[], dtype: BenchDType): Tensor {
  return own(randn(shape, { dtype, seed: seed++ }));
}

/** A frozen tensor of small values, as the weights of a model are. */
export function frozen(shape: readonly number[], dtype: BenchDType): Tensor {
  return own(rand(shape, { dtype, seed: seed++, low: -0.05, high: 0.05 }).freeze());
}

/** Whole numbers below `limit`. */
export function ids(count: number, limit: number): Tensor {
  return integers(count, (i) => (i * 7919) % limit);
}

/** (count) i32 */
export function integers(count: number, value: (i: number) => number): Tensor {
  return own(tensor(Int32Array.from({ length: count }, (_, i) => value(i))));
}

export function bytesOf(dtype: BenchDType, ...elements: number[]): number {
  return DTYPE_BYTES[dtype] * elements.reduce((sum, n) => sum + n, 0);
}

/** A case without a tape. */
export function plain(
  shapes: string,
  unit: MicroCase['unit'],
  work: number,
  body: () => unknown,
): MicroCase {
  return { shapes, unit, work, run: () => void noGrad(body) };
}

/** A case of the backward pass alone: the forward runs before it, untimed, on leaves that require gradients. */
export function gradient(
  shapes: string,
  unit: MicroCase['unit'],
  work: number,
  way: { leaves: readonly Tensor[]; forward: () => readonly Tensor[] },
): MicroCase {
  for (const leaf of way.leaves) leaf.requiresGrad = true;
  let outputs: readonly Tensor[] = [];
  let grads: readonly (Tensor | null)[] = [];
  return {
    shapes,
    unit,
    work,
    prepare: () => {
      for (const leaf of way.leaves) leaf.grad = null;
      outputs = way.forward();
      if (grads.length === 0) grads = outputs.map((y) => unscoped(() => gradientOf(y)));
    },
    run: () => backward(outputs, grads),
  };
}

function gradientOf({ shape, dtype, size }: Tensor): Tensor | null {
  return size === 1 ? null : own(rand(shape, { dtype, seed: seed++, low: -1, high: 1 }));
}
