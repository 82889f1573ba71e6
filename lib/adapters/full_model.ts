/**
 * Full fine-tuning: every weight of the model is trained. The optimiser works on f32 masters; a model in bf16 computes
 * with rounded copies that are written anew after each step. A teacher is a second, frozen model.
 */
import { ArgumentError } from '../errors.ts';
import { type CausalLM, type Model, saveModel } from '../models/index.ts';
import { copy_, zeros } from '../ops/index.ts';
import { noGrad, scope, type Tensor, unscoped } from '../tensor.ts';
import { checkSameTensors, freeLinears, freezeBase } from './attach.ts';
import type { NamedTensor, TunedModel } from './tuned_model.ts';

interface Trained extends NamedTensor {
  /** What the model computes with: the master itself in an f32 model. */
  readonly working: Tensor;
}

/** Full fine-tuning: every weight is trained, through f32 masters. */
export class FullModel<M extends Model = CausalLM> implements TunedModel<M> {
  readonly kind = 'full';
  readonly trainsHead = true;
  private readonly trained: readonly Trained[];

  /**
   * Makes every parameter of `model` trainable. Its tensors are replaced by copies, since loaded ones may be pages of a
   * file.
   * @param options.teacher the same model, loaded a second time; frozen here. Needed for a consistency weight.
   */
  constructor(
    readonly model: M,
    private readonly options: { teacher?: M } = {},
  ) {
    freeLinears(model);
    if (options.teacher) freezeBase(options.teacher);
    this.trained = Array.from(model.namedParameters()).map(([name, old]) => {
      const trained = makeTrained(name, old);
      model.replaceParameter(old, trained.working);
      old.dispose();
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

  parameters(): readonly NamedTensor[] {
    return this.trained;
  }

  withTeacher<T>(body: (teacher: M) => T): T {
    const { teacher } = this.options;
    if (teacher === undefined) throw new ArgumentError('full fine-tuning was given no teacher');
    return body(teacher);
  }

  collectGradients(): void {
    for (const { tensor, working } of this.trained) {
      if (working === tensor) continue;
      scope(() => {
        tensor.grad = working.grad;
      });
      working.grad = null;
    }
  }

  afterStep(): void {
    scope(() =>
      noGrad(() => {
        for (const { tensor, working } of this.trained) {
          if (working !== tensor) copy_(working, tensor.to(working.dtype));
        }
      }),
    );
  }

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

  /** Writes a model folder in the model's own dtype. */
  async save(folder: string): Promise<void> {
    await saveModel(this.model, folder);
  }

  /** Frees the masters; the working copies are the model's. */
  dispose(): void {
    for (const { tensor, working } of this.trained) if (working !== tensor) tensor.dispose();
  }
}

function makeTrained(name: string, old: Tensor): Trained {
  return unscoped(() =>
    noGrad(() => {
      const tensor = zeros(old.shape, { dtype: 'f32' });
      scope(() => copy_(tensor, old.to('f32')));
      const working = old.dtype === 'f32' ? tensor : zeros(old.shape, { dtype: old.dtype });
      if (working !== tensor) copy_(working, old);
      working.requiresGrad = true;
      return { name, tensor, working };
    }),
  );
}
