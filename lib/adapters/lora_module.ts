/** One adapted linear: its trained pair, the frozen first pair that W already contains, and the parameters of its variant. */
import { createHash } from 'node:crypto';
import { beyondAbort } from '../abort.ts';
import { ArgumentError } from '../errors.ts';
import type { LinearAdapter, LinearUpdate } from '../nn/adapter_hook.ts';
import type { Linear } from '../nn/linear.ts';
import { add, copy_, type LowRank, mul, type PairForm } from '../ops/index.ts';
import { computeOwned, noGrad, scope, type Tensor, unscoped } from '../tensor.ts';
import { type LowRankPair, pairIn, productOf } from './low_rank.ts';
import { type Settings, tensorsOf, type Variant, type VariantModule } from './methods/method.ts';
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
  readonly r: number;
  /** The pair that W already contains; null or left out: there is none. */
  readonly frozen?: LowRankPair | null;
  /** The pair that makes the model before tuning out of a residual base; null or left out: that model is the base itself. */
  readonly teacher?: LowRankPair | null;
  /** The base of the adapter's own in the place of W; null or left out: there is none. */
  readonly quantized?: QuantizedBase | null;
  /** The scale s of the update, and the alpha it was computed from. */
  readonly scale: number;
  readonly alpha: number;
  readonly variant: Variant;
  /** The tensors of the variant's type by their keys, and of its parameters; those that are left out have their first values. */
  readonly parameters: ReadonlyMap<string, Tensor>;
}

/** A tensor that is derived from A and B, and their versions. */
interface Derived {
  readonly tensor: Tensor;
  readonly versions: string;
}

/** Number of micro-batches in a step that have dropout masks of their own. */
const kPassesPerStep = 2 ** 20;

/** One adapted linear: its trained tensors, the frozen first pair if there is one, and the scale. */
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
  /** The tensors of its type (A and B, or others in their place) and of its variant, by their keys in a PEFT file. */
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
    this.r = parts.r;
    this.frozen = parts.frozen ?? null;
    this.teacher = parts.teacher ?? null;
    this.quantized = parts.quantized ?? null;
    this.scale = parts.scale;
    this.alpha = parts.alpha;
    this.variant = parts.variant;
    this.#pair = parts.variant.type.pair === undefined ? null : pairIn(parts.parameters);
    this.form = this.#startForm();
    this.#state = state;
    this.#seed = createHash('sha256')
      .update(`${state.seed}/${this.name}/dropout`)
      .digest()
      .readUIntBE(0, 6);
    this.parameters = new Map([...parts.parameters, ...this.#missing(parts.parameters)]);
  }

  /** A pair is computed since its start, unless a base of its own does not contain that; else as a change of the base. */
  #startForm(): PairForm {
    if (this.frozen !== null) return this.quantized === null ? 'sinceStart' : 'exact';
    return this.variant.pairIsChange ? 'change' : 'exact';
  }

  /** The trained pair. @throws ArgumentError for a method that trains other tensors, which are `parameters` */
  get pair(): LowRankPair {
    if (this.#pair !== null) return this.#pair;
    const { peftType } = this.variant.type;
    throw new ArgumentError(
      `${this.name}: an adapter of the type ${peftType} has no pair A, B; read its tensors from \`parameters\``,
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
      dropout:
        pass === null || p === 0 ? undefined : { p, seed: this.#seed, stream: streamOf(pass) },
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
    return this.#named(true);
  }

  /** The tensors that are kept as they started, or as the variant's training leaves them, by their names in an adapter's state. */
  kept(): NamedTensor[] {
    return this.#named(false);
  }

  #named(trained: boolean): NamedTensor[] {
    const { variant, settings, name, scale } = this;
    const roles = new Map([
      [variant.type.pair?.a, 'a' as const],
      [variant.type.pair?.b, 'b' as const],
    ]);
    return tensorsOf(variant, settings)
      .filter((one) => one.trained === trained)
      .map(({ key, decays }) => {
        const role = roles.get(key);
        const factor = role && { role, ...this.pair, scale };
        return { name: stateName(name, key), tensor: this.parameter(key), decays, factor };
      });
  }

  /** All tensors that the module owns: those that are trained and those that it started from. */
  tensors(): Tensor[] {
    const list = [...this.parameters.values(), ...(this.quantized?.tensors ?? [])];
    for (const fixed of [this.frozen, this.teacher])
      if (fixed !== null) list.push(fixed.a, fixed.b);
    return list;
  }

  /** Frees what is not the module's own of a pair that its variant made of it (`toLora`). */
  release({ a, b }: LowRankPair): void {
    const own = this.tensors();
    for (const tensor of [a, b]) if (!own.includes(tensor)) tensor.dispose();
  }

  /** Frees what the module owns; the linear stays. */
  dispose(): void {
    for (const tensor of this.tensors()) tensor.dispose();
    for (const { tensor } of this.#derived.values()) tensor.dispose();
    this.#derived.clear();
  }

  /** First values of the variant's parameters that are not given. */
  #missing(given: ReadonlyMap<string, Tensor>): [string, Tensor][] {
    return this.variant.parameters
      .filter(({ key }) => !given.has(key))
      .map(({ key, start }) => {
        const tensor = unscoped(() => noGrad(() => start(this)));
        tensor.requiresGrad = true;
        return [key, tensor];
      });
  }
}

/** The name, in an adapter's state, of the tensor that a module's files have under a key: PEFT's without the last `.weight`. */
export function stateName(module: string, key: string): string {
  return `${module}.${key.replace(/\.weight$/, '')}`;
}

function streamOf({ step, microBatch }: TrainingPass): number {
  return step * kPassesPerStep + microBatch;
}
