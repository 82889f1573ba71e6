/**
 * The interface of an adapter method. A method is one file of this folder and one line of the list in registry.ts; everything else
 * (`--method`, the command line's flags, PEFT's keys in and out, merging, export, the table-driven tests) reads it there.
 *
 * A method is a named set of settings (`adapter`, `regularizers`). It adds what these settings need and no other method provides:
 * options of its own, starts (initialisations of A and B), a variant of the adapted linear, a scaling. Its additions combine with
 * every other method that does not refuse them: DoRA works with PiSSA's initialisation, rank-stabilised or not.
 */

import { ArgumentError } from '../../errors.ts';
import type { LinearUpdate } from '../../nn/adapter_hook.ts';
import type { Linear } from '../../nn/linear.ts';
import type { LowRank, PairForm, SvdFactors } from '../../ops/index.ts';
import type { Option } from '../../options/option.ts';
import { shown } from '../../shown.ts';
import type { Tensor } from '../../tensor.ts';
import type { LowRankPair, ScaledPair } from '../low_rank.ts';
import type { PythonJson } from '../python_json.ts';

/**
 * A switch of the adapter's configuration, PEFT's where it has one; off unless it is set. Its key in adapter_config.json is its name
 * in snake case; a switch that PEFT does not have is written only where it is on, and PEFT refuses such a file.
 */
export interface MethodSwitch {
  /** Description of the switch in `balora train --help`. */
  readonly help: string;
  readonly schema?: undefined;
}

/**
 * An option of the adapter's configuration that a method adds: a switch, or one of any other kind (lib/options/kinds.ts) for a variant
 * with tensors of its own, whose `keys` give its key in adapter_config.json.
 */
export type MethodOption = MethodSwitch | Option;

/** Settings that a method's name stands for, under PEFT's names. The caller's own settings override them. */
export interface MethodPreset {
  readonly r?: number;
  readonly loraAlpha?: number;
  readonly loraDropout?: number;
  readonly initLoraWeights?: boolean | string;
  /** Options of this or another method. */
  readonly [option: string]: unknown;
}

/** A module whose A and B are to be initialised. */
export interface StartModule {
  /** Path of the module in the model. */
  readonly name: string;
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** The frozen weight (out,in), in the model's dtype. */
  readonly weight: Tensor;
  readonly r: number;
  readonly alpha: number;
  /** The scale s in y += s (x A^T) B^T. */
  readonly scale: number;
  /** A 48-bit seed that depends on the adapter's seed, the module's path and the purpose alone. */
  seed(purpose: string): number;
  /** Tensors that a calibration made for the module (`Start.calibration`); empty for a start without one. */
  readonly statistics: Statistics;
  /** Settings of that calibration; empty for a start without one. */
  readonly settings: CalibrationSettings;
  /** Path of the first module with the same input (q for k and v), its own where there is none; known after a calibration only. */
  readonly inputOf: string;
}

/** Tensors that a calibration keeps for a module, by the start's own names. */
export type Statistics = Readonly<Record<string, Tensor>>;

/**
 * The user's data as a start reads it, in one or more passes of the untouched base over the first micro-batches (calibrate.ts). It
 * keeps small tensors for each module, which may depend on the module's weight and rank, but not on alpha or the scale.
 */
export type StartCalibration = CovarianceCalibration | GradientCalibration | InputCalibration;

/** Settings of a calibration by name. */
export type CalibrationSettings = Readonly<Record<string, number | string | boolean>>;

/** The part that all kinds of calibrations have. */
interface CalibrationKind {
  /** The settings with their defaults, whose types the values must have (default: none). `StartModule.settings` has those in use. */
  readonly settings?: CalibrationSettings;
  /** Refuses values before the passes. @throws ArgumentError */
  checkSettings?(settings: CalibrationSettings): void;
}

/** A calibration by the second moments of the modules' inputs. */
export interface CovarianceCalibration extends CalibrationKind {
  readonly reads: 'covariance';
  /**
   * Keeps what the start needs. Runs without recording, in a scope.
   * @param sums (in,in) f64 for each module: the sum over sequences of X^T X, where X (tokens,in) is a sequence's input without padding,
   *   divided by the absolute value of its largest element
   * @param sequences their number
   */
  reduce(
    modules: readonly StartModule[],
    sums: readonly Tensor[],
    sequences: number,
  ): readonly Statistics[];
}

/** The leading singular triplets u (out,K), s (K), vt (K,in) of the gradient of a weight, f32 (f64 beside f64). */
export type GradientTriplets = SvdFactors;

/**
 * A calibration by the gradients of the weights, each the mean over micro-batches of the gradient of the mean loss. Where it has a setting
 * `quick` and that is true, the gradients are sketched and not summed.
 */
export interface GradientCalibration extends CalibrationKind {
  readonly reads: 'gradient';
  /** Refuses a module before the passes. @throws ArgumentError */
  check?(module: StartModule): void;
  /** The number K of triplets that a module needs. */
  count(module: StartModule): number;
  /** Keeps what the start needs of each module's triplets. Runs without recording, in a scope. */
  reduce(
    modules: readonly StartModule[],
    gradients: readonly GradientTriplets[],
  ): readonly Statistics[];
}

/** A calibration by the inputs themselves, micro-batch by micro-batch, as often as it needs. */
export interface InputCalibration extends CalibrationKind {
  readonly reads: 'inputs';
  /** Makes the collector for modules in groups of equal inputs. @throws ArgumentError for modules that it cannot do */
  collector(groups: readonly (readonly StartModule[])[]): InputCollector;
}

/** The state of a collector, by its own names. */
export interface Collected {
  readonly tensors: Readonly<Record<string, Tensor>>;
  readonly counts: Readonly<Record<string, number>>;
}

/** Collects inputs of groups of modules until it knows enough. */
export interface InputCollector {
  /** Whether a group needs the inputs of the next micro-batch. */
  wants(group: number): boolean;
  /** Takes a group's inputs x (rows,in) at the supervised tokens of a micro-batch, once in it; called without recording. The tensor becomes its own. */
  add(group: number, x: Tensor): void;
  /** Ends a micro-batch. @returns whether some group has learnt from it */
  endBatch(): Promise<boolean>;
  /** Its state after a micro-batch, for `restore`; the tensors stay its own. */
  reached(): Collected;
  /** Goes on from there. The tensors become its own, but for others among them. */
  restore(collected: Collected): void;
  /** The statistics of each group; called in a scope. */
  results(): readonly Statistics[];
  dispose(): void;
}

/** One way to initialise A and B: a value, or a family of values, of `initLoraWeights`. */
export interface Start<Value extends boolean | string = boolean | string> {
  /** The values as help and errors write them, such as `pissa_niter_N`. */
  readonly shown: readonly string[];
  /** A line that describes the initial A and B. */
  readonly title: string;
  /** Whether a value of `initLoraWeights` names this start. */
  accepts(value: boolean | string): value is Value;
  /**
   * Whether the pairs are computed from the weights. Then the initial pair is kept frozen and subtracted, so that the model's outputs
   * are unchanged before the first step. A PEFT file that names such a start belongs on the residual weight (W minus the initial
   * pair); the export on the original weights has twice the rank.
   */
  readonly fromWeight: boolean;
  /**
   * Whether B A is zero or a small change of W without large terms that cancel (default true). False: it is measured, and a pair that
   * is not small is multiplied in full precision (`form` of a low-rank part).
   */
  readonly isSmall?: boolean;
  /**
   * The pair that is taken off W before W is quantised to NF4, where the start makes such a base for its adapter (default: it makes none):
   * the first pair itself, nothing, or a pair of its own, which `pairs` then return beside the first one. W is not changed; the adapter
   * is used on the values of the codes, and the model before tuning is these with the first pair.
   */
  quantizes?(value: Value): LessPair;
  /** The part of the user's data that it reads (default: none). `StartModule.statistics` holds what it kept. */
  readonly calibration?: StartCalibration;
  /**
   * Distributes the ranks anew, in the modules' order, where the calibration says so (default: the configured ranks stay). A module of
   * rank 0 gets no pair; alpha changes with the rank such that the scale stays.
   */
  ranks?(modules: readonly StartModule[]): readonly number[];
  /**
   * Makes the initial pairs of many modules, in their order: f32, a (r,in) and b (out,r). Runs without recording, in a scope, on the
   * modules' device. The values of a pair must depend on its own module alone, so that adapting one more changes no other.
   */
  pairs(modules: readonly StartModule[], value: Value): readonly StartPair[];
}

/** The pair that is taken off a weight before it is quantised, see {@link Start.quantizes}. */
export type LessPair = 'first' | 'nothing' | 'own';

/** The first pair of a module, and for the start of an adapter with a base of its own the pair that is taken off W for that. */
export interface StartPair extends LowRankPair {
  readonly less?: LowRankPair;
}

/** An adapted linear, as a variant sees it. */
export interface VariantModule extends ScaledPair {
  /** Path of the module in the model. */
  readonly name: string;
  readonly linear: Linear;
  /** Rank of the module. */
  readonly r: number;
  /** The adapter's configuration. */
  readonly settings: Settings;
  /** How the update is computed beside the weight in use; see {@link LowRank}. */
  readonly form: PairForm;
  /** The pairs that are added to W, each with its scale and its frozen start; none where the variant has tensors of its own. */
  readonly parts: readonly LowRank[];
  /** The tensor of one of the variant's parameters, or one that all modules share. */
  parameter(key: string): Tensor;
  /** A tensor that depends on no trained value, made once for all modules of the adapter that ask for the same key. */
  constant(key: string, make: () => Tensor): Tensor;
  /** One of the tensors of `Variant.derives`, with the values for the present A and B. It belongs to the module. */
  derived(name: string): Tensor;
}

/** A tensor that a variant trains beside A and B. */
export interface VariantParameter extends TypeTensor {
  readonly trained: true;
  /** Other spellings of the key that files have. */
  readonly alsoReadAs?: readonly string[];
  /** Initial value of the parameter, in f32 (f64 for an f64 weight). The pair has its initial values already. */
  start(module: VariantModule): Tensor;
}

/** A step of a run, before it or after its update. */
export interface TrainingStep {
  /** Number of optimiser steps done before it. */
  readonly step: number;
  readonly totalSteps: number;
  /** Number of micro-batches in its accumulation window. */
  readonly microBatches: number;
}

/** A step whose parameters are updated, its gradients still there. */
export interface UpdatedStep extends TrainingStep {
  /** () f64 by which the update multiplied the gradients (clipping), which `grad` does not contain; null: 1. */
  readonly coefficient: Tensor | null;
}

/** A term of the loss that depends on the trained tensors alone; it is added once a step, whatever the micro-batches. */
export interface VariantTerm {
  /** Its name in the records of steps, which no other term may have. */
  readonly key: string;
  /** Its weight in the loss; 0: it is left out. */
  weight(modules: readonly VariantModule[]): number;
  /** Its value, () on the tape. */
  value(modules: readonly VariantModule[]): Tensor;
}

/**
 * The part of a variant in a run beside its formula, for all modules of an adapter at once. Hooks open scopes of their own. What they keep
 * from step to step is in tensors of the modules, so that a resumed run has it.
 */
export interface VariantTraining {
  readonly term?: VariantTerm;
  /** The reason why the adapter cannot be trained in a run that begins so, as `field and value: fix`; null: it can. */
  refuses?(modules: readonly VariantModule[], first: TrainingStep): string | null;
  /**
   * A number that tells what the hooks do at a step where that depends on the run's length: a run can be given another length if the
   * numbers of all steps done are the same in both. Left out: they do not depend on it.
   */
  plan?(modules: readonly VariantModule[], at: Pick<TrainingStep, 'step' | 'totalSteps'>): number;
  /** Called before the first forward pass of a step. */
  beforeStep?(modules: readonly VariantModule[], at: TrainingStep): void | Promise<void>;
  /** Called when the parameters of a step have been updated. */
  afterStep?(modules: readonly VariantModule[], at: UpdatedStep): void | Promise<void>;
}

/** A checked configuration of an adapter, by the names of its options. */
export type Settings = Readonly<Record<string, unknown>>;

/** The sizes of an adapted linear. */
export interface ModuleSizes {
  readonly inFeatures: number;
  readonly outFeatures: number;
  readonly r: number;
}

/** A tensor that each module of an adapter has. */
export interface TypeTensor {
  /** Its key in a PEFT file, after the module's path. */
  readonly key: string;
  /** Whether it is trained. If not, it keeps its first value, and is saved with the adapter all the same. */
  readonly trained: boolean;
  /** Whether weight decay applies to it. */
  readonly decays: boolean;
  /**
   * Whether it is only what the variant's `training` keeps from step to step (default false): it starts as 0, is part of checkpoints, and
   * no file of an adapter has it.
   */
  readonly isState?: boolean;
  shape(sizes: ModuleSizes): readonly number[];
}

/** The value of `peftType` that stands for a pair A, B. */
export const LORA_TYPE = 'LORA';

/** The tensors of an adapter as its files hold them, where these are others than those in memory. */
export interface FileForm {
  /** The tensors of each module by key, in the modules' order; they belong to the caller. */
  readonly tensors: readonly Readonly<Record<string, Tensor>>[];
  /** Options of the configuration that say what the files hold. */
  readonly settings: Settings;
}

/** The modules of an adapter whose shared tensors are made. */
export interface SharedContext {
  readonly settings: Settings;
  /** The sizes of all adapted modules. */
  readonly modules: readonly ModuleSizes[];
  /** A 48-bit seed that depends on the adapter's seed and the purpose alone. */
  seed(purpose: string): number;
}

/** A frozen tensor that all modules of an adapter share, f32. In a PEFT file it stands once, under `base_model.<key>`. */
export interface SharedTensor {
  readonly key: string;
  shape(context: SharedContext): readonly number[];
  /** Makes it for a fresh adapter. Runs without recording, in a scope, on the modules' device. */
  start(context: SharedContext): Tensor;
}

/**
 * A key of adapter_config.json: the option that it holds, in its own form where the file has another one; the only value that is
 * supported; the value of an idle key, which changes nothing in what the tensors compute, so that another one that was read is written
 * again; or the value that is always written, since it describes the files themselves.
 */
export type ConfigKey =
  | {
      readonly option: string;
      /** Whether the key is written only where the option is not at its default. */
      readonly whereSet?: boolean;
      toFile?(value: never): PythonJson;
      fromFile?(value: unknown): unknown;
    }
  | { readonly only: PythonJson }
  | { readonly idle: PythonJson }
  | { readonly written: PythonJson };

/** A `peft_type`: the tensors that its modules have, and their form in a PEFT folder. */
export interface AdapterType {
  /** The value of `peft_type`, and of the option `peftType` that selects it. */
  readonly peftType: string;
  /** Whether PEFT has it. If not, the name must be none of PEFT's, so that PEFT refuses the file. */
  readonly inPeft: boolean;
  /** Keys of its adapter_config.json beside those that every configuration of PEFT has (config.ts lists these). */
  readonly keys: Readonly<Record<string, ConfigKey>>;
  /** The tensors of each module, in the order in which they are listed. */
  tensors(settings: Settings): readonly TypeTensor[];
  /** Their keys where they are a trained pair A, B, whose first values the starts make (`initLoraWeights`): LoRA's. Left out: `start` does. */
  readonly pair?: { readonly a: string; readonly b: string };
  readonly shared: readonly SharedTensor[];
  /** Rank of every module (default: the options `r` and `rankPattern` say it). */
  rank?(settings: Settings): number;
  /** The scale s (default: alpha / r, or 1 for a type that has no alpha). */
  scale?(settings: Settings, alpha: number): number;
  /** The tensors that a file gets, without states, and options that go with them (default: the tensors in memory). */
  toFile?(modules: readonly VariantModule[]): FileForm;
  /**
   * The tensors of a module from those in a file, where `toFile` is defined. Runs without recording.
   * @throws ArgumentError for tensors that make none
   */
  fromFile?(
    module: { readonly name: string; readonly r: number },
    values: ReadonlyMap<string, Tensor>,
    settings: Settings,
  ): ReadonlyMap<string, Tensor>;
  /**
   * Makes the first values of many modules' tensors by key, f32, in the modules' order, so that the model is unchanged. Runs without
   * recording, in a scope, on the modules' device. States are left out. Left out where there is a `pair`.
   */
  start?(
    modules: readonly StartModule[],
    settings: Settings,
  ): readonly Readonly<Record<string, Tensor>>[];
  /** The reason why a module of these sizes cannot be adapted, as `field and value: fix`; null: it can. */
  refuses(sizes: ModuleSizes, settings: Settings): string | null;
  /** The reason why no fresh adapter starts as the base with these settings, while one from a file can be used; null: it does. */
  refusesStart(sizes: ModuleSizes, settings: Settings): string | null;
  /** The reason why no plain LoRA computes the same, to follow the name of the type; null: one does. */
  loraObstacle(settings: Settings): string | null;
}

/** A form of the adapted linear: its formula, and how it is merged and exported. */
export interface Variant {
  /** The option that selects it among the variants of its type; null: it runs where no other is selected. */
  readonly option: string | null;
  /** The type that it is of: LoRA's (`lora.ts`), or one with tensors of its own, which own_form.ts makes. */
  readonly type: AdapterType;
  /** A line that gives the output y for the input x. */
  readonly formula: string;
  /** Tensors that it trains beside those of its type. */
  readonly parameters: readonly VariantParameter[];
  /** Its part in a run beside its formula (default: none). */
  readonly training?: VariantTraining;
  /** The values of `initLoraWeights` that it needs, in words, where it cannot be combined with the given one; null: it can. */
  refuses(initLoraWeights: unknown): string | null;
  /**
   * The update of a forward, built from that of plain LoRA: the low-rank parts (the pair with its scale and frozen start), and in
   * training the dropout of A's input. Forwards that were recorded are repeated without it.
   */
  update(module: VariantModule, plain: LinearUpdate): LinearUpdate;
  /** Whether a small pair may be multiplied in lower precision as a change of the base (`form` of a low-rank part). */
  readonly pairIsChange: boolean;
  /**
   * Functions of A and B that the micro-batches of a step share, by name (default: none). Each is computed without recording when it is
   * first asked for, and again after A or B was written: into the same tensor, which passes that were recorded read.
   */
  readonly derives?: Readonly<Record<string, (module: VariantModule) => Tensor>>;
  /**
   * The phase that a module is in, where `update` has other parts in one phase of a run than in another (default: it has the same ones
   * throughout). Passes that were recorded in one phase are not repeated in another.
   */
  phase?(module: VariantModule): string;
  /** The weight of the equivalent linear without an adapter, f64, from the base's weight in f64. */
  mergedWeight(module: VariantModule, base: Tensor): Tensor;
  /** The bias of the equivalent linear, f64; null: that of the base. @throws ArgumentError where it cannot be merged */
  mergedBias(module: VariantModule): Tensor | null;
  /**
   * The pair of the export `lora`: with the module's scale and the variant's parameters beside it, it computes the same on the
   * untouched base. Its rank is a multiple of the module's. Tensors that are not the module's own are freed after writing.
   */
  toLora(module: VariantModule): LowRankPair;
  /**
   * The reason why there is no export `residual` (a pair of rank r on the base minus the initial pair), as `name: reason`; null:
   * there is one where the start is computed from the weights.
   */
  readonly residualObstacle: string | null;
}

/** A tensor that is trained, with weight decay. */
export function trainedTensor(key: string, shape: TypeTensor['shape']): TypeTensor {
  return { key, trained: true, decays: true, shape };
}

/** A tensor that stays as it starts. */
export function frozenTensor(key: string, shape: TypeTensor['shape']): TypeTensor {
  return { key, trained: false, decays: false, shape };
}

/** The tensors of a module of a variant: those of its type, and those beside them. */
export function tensorsOf({ type, parameters }: Variant, settings: Settings): TypeTensor[] {
  return [...type.tensors(settings), ...parameters];
}

/** The keys of the tensors that a module of a variant has in files. */
export function fileKeys(variant: Variant, settings: Settings): string[] {
  return tensorsOf(variant, settings).flatMap(({ key, isState }) => (isState ? [] : [key]));
}

/** A rule that computes the scale s = alpha / divisor(r) from alpha and the rank. */
export interface Scaling {
  /** The option that selects it; null: it holds where no other is selected. */
  readonly option: string | null;
  /**
   * The divisor, which is multiplicative, divisor(k r) = divisor(k) divisor(r): exports of k times the rank keep s with alpha
   * times divisor(k).
   */
  divisor(r: number): number;
}

/** A fine-tuning method, under the name that `--method` and `resolveMethod` accept. */
export interface Method<
  Name extends string = string,
  Options extends Readonly<Record<string, MethodOption>> = Readonly<Record<string, MethodOption>>,
  Starts extends readonly Start[] = readonly Start[],
> {
  readonly name: Name;
  /** A line that describes the method. */
  readonly title: string;
  /** A paragraph for the page of methods: what it changes, when to take it, what it costs. */
  readonly about: string;
  /** The difference of PEFT 0.21's method of this name, as a clause for the page of methods (default: none). */
  readonly differs?: string;
  /** Publication of the method, such as `arXiv 2106.09685`; null: none in particular. */
  readonly source: string | null;
  /** The version of balora that introduced the name. */
  readonly since: string;
  /** Settings of the adapter's configuration that the name stands for; null: no adapter, every weight is trained. */
  readonly adapter: MethodPreset | null;
  /** Settings of the regularizers that the name stands for, by task (default: none, so no regularizer runs). */
  readonly regularizers?: Readonly<Record<string, Readonly<Record<string, number>>>>;
  /** Settings of the run's optimisation that the name stands for, such as `optim` (default: none). */
  readonly optimization?: Readonly<Record<string, string | number>>;
  /** Options of the adapter's configuration that it adds. */
  readonly options?: Options;
  /** Values of `initLoraWeights` that it adds. */
  readonly starts?: Starts;
  /** Variants of the adapted linear that it adds. */
  readonly variants?: readonly Variant[];
  /** The scaling that it adds. */
  readonly scaling?: Scaling;
}

/** A method, checked by the compiler; see {@link Method}. */
export function defineMethod<
  const Name extends string,
  const Options extends Readonly<Record<string, MethodOption>> = Readonly<
    Record<never, MethodOption>
  >,
  const Starts extends readonly Start[] = readonly [],
>(method: Method<Name, Options, Starts>): Method<Name, Options, Starts> {
  return Object.freeze(method);
}

/** An initialisation of A and B, checked by the compiler; see {@link Start}. */
export function defineStart<Value extends boolean | string>(start: Start<Value>): Start<Value> {
  return Object.freeze(start);
}

/** A start that has a name and no other values. */
export function defineNamedStart<const Value extends string>(
  value: Value,
  start: Omit<Start<Value>, 'shown' | 'accepts'>,
): Start<Value> {
  const accepts = (given: boolean | string): given is Value => given === value;
  return defineStart<Value>({ shown: [value], accepts, ...start });
}

/** Refuses a word that is none of the choices. @throws ArgumentError */
export function checkChoice(name: string, choices: readonly string[], given: unknown): void {
  if (choices.includes(given as string)) return;
  throw new ArgumentError(`${name} must be one of ${choices.join(', ')}, got ${shown(given)}`);
}
