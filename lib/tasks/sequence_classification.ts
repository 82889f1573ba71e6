/** The classification and regression task: a head with few outputs over whole sequences. */
import type { TunedModel } from '../adapters/tuned_model.ts';
import { kMetricNames, type MetricName } from '../data/glue.ts';
import type { LabelledBatch } from '../data/labelled_batches.ts';
import { indicesIn, type LabelScheme } from '../data/labels.ts';
import { ArgumentError } from '../errors.ts';
import { evaluateClassifier, labelTensor, metricsOf, modelBatch } from '../eval/classify.ts';
import type { NamedTensors } from '../graph.ts';
import { LogitsLoss } from '../losses/logits_loss.ts';
import { teacherEntropyRows } from '../losses/nlu_terms.ts';
import type { ComputedLoss, Term } from '../losses/term.ts';
import { kClassifierTerms } from '../losses/terms/list.ts';
import { SequenceClassifier } from '../models/index.ts';
import { withInt8Products, withPhase, yieldToEventLoop } from '../runtime.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import type {
  Inputs,
  LossSettings,
  MicroBatch,
  Objective,
  Outputs,
  PassProducts,
  StepOfWindow,
  Task,
  TaskMetrics,
} from './task.ts';

/** The objective of a classifier, made once for each run; it reads the teacher's logits (B,D). */
class ClassifierObjective implements Objective<LabelledBatch> {
  readonly terms: readonly Term[];
  readonly memory = null;
  readonly maxEntropy: number;
  readonly #loss: LogitsLoss;
  readonly #temperature: number;
  readonly #layers: readonly number[];
  readonly #int8: PassProducts;

  constructor(
    private readonly tuned: TunedModel<SequenceClassifier>,
    { terms, regularizers, onNote, int8 = {} }: LossSettings,
  ) {
    const { problemType, numLabels } = tuned.model;
    this.#int8 = int8;
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

  skips(): boolean {
    return false;
  }

  async teacher({ data }: MicroBatch<LabelledBatch>): Promise<NamedTensors> {
    if (!this.#loss.readsTeacher) return {};
    const logits = withPhase('teacher', () =>
      withInt8Products(this.#int8.teacher, () =>
        this.tuned.withTeacher((model) => noGrad(() => model.outputs(modelBatch(model, data)))),
      ),
    );
    await yieldToEventLoop();
    return { logits };
  }

  async entropies({ logits }: NamedTensors): Promise<ArrayLike<number>> {
    const { problemType } = this.tuned.model;
    const temperature = this.#temperature;
    const measured = scope(() =>
      noGrad(() => teacherEntropyRows(logits as Tensor, { problemType, temperature })),
    );
    const values = (await measured.data()) as Float32Array;
    measured.dispose();
    return values;
  }

  prepare(
    batch: MicroBatch<LabelledBatch>,
    step: StepOfWindow,
    tensors: NamedTensors,
  ): Inputs<LabelledBatch> {
    return { key: '', tensors, batch, step };
  }

  forward({ batch, tensors: teacher }: Inputs<LabelledBatch>): Outputs {
    const { model } = this.tuned;
    const rows = modelBatch(model, batch.data);
    return withInt8Products(this.#int8.student, () => {
      if (this.#layers.length === 0) {
        return { student: model.outputs(rows), hiddenStates: new Map(), teacher };
      }
      const { outputs, hiddenStates } = model.outputsWithHiddenStates(rows, this.#layers);
      return { student: outputs, hiddenStates, teacher };
    });
  }

  losses(
    { batch, step }: Inputs<LabelledBatch>,
    { student, hiddenStates, teacher }: Outputs,
  ): ComputedLoss {
    return this.#loss.compute({
      logits: student,
      teacherLogits: teacher.logits ?? null,
      labels: labelTensor(this.tuned.model, batch.data),
      windowExamples: step.totals.supervised,
      ...{ hiddenStates, weights: step.weights, at: step, batch: batch.data },
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
  select: (data) => {
    const examples = data.indices.length;
    const counts = { tokens: data.inputIds.length, supervised: examples, regularized: examples };
    return { data, rows: null, counts };
  },
  objective: (tuned, settings) => new ClassifierObjective(tuned, settings),
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

/**
 * Checks the labels of the training data against the head and the held-out data.
 * @throws ArgumentError where a label has another meaning for the head or in the held-out data
 */
function checkLabels(
  head: readonly string[] | null,
  data: LabelScheme | undefined,
  held: LabelScheme | undefined,
): void {
  checkNames(head, data?.names);
  checkSchemes(data, held);
}

/**
 * Checks the label names of the data against those of the head. Without this check, data with sorted names could train and
 * score a head by the ids of other classes, and a head tuned on another task's data would be saved with its old label names.
 */
function checkNames(
  head: readonly string[] | null,
  data: readonly string[] | null | undefined,
): void {
  if (!head || !data) return;
  const places = indicesIn(data, head);
  if (places?.every((place, id) => place === id)) return;
  const fix =
    places === null
      ? 'load the model with newHead, or with labelNames: data.scheme.names where its ids stand for these'
      : 'make it with labelNames: model.labelNames';
  throw new ArgumentError(
    `data: its label ids stand for ${data.join(', ')}, those of the model's head for ${head.join(', ')}; ${fix}`,
  );
}

/**
 * Checks that the held-out data has the label scheme of the training data. Held-out data that lacks a class and derives a
 * scheme of its own would give the other classes shifted ids.
 */
function checkSchemes(data: LabelScheme | undefined, held: LabelScheme | undefined): void {
  if (data === undefined || held === undefined) return;
  const kinds = ['problemType', 'numLabels', 'names', 'ids'] as const;
  const differing = kinds.filter((key) => shown(data[key]) !== shown(held[key]));
  if (differing.length === 0) return;
  const which = differing.map((key) => `${key} ${shown(held[key])}, data has ${shown(data[key])}`);
  throw new ArgumentError(
    `evalData: its labels do not mean what those of data mean (${which.join('; ')}); make both with the same ` +
      'numLabels, problemType and labelNames, those of data.scheme, and the same glue',
  );
}

function shown(value: LabelScheme[keyof LabelScheme]): string {
  if (value === null || value === undefined) return 'none';
  return typeof value === 'object' ? value.join(', ') : String(value);
}
