/**
 * What a step minimises, over the micro-batches of its window: teacher, forward, losses, backward. Each loss goes into
 * backward() ALREADY weighted with its share of the window, so that the gradients add up to the window's.
 */
import type { TunedModel } from '../adapters/tuned_model.ts';
import { ArgumentError } from '../errors.ts';
import { BaLoraLoss, type TermWeights, WindowTerms } from '../losses/nlg.ts';
import type { CausalLM, Model } from '../models/index.ts';
import { synchronize, withPhase } from '../runtime.ts';
import { noGrad, scope, type Tensor, tensor } from '../tensor.ts';
import { yieldToEventLoop } from './events.ts';
import type { ResolvedRegularizers } from './methods.ts';
import { type CombinedTerms, customTerms, weightedTerms } from './record.ts';
import { type TeacherEntropy, termWeights } from './term_weights.ts';
import type { Batch, LossFunction } from './types.ts';
import type { Window } from './window.ts';

/** One step's work. */
export interface WindowInput<M extends Model = CausalLM, B = Batch> {
  readonly tuned: TunedModel<M>;
  readonly window: Window<B>;
  /** From 0. */
  readonly step: number;
  readonly totalSteps: number;
  readonly signal?: AbortSignal | undefined;
}

export interface Objective<M extends Model = CausalLM, B = Batch> {
  /** Adds the window's gradients; its terms, or null if the signal stopped it on the way. */
  accumulate(input: WindowInput<M, B>): Promise<CombinedTerms | null>;
  dispose(): void;
}

export function makeObjective(
  tuned: TunedModel,
  regularizers: ResolvedRegularizers,
  loss: LossFunction | null = null,
  resources: ObjectiveResources = {},
): Objective {
  return loss === null
    ? new BaLoraObjective(tuned, regularizers, resources)
    : new CustomObjective(loss);
}

/** What an objective may use. */
export interface ObjectiveResources {
  /** Bound on the logits in work, see BaLoraOptions. */
  chunkBytes?: number;
}

interface MicroBatch {
  readonly batch: Batch;
  /** Within its window. */
  readonly index: number;
  readonly teacherHidden: Tensor | null;
  readonly weights: TermWeights;
  readonly terms: WindowTerms;
}

/** Cross-entropy + l1 consistency + l2 diversity + l3 SVD; a weight of 0 leaves its term out. */
class BaLoraObjective implements Objective {
  private readonly loss: BaLoraLoss;

  constructor(
    tuned: TunedModel,
    private readonly options: ResolvedRegularizers,
    { chunkBytes = 0 }: ObjectiveResources,
  ) {
    const { head } = tuned.model;
    this.loss = new BaLoraLoss(
      { weight: head.weight, softcap: head.softcap, teacherWeight: teacherHead(tuned) },
      {
        ...options,
        chunkBytes,
        terms: {
          consistency: options.consistencyWeight > 0,
          diversity: options.diversityWeight > 0,
          svd: options.svdWeight > 0,
        },
      },
    );
  }

  async accumulate(input: WindowInput): Promise<CombinedTerms | null> {
    const { window, signal } = input;
    const teachers = new Map<Batch, Tensor>();
    const terms = new WindowTerms(this.loss.terms);
    try {
      const weights = await termWeights(this.options, input, () => this.entropy(input, teachers));
      if (weights === null) return null;
      for (const [index, { batch }] of window.batches.entries()) {
        if (signal?.aborted) return null;
        const teacherHidden = this.loss.terms.consistency
          ? (teachers.get(batch) ?? (await this.teach(input, batch, teachers)))
          : null;
        await this.microBatch(input, { batch, index, teacherHidden, weights, terms });
        teacherHidden?.dispose();
        teachers.delete(batch);
      }
      return weightedTerms(await terms.read(), weights);
    } finally {
      for (const hidden of teachers.values()) hidden.dispose();
    }
  }

  dispose(): void {
    this.loss.dispose();
  }

  private async microBatch({ tuned, window, step }: WindowInput, micro: MicroBatch): Promise<void> {
    const { batch, index, teacherHidden, weights, terms } = micro;
    tuned.trainingPass({ step, microBatch: index });
    const hidden = withPhase('forward', () => tuned.model.forward(batch));
    try {
      await yieldToEventLoop();
      scope(() => {
        const result = withPhase('losses', () =>
          this.loss.compute({ hidden, teacherHidden, batch, weights, window: window.totals }),
        );
        terms.add(result);
        withPhase('backward', () => result.loss?.backward());
      });
    } finally {
      tuned.trainingPass(null);
      hidden.dispose();
    }
    await synchronize();
  }

  /** The teacher's hidden states of a micro-batch, kept until its loss is made: (N,C). */
  private async teach(
    { tuned }: WindowInput,
    batch: Batch,
    teachers: Map<Batch, Tensor>,
  ): Promise<Tensor> {
    const hidden = teach(tuned, batch);
    teachers.set(batch, hidden);
    await yieldToEventLoop();
    return hidden;
  }

  /** The teacher's mean entropy over the window, for the adaptive schedule. Its hidden states are kept for the losses. */
  private async entropy(
    input: WindowInput,
    teachers: Map<Batch, Tensor>,
  ): Promise<TeacherEntropy | null> {
    let [entropy, rows] = [0, 0];
    for (const { batch } of input.window.batches) {
      if (input.signal?.aborted) return null;
      const hidden = await this.teach(input, batch, teachers);
      const measured = scope(() => this.loss.teacherEntropyRows(hidden, batch));
      if (measured === null) continue;
      const values = (await measured.data()) as Float64Array;
      measured.dispose();
      rows += values.length / kRowColumns;
      for (let i = kEntropyColumn; i < values.length; i += kRowColumns)
        entropy += values[i] as number;
    }
    const outcomes = input.tuned.model.head.weight.shape[0] as number;
    return { mean: rows > 0 ? entropy / rows : 0, outcomes };
  }
}

/** Columns of the rows of teacherEntropyRows. */
const kRowColumns = 3;
const kEntropyColumn = 2;

/** A loss of the user's, counted with each micro-batch's share of supervised rows. */
class CustomObjective implements Objective {
  constructor(private readonly loss: LossFunction) {}

  async accumulate({
    tuned,
    window,
    step,
    totalSteps,
    signal,
  }: WindowInput): Promise<CombinedTerms | null> {
    const terms = customTerms();
    for (const [microBatch, { batch, counts }] of window.batches.entries()) {
      if (signal?.aborted) return null;
      if (counts.supervised === 0) continue;
      const share = counts.supervised / window.totals.supervised;
      const made: Tensor[] = [];
      const own = (value: Tensor): Tensor => {
        made.push(value);
        return value;
      };
      try {
        tuned.trainingPass({ step, microBatch });
        const hidden = own(withPhase('forward', () => tuned.model.forward(batch)));
        await yieldToEventLoop();
        let teacher: Tensor | null = null;
        const { head } = tuned.model;
        const result = await this.loss({
          batch,
          hidden,
          headWeight: head.weight,
          logitSoftcap: head.softcap > 0 ? head.softcap : null,
          teacherHidden: () => {
            teacher ??= own(teach(tuned, batch));
            return teacher;
          },
          step,
          totalSteps,
          supervisedRows: counts.supervised,
          windowSupervisedRows: window.totals.supervised,
        });
        const loss = own(result.loss);
        checkLoss(loss);
        withPhase('backward', () =>
          scope(() => {
            const { dtype, shape, device } = loss;
            loss.backward(tensor([share], { dtype, shape, device }));
          }),
        );
        terms.addLoss(await loss.item(), share);
        for (const [label, value] of Object.entries(result.metrics ?? {})) {
          terms.addMetric(label, await own(value).item(), share);
        }
      } finally {
        tuned.trainingPass(null);
        for (const value of made) value.dispose();
      }
    }
    return terms.combined();
  }

  dispose(): void {}
}

/** The teacher's hidden states: (N,C). */
function teach(tuned: TunedModel, batch: Batch): Tensor {
  return withPhase('teacher', () =>
    tuned.withTeacher((model) => noGrad(() => model.forward(batch))),
  );
}

function checkLoss(loss: Tensor): void {
  if (loss.size !== 1) {
    throw new ArgumentError(`loss: must be one number, got the shape (${loss.shape.join(',')})`);
  }
  if (!loss.requiresGrad) {
    throw new ArgumentError('loss: is not attached to the tape; did the function run in noGrad?');
  }
}

/** The teacher's own head where it has one: a second model beside full fine-tuning. */
function teacherHead(tuned: TunedModel): Tensor | null {
  if (!tuned.hasTeacher) return null;
  const { weight } = tuned.withTeacher((teacher) => teacher.head);
  return weight === tuned.model.head.weight ? null : weight;
}
