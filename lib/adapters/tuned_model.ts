/**
 * A model that is being tuned, as the trainer sees it: parameters, a teacher, a state that can be put away and back.
 * Two kinds stand behind it: an adapter on a frozen base, and a model whose own weights are trained.
 */
import type { CausalLM, Model } from '../models/index.ts';
import type { Tensor } from '../tensor.ts';
import type { MethodName } from './methods/registry.ts';

/** A tensor and its path in the model. */
export interface NamedTensor {
  readonly name: string;
  readonly tensor: Tensor;
  /** Whether weight decay takes it (default true): not biases, not the weights of norms. */
  readonly decays?: boolean;
}

/** A micro-batch's place in a run. */
export interface TrainingPass {
  /** Optimiser steps done before. */
  readonly step: number;
  /** Within the step, from 0. */
  readonly microBatch: number;
}

/** Form of an exported adapter: see {@link AdapterModel.savePretrained}. */
export type ExportForm = 'lora' | 'residual';

/**
 * A model that is being tuned, as the trainer sees it.
 * @typeParam M what is tuned: a causal language model unless said otherwise
 */
export interface TunedModel<M extends Model = CausalLM> {
  readonly model: M;
  readonly kind: 'adapter' | 'full';
  /** The method that it was made by: its regularizers hold where a Trainer's options say nothing. Null or left out: none. */
  readonly method?: MethodName | null;
  /** Whether the output head moves: the losses then may not use what only holds for a frozen one. */
  readonly trainsHead: boolean;
  readonly hasTeacher: boolean;
  /** Memory of a second frozen model; 0 where the base itself is the teacher. */
  readonly teacherBytes: number;
  /** Why its passes cannot be recorded once and run again (see captureGraphs), null: they can. */
  readonly graphObstacle: string | null;
  /** The f32 masters, always in the same order. */
  parameters(): readonly NamedTensor[];
  /** Called when a window's gradients are complete: the masters' `grad` holds them afterwards. */
  collectGradients(): void;
  /** Drops all gradients, collected or not: those of a window that came to nothing. */
  zeroGradients(): void;
  /**
   * Says which micro-batch the forwards and backwards that follow belong to; null: none, they are not training. What is
   * random in training (dropout) is a function of the adapter's seed and this place, so that a resumed run repeats it.
   */
  trainingPass(pass: TrainingPass | null): void;
  /** Runs `body` on the model as it was before tuning. @throws ArgumentError without a teacher. */
  withTeacher<T>(body: (teacher: M) => T): T;
  /** Called after the optimiser wrote the masters. */
  afterStep(): void;
  /** Everything that a resumed run needs besides the base, by name. */
  state(): Record<string, Tensor>;
  /** Takes the values of an earlier state(). @throws FormatError if names or shapes differ. */
  restore(tensors: Readonly<Record<string, Tensor>>, path: string): void;
  /** What must be the same for a state to fit, as plain JSON. */
  identity(): Record<string, unknown>;
  /** Refuses a form that savePretrained() could not write, so that a run does not end on it. @throws UnsupportedError */
  checkForm(form: ExportForm): void;
  /** Writes the result of the run into a folder. */
  savePretrained(folder: string, options: { form: ExportForm }): Promise<void>;
  /** Gives the tensors back; the base stays with its owner. */
  dispose(): void;
}
