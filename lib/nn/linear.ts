/**
 * Linear modules, and groups of them that read the same input (q, k, v; gate, up) and run as one op. An adapter hooks a
 * Linear by its `adapter` attribute; a group asks each of its members.
 */
import { type LinearOperands, type LowRank, linearGroup } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import type { LinearAdapter } from './adapter_hook.ts';
import { Module } from './module.ts';

/** y = x weight^T + bias, plus what the adapter adds. */
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
    return linearGroup(x, [operands(this)])[0] as Tensor;
  }
}

/** A Linear whose checkpoint stores the weight as (in,out), as GPT-2's Conv1D does; in memory it is like any other. */
export class Conv1D extends Linear {}

/** Several linears over one input, as one op: a wide product, and one gradient of x. Holds its members, owns nothing. */
export class LinearGroup {
  readonly members: readonly Linear[];

  constructor(members: readonly Linear[]) {
    this.members = members;
  }

  /** x (...,in) -> (...,out) for each member */
  forward(x: Tensor): Tensor[] {
    return linearGroup(x, this.members.map(operands));
  }
}

function operands({ weight, bias, adapter }: Linear): LinearOperands {
  const update = adapter?.update() ?? null;
  if (update === null) return { weight, bias };
  const { a, b, scale, frozen } = update;
  const lowRank: LowRank[] = [{ a, b, scale }];
  if (frozen) lowRank.push({ ...frozen, scale: -scale });
  return { weight, bias, lowRank };
}
