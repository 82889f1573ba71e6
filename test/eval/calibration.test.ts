import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { brierScore, expectedCalibrationError, softmax } from '../../lib/eval/calibration.ts';
import { classificationMetrics } from '../../lib/eval/metrics.ts';
import { goldenArray, goldenArrays } from '../support/golden.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

const kGolden = 'golden/evaluation';

interface Calibration {
  readonly ece: number;
  readonly max_calibration_error: number;
  readonly bins: readonly (readonly [number, number, number])[];
  readonly brier: number;
  readonly macro_f1: number;
  readonly recall_per_class: readonly number[];
  readonly confusion: readonly (readonly number[])[];
}

const read = () =>
  JSON.parse(readFileSync(sharedPath(`${kGolden}/collapse.json`), 'utf8')) as {
    calibration: Record<string, Calibration>;
    calibration_edges: { confidence: number[]; correct: number[]; ece: number };
  };

const near = (found: number, wanted: number, tolerance: number) =>
  expect(Math.abs(found - wanted)).toBeLessThanOrEqual(tolerance);

describeShared('calibration by torchmetrics and scikit-learn', [kGolden], () => {
  const golden = read();
  const arrays = goldenArrays(sharedPath(`${kGolden}/collapse.safetensors`));

  it.each(Object.keys(golden.calibration))('%s', (name) => {
    const wanted = golden.calibration[name] as Calibration;
    const logits = goldenArray(arrays, `logits.${name}`);
    const labels = Array.from(goldenArray(arrays, `labels.${name}`).data as Int32Array);
    const classes = logits.shape[1] as number;
    const rows = labels.map((_, i) =>
      softmax((logits.data as Float32Array).slice(i * classes, (i + 1) * classes)),
    );
    const predictions = rows.map((row) => row.indexOf(Math.max(...row)));
    const found = expectedCalibrationError(
      rows.map((row) => Math.max(...row)),
      predictions.map((prediction, i) => prediction === labels[i]),
    );
    near(found.ece, wanted.ece, 1e-6);
    near(found.max, wanted.max_calibration_error, 1e-6);
    found.bins.forEach(({ count, confidence, accuracy }, i) => {
      const [n, c, a] = wanted.bins[i] as readonly [number, number, number];
      expect(count).toBe(n);
      near(confidence, c, 1e-6);
      near(accuracy, a, 1e-9);
    });
    near(brierScore(rows, labels), wanted.brier, 1e-6);
    const { f1Macro, recallPerClass, confusion } = classificationMetrics(
      labels,
      predictions,
      classes,
    );
    near(f1Macro, wanted.macro_f1, 1e-9);
    expect(confusion).toEqual(wanted.confusion);
    recallPerClass.forEach((recall, c) => {
      near(recall, wanted.recall_per_class[c] as number, 1e-9);
    });
  });

  it('puts edges into the bin above, and 1 into the last one', () => {
    const { confidence, correct, ece } = golden.calibration_edges;
    near(expectedCalibrationError(confidence, correct).ece, ece, 1e-9);
  });
});

describe('bad input', () => {
  it('is refused by name', () => {
    expect(() => expectedCalibrationError([], [])).toThrow(/at least one, got 0 and 0/);
    expect(() => expectedCalibrationError([0.5], [])).toThrow(/got 1 and 0/);
    expect(() => expectedCalibrationError([Number.NaN], [1])).toThrow(/from 0 to 1, got NaN/);
  });
});
