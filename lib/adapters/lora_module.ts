/** One adapted linear: its pair, what W holds of it already, and what its variant trains beside it. */
import { createHash } from 'node:crypto';
import type { LinearAdapter, LinearUpdate } from '../nn/adapter_hook.ts';
import type { Linear } from '../nn/linear.ts';
import { type LowRank, rowNorm } from '../ops/index.ts';
import { noGrad, type Tensor, unscoped } from '../tensor.ts';
import type { LowRankPair } from './init.ts';
import type { NamedTensor, TrainingPass } from './tuned_model.ts';
import type { Variant } from './variants.ts';

/** What all modules of one adapter share: whether it takes part, and what is random in training. */
export interface Power {
  on: boolean;
  /** The micro-batch that is being trained on; null: nothing is dropped. */
  pass: TrainingPass | null;
  readonly dropout: number;
  readonly seed: number;
}

export interface LoraParts {
  readonly name: string;
  readonly linear: Linear;
  readonly pair: LowRankPair;
  readonly frozen: LowRankPair | null;
  /** Whether the pair alone is what changes the linear; see {@link LowRank}. */
  readonly isChange: boolean;
  /** s, and the alpha that it came from: s = alpha / r, rank-stabilised alpha / sqrt(r). */
  readonly scale: number;
  readonly alpha: number;
  readonly variant: Variant;
  /** What the variant trains beside the pair, (out). */
  readonly extra: Tensor | null;
}

/** Micro-batches of a step that have masks of their own. */
const kPassesPerStep = 2 ** 20;

export class LoraModule implements LinearAdapter {
  readonly name: string;
  readonly linear: Linear;
  readonly pair: LowRankPair;
  readonly frozen: LowRankPair | null;
  readonly scale: number;
  readonly alpha: number;
  readonly extra: Tensor | null;
  readonly #isChange: boolean;
  readonly #variant: Variant;
  readonly #power: Power;
  readonly #seed: number;
  #norm: { tensor: Tensor; versions: string } | null = null;

  constructor(parts: LoraParts, power: Power) {
    this.name = parts.name;
    this.linear = parts.linear;
    this.pair = parts.pair;
    this.frozen = parts.frozen;
    this.scale = parts.scale;
    this.alpha = parts.alpha;
    this.extra = parts.extra;
    this.#isChange = parts.isChange;
    this.#variant = parts.variant;
    this.#power = power;
    this.#seed = createHash('sha256')
      .update(`${power.seed}/${this.name}/dropout`)
      .digest()
      .readUIntBE(0, 6);
  }

  get r(): number {
    return this.pair.a.shape[0] as number;
  }

  /** The pairs that are added to W, with their scales. */
  get parts(): LowRank[] {
    return lowRankParts(this.pair, this.frozen, this.scale);
  }

  update(): LinearUpdate | null {
    if (!this.#power.on) return null;
    const { pair, frozen, scale, extra } = this;
    const { pass, dropout: p } = this.#power;
    return {
      ...pair,
      scale,
      isChange: this.#isChange,
      ...(frozen === null ? {} : { frozen }),
      ...(extra === null ? {} : this.#variant.update(extra, this, () => this.norm())),
      ...(pass === null || p === 0
        ? {}
        : { dropout: { p, seed: this.#seed, stream: streamOf(pass) } }),
    };
  }

  /** From W + s B A in f64 to the weight of the merged linear, in f64. */
  mergedWeight(exact: Tensor): Tensor {
    return this.extra === null ? exact : this.#variant.mergeWeight(exact, this.extra);
  }

  /** The bias of the merged linear in f64, null where it stays. @throws ArgumentError where it cannot be merged */
  mergedBias(): Tensor | null {
    return this.extra === null ? null : this.#variant.mergeBias(this.extra, this);
  }

  /** What is trained, named as PEFT names it (without the last `.weight`). */
  trained(): NamedTensor[] {
    const { name, pair, extra } = this;
    const list = [
      { name: `${name}.lora_A`, tensor: pair.a },
      { name: `${name}.lora_B`, tensor: pair.b },
    ];
    if (extra === null) return list;
    const key = `${name}.${this.#variant.extraKey}`;
    return [...list, { name: key, tensor: extra, decays: !key.endsWith('bias') }];
  }

  /** Key of the extra tensor in a PEFT file, behind the module's path. */
  get extraKey(): string | null {
    return this.#variant.extraKey;
  }

  /** All that the module owns: what is trained and what it started from. */
  tensors(): Tensor[] {
    const { pair, frozen, extra } = this;
    const list = [pair.a, pair.b];
    if (frozen !== null) list.push(frozen.a, frozen.b);
    if (extra !== null) list.push(extra);
    return list;
  }

  /** Frees what the module owns; the linear stays. */
  dispose(): void {
    for (const tensor of this.tensors()) tensor.dispose();
    this.#norm?.tensor.dispose();
    this.#norm = null;
  }

  /** Rows' norm of W + s B A: computed once for each value of A and B, however many micro-batches a step has. */
  private norm(): Tensor {
    const { a, b } = this.pair;
    const versions = `${a.version} ${b.version}`;
    if (this.#norm?.versions !== versions) {
      this.#norm?.tensor.dispose();
      const tensor = unscoped(() => noGrad(() => rowNorm(this.linear.weight, this.parts)));
      this.#norm = { tensor, versions };
    }
    return this.#norm.tensor;
  }
}

/** The pair, and what it takes out of W again. */
export function lowRankParts(
  pair: LowRankPair,
  frozen: LowRankPair | null,
  scale: number,
): LowRank[] {
  return [{ ...pair, scale }, ...(frozen === null ? [] : [{ ...frozen, scale: -scale }])];
}

function streamOf({ step, microBatch }: TrainingPass): number {
  return step * kPassesPerStep + microBatch;
}
