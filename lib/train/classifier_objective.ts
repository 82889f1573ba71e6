/** What a step of a classifier minimises: the task's loss + l1 consistency + l2 diversity + l3 SVD of the head's outputs. */
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { LabelledBatch } from '../data/labelled_batches.ts';
import { classifierLogits, labelTensor } from '../eval/classify.ts';
import type { TermWeights } from '../losses/nlg.ts';
import { NluLoss, type NluWarning, type NluWindowTerms } from '../losses/nlu.ts';
import { teacherEntropyRows } from '../losses/nlu_terms.ts';
import type { SequenceClassifier } from '../models/index.ts';
import { synchronize, withPhase } from '../runtime.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import { yieldToEventLoop } from './events.ts';
import type { ResolvedRegularizers } from './methods.ts';
import type { Objective, WindowInput } from './objective.ts';
import { type CombinedTerms, weightedTerms } from './record.ts';
import { type TeacherEntropy, termWeights } from './term_weights.ts';

type Input = WindowInput<SequenceClassifier, LabelledBatch>;

/** See the head of the file; a weight of 0 leaves its term out. */
export class ClassifierObjective implements Objective<SequenceClassifier, LabelledBatch> {
  readonly graphs = null;
  private readonly loss: NluLoss;

  constructor(
    model: SequenceClassifier,
    private readonly options: ResolvedRegularizers,
    onWarning: (warning: NluWarning) => void,
  ) {
    this.loss = new NluLoss({
      problemType: model.problemType,
      variant: options.variant,
      temperature: options.temperature,
      svdTopK: options.svdTopK,
      terms: {
        consistency: options.consistencyWeight > 0,
        diversity: options.diversityWeight > 0,
        svd: options.svdWeight > 0,
      },
      onWarning,
    });
  }

  async accumulate(input: Input): Promise<CombinedTerms | null> {
    const { window, signal, tuned } = input;
    const teachers = new Map<LabelledBatch, Tensor>();
    const terms = this.loss.window(tuned.model.numLabels);
    try {
      const weights = await termWeights(this.options, input, () => this.entropy(input, teachers));
      if (weights === null) return null;
      for (const [index, { batch }] of window.batches.entries()) {
        if (signal?.aborted) return null;
        if (this.loss.terms.consistency && !teachers.has(batch)) {
          teachers.set(batch, teacherLogits(tuned, batch));
          await yieldToEventLoop();
        }
        await this.microBatch(input, {
          batch,
          index,
          teacher: teachers.get(batch) ?? null,
          weights,
          terms,
        });
      }
      return weightedTerms(await terms.read(), weights);
    } finally {
      for (const logits of teachers.values()) logits.dispose();
      terms.dispose();
    }
  }

  dispose(): void {}

  private async microBatch(
    { tuned, window, step }: Input,
    micro: {
      batch: LabelledBatch;
      index: number;
      teacher: Tensor | null;
      weights: TermWeights;
      terms: NluWindowTerms;
    },
  ): Promise<void> {
    const { batch, index, teacher, weights, terms } = micro;
    let made: Tensor | null = null;
    try {
      tuned.trainingPass({ step, microBatch: index });
      const logits = withPhase('forward', () => classifierLogits(tuned.model, batch));
      made = logits;
      await yieldToEventLoop();
      scope(() => {
        const result = withPhase('losses', () =>
          this.loss.compute({
            logits,
            teacherLogits: teacher,
            labels: labelTensor(tuned.model, batch),
            weights,
            windowExamples: window.totals.supervised,
          }),
        );
        terms.add(result);
        withPhase('backward', () => result.loss.backward());
      });
    } finally {
      tuned.trainingPass(null);
      made?.dispose();
    }
    await synchronize();
  }

  /** The teacher's mean entropy over the window, for the adaptive schedule. Its outputs are kept for the losses. */
  private async entropy(
    { tuned, window, signal }: Input,
    teachers: Map<LabelledBatch, Tensor>,
  ): Promise<TeacherEntropy | null> {
    let [sum, rows] = [0, 0];
    const { problemType, numLabels } = tuned.model;
    for (const { batch } of window.batches) {
      if (signal?.aborted) return null;
      const logits = teacherLogits(tuned, batch);
      teachers.set(batch, logits);
      const measured = scope(() =>
        noGrad(() =>
          teacherEntropyRows(logits, { problemType, temperature: this.options.temperature }),
        ),
      );
      for (const value of (await measured.data()) as Float32Array) sum += value;
      measured.dispose();
      rows += batch.indices.length;
    }
    const several = problemType === 'multi_label_classification';
    // 2^D outcomes of D decisions: by their logarithm, since their number may be no number.
    return { mean: sum / rows, most: several ? numLabels * Math.LN2 : Math.log(numLabels) };
  }
}

function teacherLogits(tuned: TunedModel<SequenceClassifier>, batch: LabelledBatch): Tensor {
  return withPhase('teacher', () =>
    tuned.withTeacher((model) => noGrad(() => classifierLogits(model, batch))),
  );
}
