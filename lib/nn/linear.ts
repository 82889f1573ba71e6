/**
 * Linear modules, and groups of them that read the same input (q, k, v; gate, up) and run as one op. An adapter is installed on a
 * Linear as its `adapter` attribute; a group reads that of each member.
 */
import { add, columnScale, dropout, type LinearOperands, linearGroup } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import type { LinearAdapter, LinearUpdate } from './adapter_hook.ts';
import { Module } from './module.ts';

/** A linear layer, y = x weight^T + bias, plus the update of its adapter. */
export class Linear extends Module {
  weight: Tensor; // (out,in)
  bias: Tensor | null; // (out)
  adapter: LinearAdapter | null = null;

  constructor(weight: Tensor, bias: Tensor | null = null) {
    super();
    this.weight = weight;
    this.bias = bias;
  }

  get inFeatures(): number {
    return this.weight.shape[1] as number;
  }

  get outFeatures(): number {
    return this.weight.shape[0] as number;
  }

  /** x (...,in) -> (...,out) */
  forward(x: Tensor): Tensor {
    return forwardAll(x, [this])[0] as Tensor;
  }
}

/** A Linear whose checkpoint stores the weight as (in,out), as GPT-2's Conv1D does; in memory it is like any other. */
export class Conv1D extends Linear {}

/** Several linears over one input, run as one op with a wide product and one gradient of x. The members stay their module's. */
export class LinearGroup {
  readonly members: readonly Linear[];

  constructor(members: readonly Linear[]) {
    this.members = members;
  }

  /** x (...,in) -> (...,out) for each member */
  forward(x: Tensor): Tensor[] {
    return forwardAll(x, this.members);
  }
}

/** Operands of a linear in one forward, its adapter's update included. */
interface ForwardOperands {
  readonly operands: LinearOperands;
  readonly update: LinearUpdate | null;
  readonly bias: Tensor | null;
}

function forwardAll(x: Tensor, linears: readonly Linear[]): Tensor[] {
  const all = linears.map(forwardOperands);
  const drop = all.find(({ update }) => update?.dropout)?.update?.dropout;
  const outputs = linearGroup(
    x,
    all.map(({ operands }) => operands),
    { adapterInput: drop ? dropout(x, drop) : null },
  );
  return outputs.map((y, i) => {
    const { update, bias } = all[i] as ForwardOperands;
    return update?.outputScale ? columnScale(y, update.outputScale, bias) : y;
  });
}

function forwardOperands({ weight, bias: own, adapter }: Linear): ForwardOperands {
  const update = adapter?.update() ?? null;
  if (update === null) return { operands: { weight, bias: own }, update, bias: own };
  const { lowRank, outputScale } = update;
  const bias = update.bias ? addBias(own, update.bias, weight.dtype) : own;
  return { operands: { weight, bias: outputScale ? null : bias, lowRank }, update, bias };
}

/** The sum of both biases in the activations' dtype, summed in f32 (f64). */
function addBias(own: Tensor | null, added: Tensor, dtype: Tensor['dtype']): Tensor {
  return (own === null ? added : add(own.to(added.dtype), added)).to(dtype);
}
