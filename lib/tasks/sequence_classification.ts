/** The classification and regression task: a head with few outputs over whole sequences. */
import type { TunedModel } from '../adapters/tuned_model.ts';
import { kMetricNames, type MetricName } from '../data/glue.ts';
import type { LabelledBatch } from '../data/labelled_batches.ts';
import { ArgumentError } from '../errors.ts';
import { evaluateClassifier, labelTensor, metricsOf, modelBatch } from '../eval/classify.ts';
import { LogitsLoss } from '../losses/logits_loss.ts';
import { teacherEntropyRows } from '../losses/nlu_terms.ts';
import type { Term } from '../losses/term.ts';
import type { MicroBatchLoss } from '../losses/term_sums.ts';
import { kClassifierTerms } from '../losses/terms/list.ts';
import { SequenceClassifier } from '../models/index.ts';
import { type Int8Products, withInt8Products, withPhase } from '../runtime.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import { checkLabels } from './check_labels.ts';
import { yieldToEventLoop } from './event_loop.ts';
import type {
  LossPass,
  LossSettings,
  MicroBatch,
  StudentOutputs,
  Task,
  TaskLoss,
  TaskMetrics,
} from './task.ts';

/** The loss of a classifier, made once for each run; it reads the teacher's logits (B,D). */
class ClassifierLoss implements TaskLoss<LabelledBatch, Tensor> {
  readonly terms: readonly Term[];
  readonly recorded = null;
  readonly memory = null;
  readonly maxEntropy: number;
  readonly #loss: LogitsLoss;
  readonly #temperature: number;
  readonly #layers: readonly number[];
  readonly #teacherInt8: Int8Products | undefined;

  constructor(
    private readonly tuned: TunedModel<SequenceClassifier>,
    { terms, regularizers, onNote, teacherInt8 }: LossSettings,
  ) {
    const { problemType, numLabels } = tuned.model;
    this.#teacherInt8 = teacherInt8;
    this.terms = terms;
    this.#loss = new LogitsLoss(terms, {
      problemType,
      ...(onNote === undefined ? {} : { onWarning: onNote }),
    });
    this.#temperature = regularizers.temperature as number;
    this.#layers = [...new Set(terms.flatMap(({ hiddenStates = [] }) => hiddenStates))];
    // D independent decisions have 2^D outcomes, a number that may overflow; its logarithm does not.
    const several = problemType === 'multi_label_classification';
    this.maxEntropy = several ? numLabels * Math.LN2 : Math.log(numLabels);
  }

  async runTeacher({ batch }: MicroBatch<LabelledBatch>): Promise<Tensor> {
    const logits = withPhase('teacher', () =>
      withInt8Products(this.#teacherInt8, () =>
        this.tuned.withTeacher((model) => noGrad(() => model.outputs(modelBatch(model, batch)))),
      ),
    );
    await yieldToEventLoop();
    return logits;
  }

  releaseTeacher(teacher: Tensor): void {
    teacher.dispose();
  }

  async entropies(teacher: Tensor): Promise<ArrayLike<number>> {
    const { problemType } = this.tuned.model;
    const temperature = this.#temperature;
    const measured = scope(() =>
      noGrad(() => teacherEntropyRows(teacher, { problemType, temperature })),
    );
    const values = (await measured.data()) as Float32Array;
    measured.dispose();
    return values;
  }

  forward({ batch }: MicroBatch<LabelledBatch>): StudentOutputs {
    const { model } = this.tuned;
    const rows = modelBatch(model, batch);
    if (this.#layers.length === 0) {
      return { outputs: model.outputs(rows), hiddenStates: new Map() };
    }
    const { outputs, hiddenStates } = model.outputsWithHiddenStates(rows, this.#layers);
    return { outputs, hiddenStates };
  }

  compute({
    micro,
    student,
    teacher,
    weights,
    totals,
    at,
  }: LossPass<LabelledBatch, Tensor>): MicroBatchLoss {
    return this.#loss.compute({
      logits: student.outputs,
      teacherLogits: teacher,
      labels: labelTensor(this.tuned.model, micro.batch),
      hiddenStates: student.hiddenStates,
      windowExamples: totals.supervised,
      ...{ weights, at, batch: micro.batch },
    });
  }

  dispose(): void {}
}

/** The task for `--task sequence-classification`. */
export const sequenceClassification: Task<SequenceClassifier, LabelledBatch> = {
  name: 'sequence-classification',
  terms: kClassifierTerms,
  options: {},
  supports: (model) => model instanceof SequenceClassifier,
  select: (batch) => {
    const examples = batch.indices.length;
    const counts = { tokens: batch.inputIds.length, supervised: examples, regularized: examples };
    return { batch, selected: null, counts };
  },
  loss: (tuned, settings) => new ClassifierLoss(tuned, settings),
  evaluate: ({ model }, batches, options) => evaluateClassifier(model, batches, options),
  evaluationBytes: () => 0,
  metrics,
  check: ({ tuned, data, evalData, regularizers }) => {
    const { problemType, labelNames } = tuned.model;
    const { consistencySchedule, consistencyWeight } = regularizers;
    // The adaptive schedule needs the entropy of the teacher's distribution over classes, which regression does not have.
    if (
      problemType === 'regression' &&
      (consistencyWeight as number) > 0 &&
      consistencySchedule === 'adaptive'
    ) {
      throw new ArgumentError(
        'consistencySchedule adaptive has no meaning for regression; choose constant or cosine',
      );
    }
    checkLabels(labelNames, data.scheme, evalData?.scheme);
  },
  lossObstacle: 'a classifier takes no custom loss; leave it out, or add terms',
  graphObstacle: 'only language models are trained by graphs',
  teacherObstacle: "the cache is for language models, and a classifier's teacher is not cached",
  cacheObstacle: () => null,
};

/** The metrics of a model's evaluations, found by evaluating two made-up examples. */
function metrics(model: SequenceClassifier): TaskMetrics {
  const { problemType, numLabels } = model;
  const width = problemType === 'single_label_classification' ? 1 : numLabels;
  // Class 1 may be missing from the model, and correlations of constant values are undefined.
  const rows = [0, 1].map((n) => {
    const values = Array<number>(width).fill(problemType === 'regression' ? n : 0);
    return { label: values, prediction: values };
  });
  const found: Partial<Record<string, unknown>> = { ...metricsOf(rows, model) };
  return {
    names: ['loss', ...kMetricNames.filter((name) => typeof found[name] === 'number')],
    defaultMetric: kDefaultMetrics[problemType],
    subject: `${problemType} with ${numLabels} ${numLabels === 1 ? 'label' : 'labels'}`,
  };
}

const kDefaultMetrics = {
  single_label_classification: 'accuracy',
  regression: 'pearson',
  multi_label_classification: 'f1Micro',
} as const satisfies Record<SequenceClassifier['problemType'], MetricName>;
