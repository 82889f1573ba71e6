/** What the table of kernel rows is written with: operands by shape, bytes counted, and gradients alone. */
import { backward } from '../../../lib/autograd.ts';
import { rand, randn } from '../../../lib/ops/index.ts';
import { noGrad, type Tensor, tensor, unscoped } from '../../../lib/tensor.ts';
import type { Sizes } from '../shapes.ts';
import type { BenchDType } from '../types.ts';

export interface MicroContext {
  readonly sizes: Sizes;
  readonly dtype: BenchDType;
  /** Rows of a micro-batch of `sequences` sequences; rows of the loss; the adapter's rank. */
  readonly rows: number;
  readonly sequences: number;
  readonly lossRows: number;
  readonly rank: number;
  /** Rows and vocabulary of a large head. */
  readonly large: { readonly rows: number; readonly v: number };
}

/** One kernel at one size, ready to run. */
export interface MicroCase {
  /** The operands, in words. */
  readonly shapes: string;
  readonly unit: 'flop' | 'byte';
  /** Operations, or bytes read and written once each. */
  readonly work: number;
  readonly run: () => void;
  /** Before each run, not timed. */
  readonly prepare?: () => void;
}

export interface MicroEntry {
  readonly name: string;
  /** The row of kernels.def that is timed. */
  readonly kernel: string;
  /** The op that runs it, as opTimes() has it. Default: the kernel's name without `_forward`. */
  readonly op?: string;
  /** Products are held against this peak; left out: that of the row's own dtype. */
  readonly peak?: BenchDType;
  make(context: MicroContext): MicroCase;
}

/** The kernels of a group; operands are made when the case is. */
export type MicroTable = readonly MicroEntry[];

export function opOf({ kernel, op = kernel.replace(/_forward$/, '') }: MicroEntry): string {
  return op;
}

let seed = 1;

/** Operands of the case at hand: they live as long as it does. */
let owned: Tensor[] = [];

export function own(operand: Tensor): Tensor {
  owned.push(operand);
  return operand;
}

/** Frees what the last case owned. */
export function disposeOperands(): void {
  for (const operand of owned) operand.dispose();
  owned = [];
}

export function normal(shape: readonly number[], dtype: BenchDType): Tensor {
  return own(randn(shape, { dtype, seed: seed++ }));
}

/** A weight as models have it: frozen, small. */
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
  return (dtype === 'bf16' ? 2 : 4) * elements.reduce((sum, n) => sum + n, 0);
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

/** A case of the backward pass alone: the forward is run before, untimed, on leaves that want gradients. */
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
