/**
 * Metrics of classification and regression, as scikit-learn and scipy define them. Every 0/0 of a classification is 0; a
 * correlation with a constant is undefined, so null.
 */
import { ArgumentError } from '../errors.ts';

/** Counts of a classification: rows are labels, columns predictions. */
export type ConfusionMatrix = readonly (readonly number[])[]; // (D,D)

/** Scores of predicted classes. */
export interface ClassificationMetrics {
  /** Share of the examples predicted rightly. */
  readonly accuracy: number;
  /** Matthews' correlation (Gorodkin's R_K for more than two classes). */
  readonly matthews: number;
  /** F1 of class 1, as GLUE takes it; null where D is not 2 or less. */
  readonly f1Binary: number | null;
  /** Mean of f1Binary and accuracy, GLUE's score of MRPC and QQP; null where f1Binary is. */
  readonly f1AccuracyMean: number | null;
  /** Mean over classes, each counting once. */
  readonly f1Macro: number;
  /** Over all decisions; with one label an example this is the accuracy. */
  readonly f1Micro: number;
  /** Mean over classes, each counting with its labels. */
  readonly f1Weighted: number;
  readonly precisionPerClass: readonly number[]; // (D)
  readonly recallPerClass: readonly number[]; // (D)
  readonly f1PerClass: readonly number[]; // (D)
  readonly confusion: ConfusionMatrix;
  readonly examples: number;
}

/** Scores of predicted numbers. */
export interface RegressionMetrics {
  /** Pearson's r; null where labels or predictions are constant. */
  readonly pearson: number | null;
  /** Spearman's rho, with mean ranks for ties; null as above. */
  readonly spearman: number | null;
  /** Mean of the two, GLUE's score of STS-B; null as above. */
  readonly pearsonSpearmanMean: number | null;
  /** Mean squared and mean absolute error. */
  readonly mse: number;
  readonly mae: number;
  readonly examples: number;
}

/**
 * Counts predictions by label.
 * @throws ArgumentError for lists of unlike length or a class outside 0..numLabels-1
 */
export function confusionMatrix(
  labels: ArrayLike<number>,
  predictions: ArrayLike<number>,
  numLabels: number,
): number[][] {
  checkLengths(labels, predictions);
  const counts = Array.from({ length: numLabels }, () => Array<number>(numLabels).fill(0));
  for (let i = 0; i < labels.length; i++) {
    const [label, prediction] = [labels[i] as number, predictions[i] as number];
    const row = counts[label];
    if (row?.[prediction] === undefined) {
      throw new ArgumentError(
        `metrics: example ${i} has label ${label} and prediction ${prediction}, of ${numLabels} classes`,
      );
    }
    row[prediction] = (row[prediction] as number) + 1;
  }
  return counts;
}

/** Metrics of one label an example. */
export function classificationMetrics(
  labels: ArrayLike<number>,
  predictions: ArrayLike<number>,
  numLabels: number,
): ClassificationMetrics {
  const confusion = confusionMatrix(labels, predictions, numLabels);
  const classes = confusion.map((row, c) => {
    const right = row[c] as number;
    const labelled = sum(row);
    const predicted = sum(confusion.map((other) => other[c] as number));
    return { right, labelled, predicted };
  });
  const examples = labels.length;
  const right = sum(classes.map((c) => c.right));
  const f1PerClass = classes.map((c) => ratio(2 * c.right, c.labelled + c.predicted));
  const accuracy = ratio(right, examples);
  const f1Binary = numLabels <= 2 ? (f1PerClass[1] ?? 0) : null;
  return {
    accuracy,
    matthews: matthews(classes, right, examples),
    f1Binary,
    f1AccuracyMean: meanOf(f1Binary, accuracy),
    f1Macro: ratio(sum(f1PerClass), numLabels),
    f1Micro: accuracy,
    f1Weighted: ratio(sum(f1PerClass.map((f1, c) => f1 * (classes[c]?.labelled ?? 0))), examples),
    precisionPerClass: classes.map((c) => ratio(c.right, c.predicted)),
    recallPerClass: classes.map((c) => ratio(c.right, c.labelled)),
    f1PerClass,
    confusion,
    examples,
  };
}

/** R_K = (right*n - sum t p) / sqrt((n^2 - sum p^2)(n^2 - sum t^2)). */
function matthews(
  classes: readonly { labelled: number; predicted: number }[],
  right: number,
  examples: number,
): number {
  const dot = (f: (c: { labelled: number; predicted: number }) => number) => sum(classes.map(f));
  const square = examples * examples;
  const spreadOfPredictions = square - dot((c) => c.predicted * c.predicted);
  const spreadOfLabels = square - dot((c) => c.labelled * c.labelled);
  const numerator = right * examples - dot((c) => c.labelled * c.predicted);
  return ratio(numerator, Math.sqrt(spreadOfPredictions) * Math.sqrt(spreadOfLabels));
}

/** Scores of several yes-or-no labels an example. */
export interface MultiLabelMetrics {
  /** Share of the single decisions that are right. */
  readonly accuracy: number;
  /** Share of the examples with every label right. */
  readonly exactMatch: number;
  readonly f1Macro: number;
  readonly f1Micro: number;
  readonly precisionPerClass: readonly number[]; // (D)
  readonly recallPerClass: readonly number[]; // (D)
  readonly f1PerClass: readonly number[]; // (D)
  readonly examples: number;
}

/**
 * Metrics of D yes/no labels an example.
 * @param labels (N*D) 0 or 1, an example after the other; predictions like it
 */
export function multiLabelMetrics(
  labels: ArrayLike<number>,
  predictions: ArrayLike<number>,
  numLabels: number,
): MultiLabelMetrics {
  checkLengths(labels, predictions);
  if (labels.length % numLabels !== 0) {
    throw new ArgumentError(`metrics: ${labels.length} values are no rows of ${numLabels} labels`);
  }
  const examples = labels.length / numLabels;
  const both = Array<number>(numLabels).fill(0);
  const [labelled, predicted] = [[...both], [...both]];
  let [right, exact] = [0, 0];
  for (let n = 0; n < examples; n++) {
    let rightHere = 0;
    for (let d = 0; d < numLabels; d++) {
      const label = labels[n * numLabels + d] as number;
      const prediction = predictions[n * numLabels + d] as number;
      rightHere += Number(label === prediction);
      both[d] = (both[d] as number) + label * prediction;
      labelled[d] = (labelled[d] as number) + label;
      predicted[d] = (predicted[d] as number) + prediction;
    }
    right += rightHere;
    exact += Number(rightHere === numLabels);
  }
  const per = (f: (d: number) => number) => both.map((_, d) => f(d));
  const f1PerClass = per((d) =>
    ratio(2 * (both[d] as number), (labelled[d] as number) + (predicted[d] as number)),
  );
  return {
    accuracy: ratio(right, labels.length),
    exactMatch: ratio(exact, examples),
    f1Macro: ratio(sum(f1PerClass), numLabels),
    f1Micro: ratio(2 * sum(both), sum(labelled) + sum(predicted)),
    precisionPerClass: per((d) => ratio(both[d] as number, predicted[d] as number)),
    recallPerClass: per((d) => ratio(both[d] as number, labelled[d] as number)),
    f1PerClass,
    examples,
  };
}

/** Metrics of one number an example. */
export function regressionMetrics(
  labels: ArrayLike<number>,
  predictions: ArrayLike<number>,
): RegressionMetrics {
  checkLengths(labels, predictions);
  const [x, y] = [Array.from(labels), Array.from(predictions)];
  const errors = x.map((value, i) => (y[i] as number) - value);
  const [byValue, byRank] = [pearson(x, y), pearson(ranks(x), ranks(y))];
  return {
    pearson: byValue,
    spearman: byRank,
    pearsonSpearmanMean: meanOf(byValue, byRank),
    mse: ratio(sum(errors.map((error) => error * error)), x.length),
    mae: ratio(sum(errors.map(Math.abs)), x.length),
    examples: x.length,
  };
}

/** In two passes: a large common offset must not drown the deviations. */
function pearson(x: readonly number[], y: readonly number[]): number | null {
  const [dx, dy] = [deviations(x), deviations(y)];
  const [normX, normY] = [norm(dx), norm(dy)];
  if (normX === 0 || normY === 0 || isConstant(x) || isConstant(y)) return null;
  const r = sum(dx.map((value, i) => (value / normX) * ((dy[i] as number) / normY)));
  return Math.min(1, Math.max(-1, r));
}

/** Ranks from 1; equal values share the mean of theirs. */
function ranks(values: readonly number[]): number[] {
  const order = values
    .map((_, i) => i)
    .sort((a, b) => (values[a] as number) - (values[b] as number));
  const result = Array<number>(values.length).fill(0);
  for (let start = 0; start < order.length; ) {
    let end = start + 1;
    const value = values[order[start] as number];
    while (end < order.length && values[order[end] as number] === value) end++;
    for (let at = start; at < end; at++) result[order[at] as number] = (start + 1 + end) / 2;
    start = end;
  }
  return result;
}

function deviations(values: readonly number[]): number[] {
  const mean = sum(values) / values.length;
  return values.map((value) => value - mean);
}

const isConstant = (values: readonly number[]): boolean => values.every((v) => v === values[0]);
const norm = (values: readonly number[]): number => Math.sqrt(sum(values.map((v) => v * v)));
const sum = (values: readonly number[]): number => values.reduce((total, v) => total + v, 0);
const meanOf = (a: number | null, b: number | null): number | null =>
  a === null || b === null ? null : (a + b) / 2;
const ratio = (part: number, whole: number): number => (whole === 0 ? 0 : part / whole);

function checkLengths(labels: ArrayLike<number>, predictions: ArrayLike<number>): void {
  if (labels.length === predictions.length && labels.length > 0) return;
  throw new ArgumentError(
    `metrics: ${labels.length} labels and ${predictions.length} predictions; needs as many, and one at least`,
  );
}
