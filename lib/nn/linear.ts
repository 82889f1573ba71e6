/**
 * Linear modules, and groups of them that read the same input (q, k, v; gate, up) and run as one op. An adapter is installed on a
 * Linear as its `adapter` attribute; a group reads that of each member.
 */
import { add, dropout, type LinearOperands, linearGroup } from '../ops/index.ts';
import { usesInt8Products } from '../runtime.ts';
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

function forwardAll(x: Tensor, linears: readonly Linear[]): Tensor[] {
  for (const { adapter } of linears) adapter?.observe?.(x);
  const updates = linears.map(({ adapter }) => adapter?.update() ?? null);
  const drop = updates.find((update) => update?.dropout)?.dropout;
  const adapterInput = drop ? dropout(x, drop) : null;
  return linearGroup(
    x,
    linears.map((linear, i) => operandsOf(linear, updates[i] ?? null)),
    { adapterInput },
  );
}

/**
 * Whether the change of a weight is added to the weight itself, which saves a product: not where 16 bits could not hold a small
 * change, nor where the weight is kept in blocks or multiplied in int8, nor where the change reads another input than the weight.
 */
function isInWeight({ dtype, encoding }: Tensor, { dropout: drop }: LinearUpdate): boolean {
  if (drop !== undefined || encoding !== null || usesInt8Products()) return false;
  return dtype === 'f32' || dtype === 'f64';
}

/** Operands of a linear in one forward, its adapter's update included. */
function operandsOf(linear: Linear, update: LinearUpdate | null): LinearOperands {
  const { bias, weight: own } = linear;
  if (update === null) return { weight: own, bias };
  const { weight = own } = update;
  const { lowRank, outputScale = null, bias: added } = update;
  const change = update.weightChange?.to(weight.dtype);
  const isSummed = change !== undefined && isInWeight(weight, update);
  return {
    ...{ lowRank, outputScale },
    weight: isSummed ? add(weight, change) : weight,
    weightChange: isSummed ? null : (change ?? null),
    bias: added ? addBias(bias, added, weight.dtype) : bias,
  };
}

/** The sum of both biases in the activations' dtype, summed in f32 (f64). */
function addBias(own: Tensor | null, added: Tensor, dtype: Tensor['dtype']): Tensor {
  return (own === null ? added : add(own.to(added.dtype), added)).to(dtype);
}
