/** One adapted linear: its trained pair, the frozen first pair that W already contains, and the parameters of its variant. */
import { createHash } from 'node:crypto';
import { beyondAbort } from '../abort.ts';
import { ArgumentError } from '../errors.ts';
import type { LinearAdapter, LinearUpdate } from '../nn/adapter_hook.ts';
import type { Linear } from '../nn/linear.ts';
import { add, copy_, type LowRank, mul, type PairForm } from '../ops/index.ts';
import { computeOwned, noGrad, scope, type Tensor, unscoped } from '../tensor.ts';
import { type LowRankPair, PAIR_KEYS, productOf } from './low_rank.ts';
import type { Settings, Variant, VariantModule } from './methods/method.ts';
import type { QuantizedBase } from './quantized_base.ts';
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
  /** The adapter's configuration. */
  readonly settings: Settings;
  /** Frozen tensors that all modules share, by their keys in a PEFT file. */
  readonly tensors: ReadonlyMap<string, Tensor>;
  /** Tensors that depend on no trained value, by keys of the variant's own. */
  readonly constants: Map<string, Tensor>;
}

export interface LoraParts {
  readonly name: string;
  readonly linear: Linear;
  /** Null where the variant has tensors of its own, which are all among `parameters`. */
  readonly pair: LowRankPair | null;
  /** The rank where there is no pair. */
  readonly r?: number;
  readonly frozen: LowRankPair | null;
  /** The pair that makes the model before tuning out of a residual base; null or left out: that model is the base itself. */
  readonly teacher?: LowRankPair | null;
  /** The base of the adapter's own in the place of W; null or left out: there is none. */
  readonly quantized?: QuantizedBase | null;
  /** How the pair is computed beside W; see {@link LowRank}. */
  readonly form: PairForm;
  /** The scale s of the update, and the alpha it was computed from. */
  readonly scale: number;
  readonly alpha: number;
  readonly variant: Variant;
  /** Values of the variant's parameters by their keys; left out: their first values. */
  readonly parameters?: ReadonlyMap<string, Tensor>;
}

/** A tensor that is derived from A and B, and their versions. */
interface Derived {
  readonly tensor: Tensor;
  readonly versions: string;
}

/** Number of micro-batches in a step that have dropout masks of their own. */
const kPassesPerStep = 2 ** 20;

/** One adapted linear: its trained pair, the frozen first pair if there is one, the scale, and the parameters of its variant. */
export class LoraModule implements LinearAdapter, VariantModule {
  readonly name: string;
  readonly linear: Linear;
  /** Rank of the module. */
  readonly r: number;
  readonly frozen: LowRankPair | null;
  readonly teacher: LowRankPair | null;
  readonly quantized: QuantizedBase | null;
  readonly scale: number;
  readonly alpha: number;
  readonly variant: Variant;
  /** Tensors of the variant beside the pair, or in its place, by their keys in a PEFT file. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** How the update is computed beside the weight in use; see {@link LowRank}. */
  form: PairForm;
  readonly #pair: LowRankPair | null;
  readonly #state: AdapterState;
  readonly #seed: number;
  readonly #derived = new Map<string, Derived>();
  /** A value for each phase that the module has been in. */
  readonly #phases = new Map<string, object>();

  constructor(parts: LoraParts, state: AdapterState) {
    this.name = parts.name;
    this.linear = parts.linear;
    this.#pair = parts.pair;
    this.r = parts.r ?? (this.pair.a.shape[0] as number);
    this.frozen = parts.frozen;
    this.teacher = parts.teacher ?? null;
    this.quantized = parts.quantized ?? null;
    this.scale = parts.scale;
    this.alpha = parts.alpha;
    this.variant = parts.variant;
    this.form = parts.form;
    this.#state = state;
    this.#seed = createHash('sha256')
      .update(`${state.seed}/${this.name}/dropout`)
      .digest()
      .readUIntBE(0, 6);
    this.parameters = parts.parameters ?? this.#startParameters();
  }

  /** The trained pair. @throws ArgumentError for a method that trains other tensors, which are `parameters` */
  get pair(): LowRankPair {
    if (this.#pair !== null) return this.#pair;
    const type = this.variant.own?.peftType;
    throw new ArgumentError(
      `${this.name}: an adapter of the type ${type} has no pair A, B; read its tensors from \`parameters\``,
    );
  }

  /** The adapter's configuration. */
  get settings(): Settings {
    return this.#state.settings;
  }

  /** Frozen tensors that all modules of the adapter share, by their keys in a PEFT file. */
  get sharedTensors(): ReadonlyMap<string, Tensor> {
    return this.#state.tensors;
  }

  /**
   * The pair that is added to the weight in use, with its scale and its frozen start; none where the variant has tensors of its own. A
   * base of its own does not contain the first pair.
   */
  get parts(): LowRank[] {
    const { scale, form, quantized } = this;
    const start = quantized === null ? this.frozen : null;
    return this.#pair === null ? [] : [{ ...this.#pair, scale, start, form }];
  }

  /** The weight of the model before tuning (out,in), f64: W, or what the codes of a base of its own and the first pair make of it. */
  startWeight(): Tensor {
    const { linear, quantized, frozen, scale } = this;
    if (quantized === null) return linear.weight.to('f64');
    const codes = quantized.weight.to('f32').to('f64');
    return add(codes, mul(productOf(frozen as LowRankPair), scale));
  }

  /** See {@link LinearAdapter.isTrained}. */
  get isTrained(): boolean {
    return this.#state.enabled && this.trained().some(({ tensor }) => tensor.requiresGrad);
  }

  /** See {@link LinearAdapter.updateKey}: null where update() is nothing. */
  get updateKey(): unknown {
    const { enabled, teaches, pass, dropout } = this.#state;
    const keys = this.quantized?.keys;
    if (!enabled) return teaches ? (keys?.teacher ?? this.teacher) : null;
    if (pass !== null && dropout > 0) return undefined;
    // A repeated forward would not bring up to date what is derived.
    const derived = Object.keys(this.variant.derives ?? {}).map((name) => this.#upToDate(name));
    if (derived.includes(undefined)) return undefined;
    const [first] = derived;
    return first ?? keys?.student ?? this.#inPhase(this.#pair ?? this.parameters);
  }

  /** A value for these tensors in the module's present phase, the same at each call. */
  #inPhase(tensors: object): object {
    const phase = this.variant.phase?.(this);
    if (phase === undefined) return tensors;
    const key = this.#phases.get(phase) ?? {};
    this.#phases.set(phase, key);
    return key;
  }

  update(): LinearUpdate | null {
    const { quantized, scale } = this;
    const own = quantized === null ? {} : { weight: quantized.weight };
    if (!this.#state.enabled) {
      const teacher = quantized === null ? this.teacher : this.frozen;
      if (!this.#state.teaches || teacher === null) return null;
      return { ...own, lowRank: [{ ...teacher, scale, form: 'exact' }] };
    }
    const { pass, dropout: p } = this.#state;
    return this.variant.update(this, {
      ...own,
      lowRank: this.parts,
      ...(pass === null || p === 0
        ? {}
        : { dropout: { p, seed: this.#seed, stream: streamOf(pass) } }),
    });
  }

  parameter(key: string): Tensor {
    return (this.parameters.get(key) ?? this.sharedTensors.get(key)) as Tensor;
  }

  constant(key: string, make: () => Tensor): Tensor {
    const { constants } = this.#state;
    const kept = constants.get(key) ?? beyondAbort(() => computeOwned(make));
    constants.set(key, kept);
    return kept;
  }

  derived(name: string): Tensor {
    const known = this.#upToDate(name);
    if (known !== undefined) return known.tensor;
    const make = this.variant.derives?.[name];
    if (make === undefined) throw new ArgumentError(`${this.name}: derives no "${name}"`);
    const kept = this.#derived.get(name)?.tensor;
    const tensor = kept ?? unscoped(() => noGrad(() => make(this)));
    if (kept !== undefined) scope(() => noGrad(() => copy_(kept, make(this))));
    this.#derived.set(name, { tensor, versions: this.#versions });
    return tensor;
  }

  /** Brings what the variant derives from A and B up to date. */
  renewDerived(): void {
    for (const name of Object.keys(this.variant.derives ?? {})) this.derived(name);
  }

  #upToDate(name: string): Derived | undefined {
    const kept = this.#derived.get(name);
    return kept?.versions === this.#versions ? kept : undefined;
  }

  /** The versions of A and B. */
  get #versions(): string {
    const { a, b } = this.pair;
    return `${a.version} ${b.version}`;
  }

  /** The trained tensors, named as PEFT names them (without the last `.weight`). */
  trained(): NamedTensor[] {
    const { name } = this;
    const named = (key: string): string => stateName(name, key);
    const { own } = this.variant;
    if (own !== undefined) {
      return own
        .tensors(this.settings)
        .filter(({ trained }) => trained)
        .map(({ key, decays }) => ({ name: named(key), tensor: this.parameter(key), decays }));
    }
    const { pair, scale } = this;
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

  /** The tensors that a variant with tensors of its own does not train, by their names in an adapter's state. */
  kept(): NamedTensor[] {
    const tensors = this.variant.own?.tensors(this.settings) ?? [];
    return tensors
      .filter(({ trained }) => !trained)
      .map(({ key }) => ({ name: stateName(this.name, key), tensor: this.parameter(key) }));
  }

  /** All tensors that the module owns: those that are trained and those that it started from. */
  tensors(): Tensor[] {
    const { frozen, teacher, parameters } = this;
    const list = this.#pair === null ? [] : [this.#pair.a, this.#pair.b];
    for (const fixed of [frozen, teacher]) if (fixed !== null) list.push(fixed.a, fixed.b);
    return [...list, ...(this.quantized?.tensors ?? []), ...parameters.values()];
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
