/**
 * A frozen base with low-rank adapters on its linear modules. The model's code knows nothing about adapters: an adapter installs
 * itself on Linear modules, and switching it off gives the base back, which serves as the teacher.
 *
 * PiSSA starts from B0 A0, the best approximation of W of rank r. It runs as W + s (B A - B0 A0) on the unchanged base, so that
 * student, teacher and all adapters share one base, the teacher is a plain pass of it, the KL is exactly 0 before the first step,
 * and the export is exact. The cost is r more columns in the student's pass (docs/decisions has the measurement against a residual
 * base, W_res + s B A).
 *
 * Several adapters may live on one base. One of them is active: it is the one that runs, is trained and is saved.
 */
import { ArgumentError } from '../errors.ts';
import { refuseInUse } from '../models/in_use.ts';
import type { CausalLM, Model } from '../models/index.ts';
import { checkArgument, checkCall, kCall, oneOf } from '../options/call.ts';
import { synchronize } from '../runtime.ts';
import type { Tensor } from '../tensor.ts';
import type { AdaptedLinear } from './adapted_linear.ts';
import type { Adapter, ResidualTeacher } from './adapter.ts';
import { firstAdapter } from './attach.ts';
import type { LoraConfig } from './config.ts';
import { type ConvertedModule, type ConvertOptions, convertToLora } from './convert.ts';
import { type AdapterConfigInput, type CreateOptions, createAdapter } from './create.ts';
import { checkAsLora, checkResidual, saveAsLora, savePlain, saveResidual } from './export.ts';
import { type LoadOptions, readAdapter } from './load.ts';
import { checkMergeable, mergedLinears } from './merged_weights.ts';
import { methodTraining } from './method_training.ts';
import { type MethodName, variantOf } from './methods/registry.ts';
import type { SavedModules } from './saved_modules.ts';
import type {
  ExportForm,
  MethodTraining,
  NamedTensor,
  TrainingPass,
  TunedModel,
} from './tuned_model.ts';

export { AdaptedLinear } from './adapted_linear.ts';
export { LoraModule } from './lora_module.ts';
export type { AdapterConfigInput, CreateOptions, LoadOptions };

/**
 * A model with low-rank adapters on its linear modules, its own weights frozen. Made by {@link AdapterModel.create} or
 * {@link AdapterModel.fromPretrained}. Several adapters may live on one base; one is active.
 */
export class AdapterModel<M extends Model = CausalLM> implements TunedModel<M> {
  readonly kind = 'adapter';
  readonly teacherBytes = 0;
  readonly #adapters = new Map<string, Adapter>();
  #activeAdapter: Adapter;
  #enabled = true;
  /** Names of the adapters that are being added. */
  readonly #pendingNames = new Set<string>();
  /** The reason why the adapters cannot be used, as the end of a message; null: they can. */
  #unavailable: string | null = null;
  #disposed = false;

  private constructor(
    readonly model: M,
    first: Adapter,
  ) {
    this.#adapters.set(first.name, first);
    this.#activeAdapter = first;
    first.attach();
  }

  /**
   * Adds a new adapter to a model and freezes the model's own weights.
   * @example const tuned = await AdapterModel.create(model, { method: 'balora', r: 8, loraAlpha: 8 });
   * @throws ArgumentError if targets match nothing, a rank exceeds a matrix, or a module has an adapter already
   */
  static async create<M extends Model>(
    model: M,
    config: AdapterConfigInput = {},
    options: CreateOptions = {},
  ): Promise<AdapterModel<M>> {
    return firstAdapter(model, async () => {
      return new AdapterModel(model, await createAdapter(model, config, options));
    });
  }

  /**
   * Adds the adapter of a folder to a model: of a PEFT folder, or of a checkpoint of a run (`run/checkpoints/step-<number>` in its
   * output folder). Ranks come from the tensors; every tensor must belong to a module of the model.
   * @throws FormatError for files that are damaged or do not fit the model, UnsupportedError for settings that are not supported
   */
  static async fromPretrained<M extends Model>(
    model: M,
    folder: string,
    options: LoadOptions = {},
  ): Promise<AdapterModel<M>> {
    return firstAdapter(model, async () => {
      return new AdapterModel(model, await readAdapter(model, folder, options));
    });
  }

  /**
   * Adds another new adapter; the active one stays active. Until the promise is settled, the model runs without adapters.
   * @throws ArgumentError as create(), for a name that is taken, and during a run of a Trainer
   */
  async addAdapter(
    name: string,
    config: AdapterConfigInput = {},
    options: CreateOptions = {},
  ): Promise<void> {
    await this.#adding(name, () => createAdapter(this.model, config, { ...options, name }));
  }

  /** Adds the adapter of a folder beside the present ones; the active one stays active. @throws as fromPretrained() */
  async loadAdapter(folder: string, name: string, options: LoadOptions = {}): Promise<void> {
    await this.#adding(name, () => readAdapter(this.model, folder, { ...options, name }));
  }

  /** Names of all adapters, in the order in which they were added. */
  get names(): readonly string[] {
    return [...this.#adapters.keys()];
  }

  /** Name of the adapter that runs. */
  get active(): string {
    return this.#active.name;
  }

  /**
   * Makes another adapter the active one. A run's gradients, moments and checkpoints belong to the adapter that it began with.
   * @throws ArgumentError for an unknown name, and during a run of a Trainer
   */
  setAdapter(name: string): void {
    const next = this.#named(name);
    if (next === this.#active) return;
    refuseInUse(this.model, 'setAdapter');
    this.#active.detach();
    this.#activeAdapter = next;
    next.attach();
    this.#apply();
  }

  /**
   * Runs `body` with an adapter in the place of the active one, switched on and without dropout; afterwards everything is as before.
   * `body` must be synchronous, since between awaits other code uses the model.
   * @throws ArgumentError for an unknown name
   */
  withAdapter<T>(name: string, body: () => T): T {
    const adapter = this.#named(name);
    const active = this.#active;
    const { shared } = adapter.parts;
    const [enabled, pass, dropsInputs] = [shared.enabled, shared.pass, this.model.dropsInputs];
    try {
      if (adapter !== active) active.detach();
      adapter.attach();
      shared.pass = null;
      this.model.dropsInputs = false;
      return body();
    } finally {
      shared.pass = pass;
      this.model.dropsInputs = dropsInputs;
      if (adapter === active) {
        adapter.setEnabled(enabled);
      } else {
        adapter.detach();
        active.attach();
        this.#apply();
      }
    }
  }

  /** Removes an adapter from the model and frees its tensors. @throws ArgumentError for the active one */
  deleteAdapter(name: string): void {
    const adapter = this.#named(name);
    if (adapter === this.#active) {
      throw new ArgumentError(
        `the adapter "${name}" is active; make another one active with setAdapter() before deleting it`,
      );
    }
    this.#adapters.delete(name);
    adapter.dispose();
  }

  /** The method that the active adapter was made with; null: none was named. */
  get method(): MethodName | null {
    return this.#active.parts.method;
  }

  /** Configuration of the active adapter. */
  get config(): LoraConfig {
    return this.#active.parts.config;
  }

  /** Adapted linear modules of the active adapter. */
  get modules(): readonly AdaptedLinear[] {
    return this.#active.parts.modules;
  }

  /** Modules that the active adapter trains and saves whole; null: none. */
  get saved(): SavedModules | null {
    return this.#active.parts.saved;
  }

  /** How the teacher is made where the active adapter belongs on a residual; null: its base is the teacher. */
  get residual(): ResidualTeacher | null {
    return this.#active.parts.residual;
  }

  /** Warnings for the user about the active adapter, if it was loaded. */
  get warnings(): readonly string[] {
    return this.#active.parts.warnings;
  }

  /** Whether the model before tuning is known: for a pair on a residual, only with its first values beside it. */
  get hasTeacher(): boolean {
    return this.#active.hasTeacher;
  }

  get trainsHead(): boolean {
    return this.#active.trainsHead(this.model);
  }

  get methodTraining(): MethodTraining | null {
    const { config, modules } = this.#active.parts;
    return methodTraining(variantOf(config), modules);
  }

  get graphObstacle(): string | null {
    return this.#active.graphObstacle;
  }

  beforeRecorded(): string {
    return this.#active.beforeRecorded();
  }

  /** Master tensors of the active adapter: A and B as `<module>.lora_A` and `<module>.lora_B`, and anything else it trains. */
  parameters(): readonly NamedTensor[] {
    return this.#active.parameters();
  }

  /**
   * Runs `body` on the teacher: the base as it was loaded, with the adapter switched off. For an adapter whose base is a residual,
   * the teacher is the base with the adapter's first pairs, which are the model before tuning.
   */
  withTeacher<T>(body: (teacher: M) => T): T {
    const { shared } = this.#active.parts;
    const before = this.#enabled;
    this.enabled = false;
    shared.teaches = true;
    try {
      return body(this.model);
    } finally {
      shared.teaches = false;
      this.enabled = before;
    }
  }

  /** Whether the adapter is applied; switch it off to use the base alone. It is never applied while another is being added. */
  get enabled(): boolean {
    return this.#enabled;
  }

  set enabled(value: boolean) {
    this.#checkAvailable();
    this.#enabled = value;
    this.#apply();
  }

  trainingPass(pass: TrainingPass | null): void {
    const { shared } = this.#active.parts;
    shared.pass = pass;
    this.model.dropsInputs = pass !== null && shared.dropout > 0;
  }

  collectGradients(): void {
    this.#active.parts.saved?.collectGradients();
  }

  zeroGradients(): void {
    for (const { tensor } of this.parameters()) tensor.grad = null;
    this.#active.parts.saved?.zeroGradients();
  }

  afterStep(): void {
    this.#active.parts.saved?.refresh();
  }

  state(): Record<string, Tensor> {
    return this.#active.state();
  }

  restore(tensors: Readonly<Record<string, Tensor>>, path: string): void {
    this.#active.restore(tensors, path);
  }

  identity(): Record<string, unknown> {
    return this.#active.identity();
  }

  checkForm(form: ExportForm): void {
    if (form === 'residual') checkResidual(this);
    if (form === 'plain-lora') checkAsLora(this);
  }

  /**
   * Writes the active adapter's adapter_config.json and adapter_model.safetensors as PEFT does.
   * @param options form: `lora`: one pair on the untouched base, PiSSA as [A;A0], [B|-B0] of rank 2r; a method without a pair (VeRA)
   *   writes its own tensors. `plain-lora`: a pair in any case. `residual`: PiSSA's pair of rank r, with the residual model that it is
   *   added to in `residual/` and its initial values in `initial/`. place: the path to which the caller will move the folder, since the
   *   form `residual` names its own path in a file. Default: `folder`, which is not moved
   * @throws UnsupportedError for an adapter that has no such form
   */
  async savePretrained(
    folder: string,
    options: { form?: ExportForm; place?: string } = {},
  ): Promise<void> {
    checkArgument('savePretrained: the folder', kCall.path, folder);
    checkCall('savePretrained', options, {
      form: oneOf(['lora', 'plain-lora', 'residual']),
      place: kCall.path,
    });
    const { form = 'lora', place = folder } = options;
    const save = { lora: savePlain, 'plain-lora': saveAsLora, residual: saveResidual }[form];
    await save(this, folder, place);
  }

  /**
   * Writes the active adapter as a plain LoRA, whatever its method: of its own ranks where that is exact, and otherwise, or where ranks
   * are chosen, the leading singular triplets of what it changes in each weight.
   * @returns a line for each module: its rank and its error
   * @throws ArgumentError with both a rank and an energy; UnsupportedError for an adapter that changes a bias
   */
  convertToLora(folder: string, options: ConvertOptions = {}): Promise<readonly ConvertedModule[]> {
    return convertToLora(this, folder, options);
  }

  /**
   * Merges the active adapter into the weights of the base, as PEFT's merge_and_unload() does, and returns the base, which then
   * has no adapter: the others are removed, too, and the tensors of all are freed. Modules that the active adapter trained whole
   * (`modulesToSave`, a classifier's head) stay in the model. Each merged weight is computed in f64, rounded to the model's dtype
   * once and frozen; in bf16, rounding can erase a small update completely.
   *
   * Until the promise is settled, the merged weights take memory beside those that they replace; if it is rejected, nothing has
   * changed. Afterwards this object has no adapter: dispose() does nothing, and what needs an adapter throws. The model may be
   * given new adapters. Their files name the original base unless the model is first saved with {@link saveModel}
   * and loaded from there.
   * @example const merged = await tuned.mergeAndUnload();
   * @throws ArgumentError for loraBias on a layer without a bias, and during a run of a Trainer or addAdapter(); UnsupportedError
   *   for a trained head that the base ties; NativeError if there is not enough memory
   */
  async mergeAndUnload(): Promise<M> {
    const active = this.#active;
    if (active.parts.shared.pass !== null || this.#pendingNames.size > 0) {
      throw new ArgumentError(
        'mergeAndUnload: a training step runs or an adapter is being added; await its end first',
      );
    }
    refuseInUse(this.model, 'mergeAndUnload');
    checkMergeable(this);
    const merged = mergedLinears(active.parts.modules);
    this.#unavailable = 'is being merged into its base; await mergeAndUnload() first';
    try {
      await synchronize(this.model.device);
    } catch (error) {
      for (const { weight, bias } of merged) {
        weight.dispose();
        bias?.dispose();
      }
      this.#unavailable = null;
      throw error;
    }
    this.#unavailable =
      'was merged into its base by mergeAndUnload(); use the model that it returned, or give that a new adapter';
    for (const other of this.#adapters.values()) if (other !== active) other.dispose();
    active.unload(merged);
    this.model.stored = null;
    this.#adapters.clear();
    return this.model;
  }

  /** Removes all adapters from the model and frees their tensors. @throws ArgumentError during a run of a Trainer */
  dispose(): void {
    if (this.#adapters.size > 0) this.#checkAvailable();
    refuseInUse(this.model, 'dispose');
    this.#disposed = true;
    for (const adapter of this.#adapters.values()) adapter.dispose();
  }

  async #adding(name: string, make: () => Promise<Adapter>): Promise<void> {
    this.#checkAvailable();
    this.#refuseDisposed(name);
    refuseInUse(this.model, 'addAdapter');
    if (this.#adapters.has(name)) {
      throw new ArgumentError(`there is an adapter "${name}" already; give this one another name`);
    }
    if (this.#pendingNames.has(name)) {
      throw new ArgumentError(
        `an adapter "${name}" is being added already; give this one another name`,
      );
    }
    this.#pendingNames.add(name);
    this.#apply();
    try {
      const adapter = await make();
      if (this.#disposed) adapter.dispose();
      this.#refuseDisposed(name);
      this.#adapters.set(name, adapter);
    } finally {
      this.#pendingNames.delete(name);
      this.#apply();
    }
  }

  /** Switches the active adapter on or off: an adapter that is being added is made from the base alone. */
  #apply(): void {
    if (this.#disposed || this.#unavailable !== null) return;
    this.#active.setEnabled(this.#enabled && this.#pendingNames.size === 0);
  }

  #refuseDisposed(name: string): void {
    if (!this.#disposed) return;
    throw new ArgumentError(
      `the adapter "${name}" cannot be added: the AdapterModel was disposed of`,
    );
  }

  /** The active adapter. @throws ArgumentError once it was merged, and while it is being merged */
  get #active(): Adapter {
    this.#checkAvailable();
    return this.#activeAdapter;
  }

  #checkAvailable(): void {
    if (this.#unavailable !== null) throw new ArgumentError(`the adapter ${this.#unavailable}`);
  }

  #named(name: string): Adapter {
    this.#checkAvailable();
    const adapter = this.#adapters.get(name);
    if (adapter !== undefined) return adapter;
    throw new ArgumentError(`there is no adapter "${name}"; known: ${this.names.join(', ')}`);
  }
}
