/** One adapted linear: its trained pair, the frozen first pair that W already contains, and the parameters of its variant. */
import { createHash } from 'node:crypto';
import type { LinearAdapter, LinearUpdate } from '../nn/adapter_hook.ts';
import type { Linear } from '../nn/linear.ts';
import type { LowRank } from '../ops/index.ts';
import { noGrad, type Tensor, unscoped } from '../tensor.ts';
import { type LowRankPair, PAIR_KEYS } from './low_rank.ts';
import type { Variant, VariantModule } from './methods/method.ts';
import type { NamedTensor, TrainingPass } from './tuned_model.ts';

/** State that all modules of one adapter share: whether it is applied, and the source of randomness in training. */
export interface AdapterState {
  enabled: boolean;
  /** Whether a pass of the teacher is being made, while the adapter is not applied. */
  teaches: boolean;
  /** The micro-batch that is being trained on; null: no dropout. */
  pass: TrainingPass | null;
  readonly dropout: number;
  readonly seed: number;
}

export interface LoraParts {
  readonly name: string;
  readonly linear: Linear;
  readonly pair: LowRankPair;
  readonly frozen: LowRankPair | null;
  /** The pair that makes the model before tuning out of a residual base; null or left out: that model is the base itself. */
  readonly teacher?: LowRankPair | null;
  /** Whether the pair by itself is the change made to the linear; see {@link LowRank}. */
  readonly isChange: boolean;
  /** The scale s of the update, and the alpha it was computed from. */
  readonly scale: number;
  readonly alpha: number;
  readonly variant: Variant;
  /** Values of the variant's parameters by their keys; left out: their first values. */
  readonly parameters?: ReadonlyMap<string, Tensor>;
}

/** Number of micro-batches in a step that have dropout masks of their own. */
const kPassesPerStep = 2 ** 20;

/** One adapted linear: its trained pair, the frozen first pair if there is one, the scale, and the parameters of its variant. */
export class LoraModule implements LinearAdapter, VariantModule {
  readonly name: string;
  readonly linear: Linear;
  readonly pair: LowRankPair;
  readonly frozen: LowRankPair | null;
  readonly teacher: LowRankPair | null;
  readonly scale: number;
  readonly alpha: number;
  readonly variant: Variant;
  /** Tensors that the variant trains beside the pair, by their keys in a PEFT file. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  readonly #isChange: boolean;
  readonly #state: AdapterState;
  readonly #seed: number;
  readonly #derived = new Map<string, { tensor: Tensor; versions: string }>();

  constructor(parts: LoraParts, state: AdapterState) {
    this.name = parts.name;
    this.linear = parts.linear;
    this.pair = parts.pair;
    this.frozen = parts.frozen;
    this.teacher = parts.teacher ?? null;
    this.scale = parts.scale;
    this.alpha = parts.alpha;
    this.variant = parts.variant;
    this.#isChange = parts.isChange;
    this.#state = state;
    this.#seed = createHash('sha256')
      .update(`${state.seed}/${this.name}/dropout`)
      .digest()
      .readUIntBE(0, 6);
    this.parameters = parts.parameters ?? this.#startParameters();
  }

  get r(): number {
    return this.pair.a.shape[0] as number;
  }

  /** The pair that is added to W, with its scale and its frozen start. */
  get parts(): LowRank[] {
    const { pair, frozen, scale } = this;
    return [{ ...pair, scale, frozen, isChange: this.#isChange }];
  }

  /** See {@link LinearAdapter.updateKey}: the pair that update() adds, or null. */
  get updateKey(): unknown {
    const { enabled, teaches, pass, dropout } = this.#state;
    if (!enabled) return teaches ? this.teacher : null;
    const drops = pass !== null && dropout > 0;
    return drops || this.variant.graphObstacle !== null ? undefined : this.pair;
  }

  update(): LinearUpdate | null {
    if (!this.#state.enabled) {
      const { teacher, scale } = this;
      return this.#state.teaches && teacher !== null ? { lowRank: [{ ...teacher, scale }] } : null;
    }
    const { pass, dropout: p } = this.#state;
    return this.variant.update(this, {
      lowRank: this.parts,
      ...(pass === null || p === 0
        ? {}
        : { dropout: { p, seed: this.#seed, stream: streamOf(pass) } }),
    });
  }

  parameter(key: string): Tensor {
    return this.parameters.get(key) as Tensor;
  }

  derived(key: string, make: () => Tensor): Tensor {
    const { a, b } = this.pair;
    const versions = `${a.version} ${b.version}`;
    const kept = this.#derived.get(key);
    if (kept?.versions === versions) return kept.tensor;
    kept?.tensor.dispose();
    this.#derived.delete(key);
    const tensor = unscoped(() => noGrad(make));
    this.#derived.set(key, { tensor, versions });
    return tensor;
  }

  /** The trained tensors, named as PEFT names them (without the last `.weight`). */
  trained(): NamedTensor[] {
    const { name, pair, scale } = this;
    const named = (key: string): string => stateName(name, key);
    return [
      { name: named(PAIR_KEYS.a), tensor: pair.a, factor: { role: 'a', ...pair, scale } },
      { name: named(PAIR_KEYS.b), tensor: pair.b, factor: { role: 'b', ...pair, scale } },
      ...this.variant.parameters.map(({ key, decays }) => ({
        name: named(key),
        tensor: this.parameter(key),
        decays,
      })),
    ];
  }

  /** All tensors that the module owns: those that are trained and those that it started from. */
  tensors(): Tensor[] {
    const { pair, frozen, teacher, parameters } = this;
    const list = [pair.a, pair.b];
    for (const fixed of [frozen, teacher]) if (fixed !== null) list.push(fixed.a, fixed.b);
    return [...list, ...parameters.values()];
  }

  /** Frees what the module owns; the linear stays. */
  dispose(): void {
    for (const tensor of this.tensors()) tensor.dispose();
    for (const { tensor } of this.#derived.values()) tensor.dispose();
    this.#derived.clear();
  }

  #startParameters(): Map<string, Tensor> {
    return new Map(
      this.variant.parameters.map(({ key, start }) => {
        const tensor = unscoped(() => noGrad(() => start(this)));
        tensor.requiresGrad = true;
        return [key, tensor];
      }),
    );
  }
}

/** The name, in an adapter's state, of the tensor that a module's files have under a key: PEFT's without the last `.weight`. */
export function stateName(module: string, key: string): string {
  return `${module}.${key.replace(/\.weight$/, '')}`;
}

function streamOf({ step, microBatch }: TrainingPass): number {
  return step * kPassesPerStep + microBatch;
}
