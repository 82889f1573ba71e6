/**
 * A frozen base with low-rank adapters on its linear modules. The model knows nothing of it: an adapter hooks a Linear,
 * and switching the hooks off gives the base back, which is the teacher.
 *
 * PiSSA starts from W's own best rank-r part B0 A0. It runs as W + s (B A - B0 A0) on the untouched base: one base for
 * student, teacher and every adapter, a teacher that is the plain base pass, a step-0 KL of exactly 0 and an exact
 * export, for r more columns in the student's pass (docs/decisions has the measurement against W_res + s B A).
 */
import type { CausalLM, Model } from '../models/index.ts';
import type { LinearAdapter, LowRankUpdate } from '../nn/adapter_hook.ts';
import type { Linear } from '../nn/linear.ts';
import { copy_ } from '../ops/index.ts';
import { synchronize } from '../runtime.ts';
import { noGrad, type Tensor } from '../tensor.ts';
import {
  checkSameTensors,
  checkShapes,
  freeLinears,
  freezeBase,
  initialPair,
  linearNamed,
  refuseHead,
  trainablePair,
} from './attach.ts';
import {
  keepsBase,
  type LoraConfig,
  type LoraConfigInput,
  loraConfig,
  loraScale,
  refuseTrainingDropout,
} from './config.ts';
import { savePlain, saveResidual } from './export.ts';
import type { LowRankPair } from './init.ts';
import { readPeftFolder } from './peft_folder.ts';
import { moduleSettings, resolveTargets } from './targets.ts';
import type { ExportForm, NamedTensor, TunedModel } from './tuned_model.ts';

/** One adapted linear: its pair, and what W holds of it already. */
export class LoraModule implements LinearAdapter {
  constructor(
    readonly name: string,
    readonly linear: Linear,
    readonly pair: LowRankPair,
    readonly frozen: LowRankPair | null,
    /** s, and the alpha that it came from: s = alpha / r, rank-stabilised alpha / sqrt(r). */
    readonly scale: number,
    readonly alpha: number,
    /** Shared by all modules of one adapter. */
    private readonly power: { on: boolean },
  ) {}

  get r(): number {
    return this.pair.a.shape[0] as number;
  }

  update(): LowRankUpdate | null {
    if (!this.power.on) return null;
    const { pair, frozen, scale } = this;
    return frozen === null ? { ...pair, scale } : { ...pair, scale, frozen };
  }

  /** All that the module owns: what is trained and what it started from. */
  tensors(): Tensor[] {
    const { pair, frozen } = this;
    return [pair.a, pair.b, ...(frozen === null ? [] : [frozen.a, frozen.b])];
  }
}

/** Options of {@link AdapterModel.create}. */
export interface CreateOptions {
  /** Of the adapter's first values (default 42). */
  seed?: number;
}

/** Options of {@link AdapterModel.load}. */
export interface LoadOptions extends CreateOptions {
  /** Keys of adapter_config.json that the caller knows to be harmless although they are not understood. */
  ignoreKeys?: readonly string[];
}

/** See the head of the file. Made by {@link AdapterModel.create} or {@link AdapterModel.load}. */
export class AdapterModel<M extends Model = CausalLM> implements TunedModel<M> {
  readonly kind = 'adapter';
  readonly trainsHead = false;
  readonly hasTeacher = true;
  readonly teacherBytes = 0;

  private constructor(
    readonly model: M,
    readonly config: LoraConfig,
    readonly modules: readonly LoraModule[],
    private readonly power: { on: boolean },
    private readonly seed: number,
    /** What the user should know about a loaded adapter. */
    readonly warnings: readonly string[],
  ) {
    for (const module of modules) module.linear.adapter = module;
    freezeBase(model);
  }

  /**
   * Adds fresh adapters to a model and freezes its own weights.
   * @throws ArgumentError if targets match nothing, a rank exceeds a matrix, or a module has an adapter already
   */
  static async create<M extends Model>(
    model: M,
    config: LoraConfigInput = {},
    { seed = 42 }: CreateOptions = {},
  ): Promise<AdapterModel<M>> {
    const checked = loraConfig(config);
    refuseTrainingDropout(checked);
    const linears = freeLinears(model);
    const targets = resolveTargets(checked, linears);
    const power = { on: true };
    const modules: LoraModule[] = [];
    for (const { name, r, scale, alpha } of targets) {
      const linear = linearNamed(linears, name, 'targetModules');
      refuseHead(model, name);
      const initial = initialPair(checked, { name, r, scale, linear, seed });
      const pair = trainablePair(initial);
      const frozen = initial.fromWeight ? initial : null;
      if (frozen === null) for (const tensor of [initial.a, initial.b]) tensor.dispose();
      modules.push(new LoraModule(name, linear, pair, frozen, scale, alpha, power));
      await synchronize();
    }
    return new AdapterModel(model, checked, modules, power, seed, []);
  }

  /**
   * Adds the adapter of a PEFT folder to a model. Ranks come from the tensors; every tensor must find its module.
   * @throws FormatError, UnsupportedError for a folder that cannot be understood whole
   */
  static async load<M extends Model>(
    model: M,
    folder: string,
    options: LoadOptions = {},
  ): Promise<AdapterModel<M>> {
    const { config, pairs } = await readPeftFolder(folder, options);
    const { seed = 42 } = options;
    const plain = keepsBase(config.initLoraWeights);
    const linears = freeLinears(model);
    const settings = moduleSettings(config);
    const power = { on: true };
    const modules: LoraModule[] = [];
    for (const [name, loaded] of pairs) {
      const linear = linearNamed(linears, name, folder);
      refuseHead(model, name);
      checkShapes(name, loaded, linear, folder);
      const { alpha } = settings(name);
      const r = loaded.a.shape[0] as number;
      const scale = loraScale(alpha, r, config.useRslora);
      const frozen = plain ? null : initialPair(config, { name, r, scale, linear, seed });
      const pair = trainablePair(loaded);
      for (const tensor of [loaded.a, loaded.b]) tensor.dispose();
      modules.push(new LoraModule(name, linear, pair, frozen, scale, alpha, power));
      await synchronize();
    }
    const warnings = plain ? [] : [residualWarning(config, folder)];
    return new AdapterModel(model, config, modules, power, seed, warnings);
  }

  /** The pairs A, B of every module, by `<module>.lora_A` and `<module>.lora_B`. */
  parameters(): readonly NamedTensor[] {
    return this.modules.flatMap(({ name, pair }) => [
      { name: `${name}.lora_A`, tensor: pair.a },
      { name: `${name}.lora_B`, tensor: pair.b },
    ]);
  }

  /** Runs `body` with the adapter switched off: on the base as it was loaded. */
  withTeacher<T>(body: (teacher: M) => T): T {
    const before = this.power.on;
    this.power.on = false;
    try {
      return body(this.model);
    } finally {
      this.power.on = before;
    }
  }

  /** Whether the adapter takes part; switch it off to look at the base. */
  get enabled(): boolean {
    return this.power.on;
  }

  set enabled(value: boolean) {
    this.power.on = value;
  }

  collectGradients(): void {}

  afterStep(): void {}

  state(): Record<string, Tensor> {
    const state: Record<string, Tensor> = {};
    for (const { name, pair, frozen } of this.modules) {
      state[`${name}.lora_A`] = pair.a;
      state[`${name}.lora_B`] = pair.b;
      if (frozen !== null) {
        state[`${name}.initial_A`] = frozen.a;
        state[`${name}.initial_B`] = frozen.b;
      }
    }
    return state;
  }

  restore(tensors: Readonly<Record<string, Tensor>>, path: string): void {
    const current = this.state();
    checkSameTensors(current, tensors, path);
    noGrad(() => {
      for (const [name, target] of Object.entries(current)) {
        copy_(target, tensors[name] as Tensor);
      }
    });
  }

  identity(): Record<string, unknown> {
    const { baseModelNameOrPath: _, ...config } = this.config;
    return { method: 'adapter', adapter: config, adapterSeed: this.seed };
  }

  /**
   * Writes adapter_config.json and adapter_model.safetensors as PEFT does.
   * @param options form: `lora`: one pair on the untouched base, PiSSA as [A;A0], [B|-B0] of rank 2r. `residual`: PiSSA's
   *   pair of rank r, with the residual model that it belongs on in `residual/` and its first values in `initial/`.
   */
  async save(folder: string, { form = 'lora' }: { form?: ExportForm } = {}): Promise<void> {
    await (form === 'lora' ? savePlain(this, folder) : saveResidual(this, folder));
  }

  /** Takes the adapter off the model and frees its tensors. */
  dispose(): void {
    for (const module of this.modules) {
      if (module.linear.adapter === module) module.linear.adapter = null;
      for (const tensor of module.tensors()) tensor.dispose();
    }
  }
}

function residualWarning(config: LoraConfig, folder: string): string {
  return (
    `${folder}: the adapter was saved as initLoraWeights "${String(config.initLoraWeights)}", so it belongs on a residual ` +
    'that is computed again from this base, as PEFT does; export it as a plain LoRA to be independent of that'
  );
}
