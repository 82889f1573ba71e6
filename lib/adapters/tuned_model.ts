/**
 * A model that is being tuned, as the trainer sees it: parameters, a teacher, a state that can be saved and restored. There are two
 * implementations: an adapter on a frozen base, and a model whose own weights are trained.
 */
import type { CausalLM, Model } from '../models/index.ts';
import type { FactorOfPair } from '../nn/adapter_hook.ts';
import type { Tensor } from '../tensor.ts';
import type { TrainingStep, UpdatedStep } from './methods/method.ts';
import type { MethodName } from './methods/registry.ts';

/** A tensor and its path in the model. */
export interface NamedTensor {
  readonly name: string;
  readonly tensor: Tensor;
  /** Whether weight decay applies (default true): not to biases and the weights of norms. */
  readonly decays?: boolean;
  /** Its place in a low-rank pair, for optimisers that read both factors. Left out: it is no factor of one. */
  readonly factor?: FactorOfPair;
}

/** A micro-batch's place in a run. */
export interface TrainingPass {
  /** Number of optimiser steps done before. */
  readonly step: number;
  /** Index of the micro-batch within the step, from 0. */
  readonly microBatch: number;
}

/** Form of an exported adapter: see {@link AdapterModel.savePretrained}. */
export type ExportForm = 'lora' | 'plain-lora' | 'residual';

/** The part of a tuned model's method in a run beside its forward passes; see VariantTraining in methods/method.ts. */
export interface MethodTraining {
  /** The name and the weight of its term of the loss; null: there is none. */
  readonly term: { readonly key: string; readonly weight: number } | null;
  /** Enqueues the computation of the term and its gradients, which are added to those of the parameters; () detached. */
  addTerm(): Tensor;
  /** The reason why it cannot be trained in a run that begins so; null: it can. */
  refuses(first: TrainingStep): string | null;
  /** A number that tells what it does at a step where that depends on the run's length. */
  plan(at: Pick<TrainingStep, 'step' | 'totalSteps'>): number;
  beforeStep(at: TrainingStep): Promise<void>;
  afterStep(at: UpdatedStep): Promise<void>;
}

/**
 * A model that is being tuned, as the trainer sees it.
 * @typeParam M what is tuned: a causal language model unless said otherwise
 */
export interface TunedModel<M extends Model = CausalLM> {
  readonly model: M;
  readonly kind: 'adapter' | 'full';
  /** The method it was made with, whose weights a Trainer takes for each regularizer that its own options do not set. Null or left out: none. */
  readonly method?: MethodName | null;
  /** The part of its method in a run beside its forward passes. Null or left out: none. */
  readonly methodTraining?: MethodTraining | null;
  /** Whether the output head is trained: then the losses must not use what only holds for a frozen one. */
  readonly trainsHead: boolean;
  readonly hasTeacher: boolean;
  /** Bytes of a second frozen model; 0 where the base itself is the teacher. */
  readonly teacherBytes: number;
  /** The reason why its passes cannot be recorded once and run again (see captureGraphs); null: they can. */
  readonly graphObstacle: string | null;
  /**
   * Called before a pass that may repeat a recorded one: brings up to date what such a pass reads and does not compute. Left out where
   * there is nothing of that kind.
   * @returns a text that is another one when passes run other ops than before, so that those that were recorded are not repeated
   */
  beforeRecorded?(): string;
  /** The f32 masters, always in the same order. */
  parameters(): readonly NamedTensor[];
  /** Moves the gradients of an accumulation window, once complete, to the masters' `grad`. */
  collectGradients(): void;
  /** Drops all gradients, collected or not, such as those of a window that is abandoned. */
  zeroGradients(): void;
  /**
   * Sets the micro-batch that the following forwards and backwards belong to; null: none, they are not training. Randomness in
   * training (dropout) is a function of the adapter's seed and this position, so that a resumed run repeats it.
   */
  trainingPass(pass: TrainingPass | null): void;
  /** Runs `body` on the model as it was before tuning. @throws ArgumentError without a teacher. */
  withTeacher<T>(body: (teacher: M) => T): T;
  /** Called after the optimiser wrote the masters. */
  afterStep(): void;
  /** Everything that a resumed run needs besides the base, by name. */
  state(): Record<string, Tensor>;
  /** Restores the values of an earlier state(). @throws FormatError if names or shapes differ. */
  restore(tensors: Readonly<Record<string, Tensor>>, path: string): void;
  /** Facts that must match for a state to fit, as plain JSON. */
  identity(): Record<string, unknown>;
  /** Refuses a form that savePretrained() could not write, so that a run does not fail at its end. @throws UnsupportedError */
  checkForm(form: ExportForm): void;
  /** Writes the result of the run into a folder. */
  savePretrained(folder: string, options: { form: ExportForm }): Promise<void>;
  /** Frees the tensors; the base stays with its owner. */
  dispose(): void;
}
