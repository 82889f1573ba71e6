/** Calibration of predictions: whether a model is right as often as it is sure of itself. */
import { ArgumentError } from '../errors.ts';
import { checkCall, wholeNumber } from '../options/call.ts';

/** The predictions whose confidences lie between two edges. */
export interface CalibrationBin {
  readonly count: number;
  /** Mean confidence of the bin; 0 for an empty one. */
  readonly confidence: number;
  /** Share of the bin that is right; 0 for an empty one. */
  readonly accuracy: number;
}

/** The calibration of predictions. */
export interface CalibrationError {
  /** Expected calibration error (Naeini et al. 2015): the mean over predictions of |confidence - accuracy| of their bin. */
  readonly ece: number;
  /** The largest |confidence - accuracy| of a bin. */
  readonly max: number;
  readonly bins: readonly CalibrationBin[];
}

/**
 * Computes the expected calibration error with bins of equal width; a confidence on an edge belongs to the bin above it, and 1 to the
 * last one.
 * @param confidences of the predictions, from 0 to 1
 * @param correct whether each prediction is right
 * @throws ArgumentError for lists of different lengths, none at all, or a confidence outside 0 to 1
 */
export function expectedCalibrationError(
  confidences: ArrayLike<number>,
  correct: ArrayLike<boolean | number>,
  options: { readonly bins?: number } = {},
): CalibrationError {
  checkCall('expectedCalibrationError', options, { bins: wholeNumber({ least: 1 }) });
  const { bins = 15 } = options;
  if (confidences.length !== correct.length || confidences.length === 0) {
    throw new ArgumentError(
      `calibration: there must be as many confidences as predictions, and at least one, got ${confidences.length} and ${correct.length}`,
    );
  }
  const sums = Array.from({ length: bins }, () => ({ count: 0, confidence: 0, right: 0 }));
  for (let i = 0; i < confidences.length; i++) {
    const confidence = confidences[i] as number;
    if (!(confidence >= 0 && confidence <= 1)) {
      throw new ArgumentError(`calibration: a confidence must be from 0 to 1, got ${confidence}`);
    }
    const bin = sums[Math.min(bins - 1, Math.floor(bins * confidence))] as (typeof sums)[number];
    bin.count++;
    bin.confidence += confidence;
    bin.right += Number(correct[i]);
  }
  const found = sums.map(({ count, confidence, right }) => ({
    count,
    confidence: count === 0 ? 0 : confidence / count,
    accuracy: count === 0 ? 0 : right / count,
  }));
  const gaps = found.map(({ confidence, accuracy }) => Math.abs(confidence - accuracy));
  const ece = found.reduce((sum, { count }, i) => sum + count * (gaps[i] as number), 0);
  return { ece: ece / confidences.length, max: Math.max(...gaps), bins: found };
}

/** The probabilities of classes by their logits, or of answers by their log-likelihoods. */
export function softmax(logits: ArrayLike<number>): number[] {
  const values = Array.from(logits);
  const largest = values.reduce((most, value) => Math.max(most, value), Number.NEGATIVE_INFINITY);
  const shares = values.map((value) => Math.exp(value - largest));
  const sum = shares.reduce((total, share) => total + share, 0);
  return shares.map((share) => share / sum);
}

/**
 * The Brier score: the mean over examples of the squared distance between the probabilities and the one-hot label, summed over classes.
 * @param probabilities of the classes, for each example
 */
export function brierScore(
  probabilities: readonly (readonly number[])[],
  labels: ArrayLike<number>,
): number {
  const distances = probabilities.map((row, i) =>
    row.reduce((sum, p, c) => sum + (p - Number(c === labels[i])) ** 2, 0),
  );
  return distances.reduce((sum, distance) => sum + distance, 0) / distances.length;
}
