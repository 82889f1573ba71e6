/** One adapted linear: the tensors of its type and variant, and the update that they make of its product. */
import { createHash } from 'node:crypto';
import { beyondAbort } from '../abort.ts';
import { ArgumentError } from '../errors.ts';
import type { FactorOfPair, LinearAdapter, LinearUpdate } from '../nn/adapter_hook.ts';
import type { Linear } from '../nn/linear.ts';
import type { LowRank, PairForm } from '../ops/index.ts';
import { computeOwned, type Tensor } from '../tensor.ts';
import type { LowRankPair } from './low_rank.ts';
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

/** The fields of an adapted linear that its maker gives. */
export type AdaptedParts = Pick<
  AdaptedLinear,
  'name' | 'linear' | 'r' | 'scale' | 'alpha' | 'variant' | 'parameters'
>;

/** Number of micro-batches in a step that have dropout masks of their own. */
const kPassesPerStep = 2 ** 20;

/** One adapted linear of any type: its tensors, and its scale. That of a pair A, B is a `LoraModule`. */
export class AdaptedLinear implements LinearAdapter, VariantModule {
  readonly name: string;
  readonly linear: Linear;
  /** Rank of the module. */
  readonly r: number;
  /** The scale s of the update, and the alpha it was computed from. */
  readonly scale: number;
  readonly alpha: number;
  readonly variant: Variant;
  /** The tensors of its type (A and B, or others in their place) and of its variant, by their keys in a PEFT file. */
  readonly parameters: ReadonlyMap<string, Tensor>;
  /** The pair that W already contains; null: there is none. */
  readonly frozen: LowRankPair | null = null;
  /** The pair that makes the model before tuning out of a residual base; null: that model is the base itself. */
  readonly teacher: LowRankPair | null = null;
  /** The base of the adapter's own in the place of W; null: there is none. */
  readonly quantized: QuantizedBase | null = null;
  /** How the update is computed beside the weight in use; see {@link LowRank}. */
  form: PairForm;
  protected readonly state: AdapterState;
  readonly #seed: number;
  /** A value for each phase that the module has been in. */
  readonly #phases = new Map<string, object>();

  constructor(parts: AdaptedParts, state: AdapterState) {
    this.name = parts.name;
    this.linear = parts.linear;
    this.r = parts.r;
    this.scale = parts.scale;
    this.alpha = parts.alpha;
    this.variant = parts.variant;
    this.parameters = parts.parameters;
    this.form = parts.variant.pairIsChange ? 'change' : 'exact';
    this.state = state;
    this.#seed = createHash('sha256')
      .update(`${state.seed}/${this.name}/dropout`)
      .digest()
      .readUIntBE(0, 6);
  }

  /** The trained pair. @throws ArgumentError for a method that trains other tensors, which are `parameters` */
  get pair(): LowRankPair {
    const { peftType } = this.variant.type;
    throw new ArgumentError(
      `${this.name}: an adapter of the type ${peftType} has no pair A, B; read its tensors from \`parameters\``,
    );
  }

  /** The pair that is added to the weight in use, with its scale and its frozen start; none where the variant has tensors of its own. */
  get parts(): LowRank[] {
    return [];
  }

  /** The adapter's configuration. */
  get settings(): Settings {
    return this.state.settings;
  }

  /** Frozen tensors that all modules of the adapter share, by their keys in a PEFT file. */
  get sharedTensors(): ReadonlyMap<string, Tensor> {
    return this.state.tensors;
  }

  /** The weight of the model before tuning (out,in), f64. */
  startWeight(): Tensor {
    return this.linear.weight.to('f64');
  }

  /** See {@link LinearAdapter.isTrained}. */
  get isTrained(): boolean {
    return this.state.enabled && this.trained().some(({ tensor }) => tensor.requiresGrad);
  }

  /** See {@link LinearAdapter.updateKey}: null where update() is nothing. */
  get updateKey(): unknown {
    const { enabled, pass, dropout } = this.state;
    if (!enabled) return this.teacherUpdate?.key ?? null;
    return pass !== null && dropout > 0 ? undefined : this.studentKey;
  }

  update(): LinearUpdate | null {
    const { enabled, pass, dropout: p } = this.state;
    if (!enabled) return this.teacherUpdate?.update ?? null;
    const drops = pass !== null && p !== 0;
    return this.variant.update(this, {
      ...this.plainUpdate,
      dropout: drops ? { p, seed: this.#seed, stream: streamOf(pass) } : undefined,
    });
  }

  /** The update while the adapter is not applied, with its key; null: there is none. */
  protected get teacherUpdate(): { readonly key: unknown; readonly update: LinearUpdate } | null {
    return null;
  }

  /** The key of the update while the adapter is applied; undefined: a forward that was recorded cannot be repeated. */
  protected get studentKey(): unknown {
    return this.inPhase(this.parameters);
  }

  /** The update of plain LoRA, of which the variant makes its own. */
  protected get plainUpdate(): LinearUpdate {
    return { lowRank: this.parts };
  }

  /** A value for these tensors in the module's present phase, the same at each call. */
  protected inPhase(tensors: object): object {
    const phase = this.variant.phase?.(this);
    if (phase === undefined) return tensors;
    const key = this.#phases.get(phase) ?? {};
    this.#phases.set(phase, key);
    return key;
  }

  parameter(key: string): Tensor {
    return (this.parameters.get(key) ?? this.sharedTensors.get(key)) as Tensor;
  }

  constant(key: string, make: () => Tensor): Tensor {
    const { constants } = this.state;
    const kept = constants.get(key) ?? beyondAbort(() => computeOwned(make));
    constants.set(key, kept);
    return kept;
  }

  derived(name: string): Tensor {
    throw new ArgumentError(`${this.name}: derives no "${name}"`);
  }

  /** Brings what the variant derives from A and B up to date. */
  renewDerived(): void {}

  /** The trained tensors, named as PEFT names them (without the last `.weight`). */
  trained(): NamedTensor[] {
    return this.#named(true);
  }

  /** The tensors that are kept as they started, or as the variant's training leaves them, by their names in an adapter's state. */
  kept(): NamedTensor[] {
    return this.#named(false);
  }

  #named(trained: boolean): NamedTensor[] {
    return tensorsOf(this.variant, this.settings)
      .filter((one) => one.trained === trained)
      .map(({ key, decays }) => ({
        name: stateName(this.name, key),
        tensor: this.parameter(key),
        decays,
        factor: this.factorOf(key),
      }));
  }

  /** The place of a tensor in a pair; undefined: it has none. */
  protected factorOf(_key: string): FactorOfPair | undefined {
    return undefined;
  }

  /** All tensors that the module owns: those that are trained and those that it started from. */
  tensors(): Tensor[] {
    return [...this.parameters.values()];
  }

  /** Frees what is not the module's own of a pair that its variant made of it (`toLora`). */
  release({ a, b }: LowRankPair): void {
    const own = this.tensors();
    for (const tensor of [a, b]) if (!own.includes(tensor)) tensor.dispose();
  }

  /** Frees what the module owns; the linear stays. */
  dispose(): void {
    for (const tensor of this.tensors()) tensor.dispose();
  }
}

/** The name, in an adapter's state, of the tensor that a module's files have under a key: PEFT's without the last `.weight`. */
export function stateName(module: string, key: string): string {
  return `${module}.${key.replace(/\.weight$/, '')}`;
}

function streamOf({ step, microBatch }: TrainingPass): number {
  return step * kPassesPerStep + microBatch;
}
