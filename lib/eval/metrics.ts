/**
 * Metrics of classification and regression, as scikit-learn and scipy define them. In classification, 0/0 counts as 0. The
 * correlation with a constant is undefined and given as null.
 */
import { ArgumentError } from '../errors.ts';

/** Counts of examples by label (rows) and prediction (columns). */
export type ConfusionMatrix = readonly (readonly number[])[]; // (D,D)

/** Metrics of classification with one class for each example. */
export interface ClassificationMetrics {
  /** Fraction of the examples whose prediction is correct. */
  readonly accuracy: number;
  /** Matthews correlation coefficient (Gorodkin's R_K for more than two classes). */
  readonly matthews: number;
  /** F1 of class 1, as GLUE defines it; null for more than two classes. */
  readonly f1Binary: number | null;
  /** Mean of f1Binary and accuracy, GLUE's score of MRPC and QQP; null for more than two classes. */
  readonly f1AccuracyMean: number | null;
  /** Unweighted mean of the F1 of all classes. */
  readonly f1Macro: number;
  /** F1 over all decisions, which equals the accuracy if each example has one class. */
  readonly f1Micro: number;
  /** Mean of the F1 of all classes, weighted by their number of labels. */
  readonly f1Weighted: number;
  readonly precisionPerClass: readonly number[]; // (D)
  readonly recallPerClass: readonly number[]; // (D)
  readonly f1PerClass: readonly number[]; // (D)
  readonly confusion: ConfusionMatrix;
  readonly examples: number;
}

/** Metrics of regression. */
export interface RegressionMetrics {
  /** Pearson's r; null where labels or predictions are constant. */
  readonly pearson: number | null;
  /** Spearman's rho, with mean ranks for ties; null where labels or predictions are constant. */
  readonly spearman: number | null;
  /** Mean of pearson and spearman, GLUE's score of STS-B; null where they are. */
  readonly pearsonSpearmanMean: number | null;
  /** Mean squared error. */
  readonly mse: number;
  /** Mean absolute error. */
  readonly mae: number;
  readonly examples: number;
}

/**
 * Counts the examples by label and prediction.
 * @throws ArgumentError for lists of different lengths or a class outside 0..numLabels-1
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
        `metrics: example ${i} has label ${label} and prediction ${prediction}; both must be class ids from 0 to ${numLabels - 1}`,
      );
    }
    row[prediction] = (row[prediction] as number) + 1;
  }
  return counts;
}

/** Computes the metrics of class ids and their predictions. */
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
  const f1PerClass = classes.map((c) => divideOrZero(2 * c.right, c.labelled + c.predicted));
  const accuracy = divideOrZero(right, examples);
  const f1Binary = numLabels <= 2 ? (f1PerClass[1] ?? 0) : null;
  return {
    accuracy,
    matthews: matthews(classes, right, examples),
    f1Binary,
    f1AccuracyMean: meanOf(f1Binary, accuracy),
    f1Macro: divideOrZero(sum(f1PerClass), numLabels),
    f1Micro: accuracy,
    f1Weighted: divideOrZero(
      sum(f1PerClass.map((f1, c) => f1 * (classes[c]?.labelled ?? 0))),
      examples,
    ),
    precisionPerClass: classes.map((c) => divideOrZero(c.right, c.predicted)),
    recallPerClass: classes.map((c) => divideOrZero(c.right, c.labelled)),
    f1PerClass,
    confusion,
    examples,
  };
}

/**
 * Matthews correlation coefficient of any number of classes (Gorodkin 2004), from the n examples, c of which are predicted
 * correctly, and the numbers t of labels and p of predictions of each class:
 *
 *     R_K = (c n - sum t p) / sqrt((n^2 - sum p^2) (n^2 - sum t^2))
 */
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
  return divideOrZero(numerator, Math.sqrt(spreadOfPredictions) * Math.sqrt(spreadOfLabels));
}

/** Metrics of classification with several yes-or-no labels for each example. */
export interface MultiLabelMetrics {
  /** Fraction of the decisions that are correct. */
  readonly accuracy: number;
  /** Fraction of the examples whose labels are all correct. */
  readonly exactMatch: number;
  readonly f1Macro: number;
  readonly f1Micro: number;
  readonly precisionPerClass: readonly number[]; // (D)
  readonly recallPerClass: readonly number[]; // (D)
  readonly f1PerClass: readonly number[]; // (D)
  readonly examples: number;
}

/**
 * Computes the metrics of D yes-or-no labels for each of N examples.
 * @param labels (N*D) zeros and ones, example by example
 * @param predictions (N*D) zeros and ones, in the same order
 */
export function multiLabelMetrics(
  labels: ArrayLike<number>,
  predictions: ArrayLike<number>,
  numLabels: number,
): MultiLabelMetrics {
  checkLengths(labels, predictions);
  if (labels.length % numLabels !== 0) {
    throw new ArgumentError(
      `metrics: the number of labels must be a multiple of ${numLabels} (numLabels), got ${labels.length}`,
    );
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
    divideOrZero(2 * (both[d] as number), (labelled[d] as number) + (predicted[d] as number)),
  );
  return {
    accuracy: divideOrZero(right, labels.length),
    exactMatch: divideOrZero(exact, examples),
    f1Macro: divideOrZero(sum(f1PerClass), numLabels),
    f1Micro: divideOrZero(2 * sum(both), sum(labelled) + sum(predicted)),
    precisionPerClass: per((d) => divideOrZero(both[d] as number, predicted[d] as number)),
    recallPerClass: per((d) => divideOrZero(both[d] as number, labelled[d] as number)),
    f1PerClass,
    examples,
  };
}

/** Computes the metrics of numbers and their predictions. */
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
    mse: divideOrZero(sum(errors.map((error) => error * error)), x.length),
    mae: divideOrZero(sum(errors.map(Math.abs)), x.length),
    examples: x.length,
  };
}

/** Pearson's r in two passes, so that a large common offset does not cost precision; null if x or y is constant. */
function pearson(x: readonly number[], y: readonly number[]): number | null {
  const [dx, dy] = [deviations(x), deviations(y)];
  const [normX, normY] = [norm(dx), norm(dy)];
  if (normX === 0 || normY === 0 || isConstant(x) || isConstant(y)) return null;
  const r = sum(dx.map((value, i) => (value / normX) * ((dy[i] as number) / normY)));
  return Math.min(1, Math.max(-1, r));
}

/** The ranks of values, counted from 1; equal values have the mean of their ranks. */
function ranks(values: readonly number[]): number[] {
  const order = values
    .map((_, i) => i)
    .sort((a, b) => (values[a] as number) - (values[b] as number));
  const result = Array<number>(values.length).fill(0);
  for (let start = 0; start < order.length; ) {
    let end = start + 1;
    const value = values[order[start] as number];
    while (end < order.length && values[order[end] as number] === value) end++;
    for (let i = start; i < end; i++) result[order[i] as number] = (start + 1 + end) / 2;
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
const divideOrZero = (part: number, whole: number): number => (whole === 0 ? 0 : part / whole);

function checkLengths(labels: ArrayLike<number>, predictions: ArrayLike<number>): void {
  if (labels.length === predictions.length && labels.length > 0) return;
  throw new ArgumentError(
    `metrics: there must be as many labels as predictions, and at least one, got ${labels.length} and ${predictions.length}`,
  );
}
