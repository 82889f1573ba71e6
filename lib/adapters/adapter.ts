/** One named adapter: its configuration, the linear modules it adapts and the modules it replaces. */
import type { Model } from '../models/index.ts';
import { copy_ } from '../ops/index.ts';
import { noGrad, type Tensor } from '../tensor.ts';
import { type AdaptedLinear, type AdapterState, stateName } from './adapted_linear.ts';
import { checkSameTensors, isOfHead } from './attach.ts';
import { configIdentity, type LoraConfig } from './config.ts';
import { FIRST_KEYS, LESS_KEYS } from './low_rank.ts';
import type { MergedLinear } from './merged_weights.ts';
import { type MethodName, variantOf } from './methods/registry.ts';
import type { SavedModules } from './saved_modules.ts';
import type { NamedTensor, TunedModel } from './tuned_model.ts';

/** The parts of an {@link Adapter}. */
export interface AdapterParts {
  readonly config: LoraConfig;
  readonly modules: readonly AdaptedLinear[];
  readonly saved: SavedModules | null;
  readonly shared: AdapterState;
  /** Name of the method whose regularizers a Trainer uses by default; null: none was named. */
  readonly method: MethodName | null;
  /** Warnings for the user about a loaded adapter. */
  readonly warnings: readonly string[];
  /** Digest of the values that the caller's own start function returned; null: the configuration names the start. */
  readonly startDigest: string | null;
  /** Identity of the calibration that the start was computed from; null: none. */
  readonly calibration: string | null;
  /** How the model before tuning is made from a base that is a residual; null: that model is the base itself. */
  readonly residual: ResidualTeacher | null;
  /** Digest of the codes and the first pairs of an adapter that was read; null: it has none, or its start says which. */
  readonly quantizedDigest: number | null;
}

/** The teacher of an adapter on a residual: the digest of its first pairs, or null if these are not there. */
export interface ResidualTeacher {
  readonly digest: string | null;
}

/** One adapter by its name: its configuration, the linear modules it adapts and the modules it replaces. */
export class Adapter {
  constructor(
    readonly name: string,
    readonly parts: AdapterParts,
  ) {}

  /** Whether the model before tuning is known. */
  get hasTeacher(): boolean {
    return this.parts.residual === null || this.parts.residual.digest !== null;
  }

  /** Switches the adapter on or off; while it is off, the model computes with the base alone. */
  setEnabled(enabled: boolean): void {
    if (enabled === this.parts.shared.enabled) return;
    this.parts.shared.enabled = enabled;
    if (enabled) this.parts.saved?.attach();
    else this.parts.saved?.detach();
  }

  /** Installs the adapter on its linear modules and switches it on. */
  attach(): void {
    for (const module of this.parts.modules) module.linear.adapter = module;
    this.setEnabled(true);
  }

  /** Switches the adapter off and removes it from its linear modules. */
  detach(): void {
    this.setEnabled(false);
    for (const module of this.parts.modules) {
      if (module.linear.adapter === module) module.linear.adapter = null;
    }
  }

  /** Facts that must match for a saved training state to be restored, as plain JSON. */
  identity(): Record<string, unknown> {
    const { config, startDigest, shared, calibration, residual, modules } = this.parts;
    return {
      method: 'adapter',
      adapter: configIdentity(config, startDigest),
      adapterSeed: shared.seed,
      ...(calibration !== null && { calibration }),
      ...(residual !== null && { residualTeacher: residual.digest }),
      ...(modules.some(({ quantized }) => quantized !== null) && {
        quantizedTeacher: this.parts.quantizedDigest ?? 'start',
      }),
    };
  }

  /** Whether the adapter trains the head of the model. */
  trainsHead(model: Model): boolean {
    return (this.parts.saved?.parameters ?? []).some(({ name }) => isOfHead(model, name));
  }

  /** The reason why its passes cannot be recorded as graphs; null: they can. */
  get graphObstacle(): string | null {
    if (this.parts.shared.dropout > 0) return 'loraDropout > 0 drops other inputs in each pass';
    return this.parts.saved?.graphObstacle ?? null;
  }

  /** See {@link TunedModel.beforeRecorded}. */
  beforeRecorded(): string {
    for (const module of this.parts.modules) module.renewDerived();
    const { phase } = variantOf(this.parts.config);
    return phase === undefined ? '' : [...new Set(this.parts.modules.map(phase))].join(', ');
  }

  /** Trained tensors of every module (A, B and those of its variant), then the parameters of modules that are saved whole. */
  parameters(): readonly NamedTensor[] {
    return [
      ...this.parts.modules.flatMap((module) => module.trained()),
      ...(this.parts.saved?.parameters ?? []),
    ];
  }

  /** The trained tensors, the frozen first pairs, and the other tensors that are kept as they started, by name. */
  state(): Record<string, Tensor> {
    const state: Record<string, Tensor> = Object.fromEntries(this.parts.shared.tensors);
    const kept = this.parts.modules.flatMap((module) => module.kept());
    for (const { name, tensor } of [...this.parameters(), ...kept]) state[name] = tensor;
    for (const { name, frozen, quantized } of this.parts.modules) {
      for (const [pair, keys] of [
        [frozen, FIRST_KEYS],
        [quantized?.own, LESS_KEYS],
      ] as const) {
        if (!pair) continue;
        state[stateName(name, keys.a)] = pair.a;
        state[stateName(name, keys.b)] = pair.b;
      }
    }
    return state;
  }

  /** Copies the values of an earlier state(). @throws FormatError if names or shapes differ */
  restore(tensors: Readonly<Record<string, Tensor>>, path: string): void {
    const current = this.state();
    checkSameTensors(current, tensors, path);
    noGrad(() => {
      for (const [name, target] of Object.entries(current)) copy_(target, tensors[name] as Tensor);
    });
    for (const { quantized } of this.parts.modules) quantized?.renew();
    this.#dropConstants();
    this.parts.saved?.refresh();
  }

  /**
   * Removes the adapter from the model and leaves its result there: the merged tensors and the trained modules take the place of
   * the base's for good. Frees the tensors that they replace and all others of the adapter.
   */
  unload(merged: readonly MergedLinear[]): void {
    this.detach();
    this.parts.saved?.unload();
    for (const { linear, weight, bias } of merged) {
      linear.weight.dispose();
      linear.weight = weight.freeze();
      if (bias === null) continue;
      linear.bias?.dispose();
      linear.bias = bias.freeze();
    }
    this.#disposeTensors();
  }

  /** Removes the adapter from the model and frees its tensors; the base's weights stay. */
  dispose(): void {
    this.detach();
    this.#disposeTensors();
    this.parts.saved?.dispose();
  }

  #disposeTensors(): void {
    for (const module of this.parts.modules) module.dispose();
    for (const tensor of this.parts.shared.tensors.values()) tensor.dispose();
    this.#dropConstants();
  }

  /** Frees what was computed from tensors that are not trained, which restore() may have replaced. */
  #dropConstants(): void {
    for (const tensor of this.parts.shared.constants.values()) tensor.dispose();
    this.parts.shared.constants.clear();
  }
}
