/**
 * Full fine-tuning: every weight of the model is trained. The optimiser works on f32 masters; a model in bf16 computes
 * with rounded copies that are written anew after each step. A teacher is a second, frozen model.
 */
import { ArgumentError, UnsupportedError } from '../errors.ts';
import { type CausalLM, Model, saveModel } from '../models/index.ts';
import { copy_ } from '../ops/index.ts';
import { checkCall, instanceOf } from '../options/call.ts';
import { noGrad, Tensor } from '../tensor.ts';
import { checkNoAdapters, checkSameTensors, freezeBase } from './attach.ts';
import {
  collectGradients,
  decaysIn,
  graphObstacle,
  refreshWorking,
  type TrainedParameter,
  trainedParameter,
  zeroGradients,
} from './trained_parameter.ts';
import type { NamedTensor, TunedModel } from './tuned_model.ts';

/** Full fine-tuning: every weight is trained, through f32 masters. */
export class FullModel<M extends Model = CausalLM> implements TunedModel<M> {
  readonly kind = 'full';
  readonly method = 'full';
  readonly trainsHead = true;
  private readonly trained: readonly TrainedParameter[];

  /**
   * Makes every parameter of `model` trainable. Its tensors are replaced by copies, since loaded ones may alias the pages of a
   * mapped file.
   * @param options.teacher the same model, loaded a second time; frozen here. Needed for a consistency weight.
   */
  constructor(
    readonly model: M,
    private readonly options: { teacher?: M } = {},
  ) {
    checkNoAdapters(model);
    checkCall('FullModel', options, { teacher: instanceOf(Model, 'a model') });
    const encoded = Array.from(model.namedParameters()).find(
      ([, { encoding }]) => encoding !== null,
    );
    if (encoded !== undefined) {
      throw new UnsupportedError(
        `full fine-tuning trains every weight, and ${encoded[0]} is in blocks (${encoded[1].encoding}), which are frozen: load the ` +
          'model without baseFormat (--base-format), or train an adapter',
      );
    }
    if (model.offload !== null) {
      throw new UnsupportedError(
        'full fine-tuning trains every weight, and the weights of an offloaded base are frozen: load the model without baseOffload ' +
          '(--base-offload), or train an adapter',
      );
    }
    model.stored = null; // from the first step on, the weights are no longer those of the files
    if (options.teacher) freezeBase(options.teacher);
    const decaying = new Set(decayingTensors(model));
    this.trained = Array.from(model.namedParameters()).map(([name, base]) => {
      const trained = trainedParameter({ name, base, decays: decaying.has(base) });
      model.replaceParameter(base, trained.working);
      base.dispose();
      return trained;
    });
  }

  get hasTeacher(): boolean {
    return this.options.teacher !== undefined;
  }

  get teacherBytes(): number {
    const parameters = this.options.teacher?.parameters() ?? [];
    return parameters.reduce((sum, { size, dtype }) => sum + size * (dtype === 'f32' ? 4 : 2), 0);
  }

  get graphObstacle(): string | null {
    return graphObstacle(this.trained);
  }

  parameters(): readonly NamedTensor[] {
    return this.trained;
  }

  withTeacher<T>(body: (teacher: M) => T): T {
    const { teacher } = this.options;
    if (teacher === undefined) {
      throw new ArgumentError(
        'full fine-tuning was given no teacher; load the model a second time and pass it as teacher to FullModel',
      );
    }
    return body(teacher);
  }

  collectGradients(): void {
    collectGradients(this.trained);
  }

  zeroGradients(): void {
    zeroGradients(this.trained);
  }

  afterStep(): void {
    refreshWorking(this.trained);
  }

  trainingPass(): void {}

  state(): Record<string, Tensor> {
    return Object.fromEntries(this.trained.map(({ name, tensor }) => [name, tensor]));
  }

  restore(tensors: Readonly<Record<string, Tensor>>, path: string): void {
    checkSameTensors(this.state(), tensors, path);
    noGrad(() => {
      for (const { name, tensor } of this.trained) copy_(tensor, tensors[name] as Tensor);
    });
    this.afterStep();
  }

  identity(): Record<string, unknown> {
    return { method: 'full' };
  }

  /** Accepts every form, because a model folder has only one. */
  checkForm(): void {}

  /** Writes a model folder in the model's own dtype. */
  async savePretrained(folder: string): Promise<void> {
    await saveModel(this.model, folder);
  }

  /** Frees the masters; the working copies belong to the model. */
  dispose(): void {
    for (const { tensor, working } of this.trained) if (working !== tensor) tensor.dispose();
  }
}

function* decayingTensors(model: Model): Generator<Tensor> {
  for (const [, module] of model.namedModules()) {
    for (const [attribute, value] of Object.entries(module)) {
      if (value instanceof Tensor && decaysIn(module, attribute)) yield value;
    }
  }
}
