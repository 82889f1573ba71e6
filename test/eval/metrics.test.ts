// Metrics against scikit-learn and scipy, and extraction of answers against hand-written cases (../fixtures/metrics).
import { describe, expect, it } from 'vitest';
import {
  gsm8kAnswer,
  gsm8kCorrect,
  gsm8kGold,
  mathAnswer,
  mathCorrect,
} from '../../lib/eval/answers.ts';
import {
  classificationMetrics,
  confusionMatrix,
  multiLabelMetrics,
  regressionMetrics,
} from '../../lib/eval/metrics.ts';
import { fixturePath, readJson } from '../support/fixtures.ts';

interface Case {
  name: string;
  kind: 'classification' | 'regression';
  labels: number[];
  predictions: number[];
  num_labels: number;
  confusion: number[][];
  values: Record<string, number | number[] | 'nan'>;
}
const { cases } = readJson(fixturePath('metrics/metrics.json')) as { cases: Case[] };
const kTolerance = 1e-12;

const camel = (name: string) =>
  name === 'mean_of_both'
    ? 'pearsonSpearmanMean'
    : name.replace(/_(\w)/g, (_, c: string) => c.toUpperCase());
function expectMetrics(found: object, expected: Case['values']): void {
  for (const [name, value] of Object.entries(expected)) {
    const got = (found as Record<string, number | number[] | null>)[camel(name)];
    if (value === 'nan') expect(got, name).toBeNull();
    else if (Array.isArray(value)) {
      expect((got as number[]).length, name).toBe(value.length);
      value.forEach((v, i) => {
        expect(Math.abs(((got as number[])[i] as number) - v), name).toBeLessThanOrEqual(
          kTolerance,
        );
      });
    } else expect(Math.abs((got as number) - value), name).toBeLessThanOrEqual(kTolerance);
  }
}

describe('classification', () => {
  it.each(cases.filter(({ kind }) => kind === 'classification'))('$name', (c) => {
    const found = classificationMetrics(c.labels, c.predictions, c.num_labels);
    expect(found.confusion).toEqual(c.confusion);
    expect(found.examples).toBe(c.labels.length);
    expectMetrics(found, c.values);
  });
});

describe('regression', () => {
  it.each(cases.filter(({ kind }) => kind === 'regression'))('$name', (c) => {
    expectMetrics(regressionMetrics(c.labels, c.predictions), c.values);
  });
});

describe('multi-label metrics', () => {
  it('count decisions, examples and classes', () => {
    const labels = [1, 0, 1, 0, 1, 1];
    const predictions = [1, 0, 0, 0, 1, 1];
    expect(multiLabelMetrics(labels, predictions, 3)).toEqual({
      accuracy: 5 / 6,
      exactMatch: 0.5,
      f1Macro: (1 + 1 + 2 / 3) / 3,
      f1Micro: 6 / 7,
      precisionPerClass: [1, 1, 1],
      recallPerClass: [1, 1, 0.5],
      f1PerClass: [1, 1, 2 / 3],
      examples: 2,
    });
  });
});

describe('bad arguments', () => {
  it.each([
    [() => classificationMetrics([0, 1], [0], 2), /as many labels as predictions, .* got 2 and 1/],
    [() => classificationMetrics([], [], 2), /at least one, got 0 and 0/],
    [
      () => confusionMatrix([0, 2], [0, 1], 2),
      /example 1 has label 2 and prediction 1; both must be class ids from 0 to 1/,
    ],
    [() => confusionMatrix([0, 1], [0, -1], 2), /prediction -1/],
    [
      () => multiLabelMetrics([0, 1, 1], [0, 1, 1], 2),
      /must be a multiple of 2 \(numLabels\), got 3/,
    ],
  ])('%#', (make, message) => {
    expect(make).toThrow(message);
  });
});

interface Answers {
  gsm8k: { output: string; extracted: string | null; gold: string; correct: boolean }[];
  gsm8k_gold: { answer: string; gold: string }[];
  math: { output: string; extracted: string | null; gold: string; correct: boolean }[];
}

describe('answers', () => {
  const answers = readJson(fixturePath('metrics/answers.json')) as Answers;
  it.each(answers.gsm8k)('GSM8K: $output', ({ output, extracted, gold, correct }) => {
    expect(gsm8kAnswer(output)).toBe(extracted);
    expect(gsm8kCorrect(output, gold)).toBe(correct);
  });
  it.each(answers.gsm8k_gold)('GSM8K gold: $answer', ({ answer, gold }) => {
    expect(gsm8kGold(answer)).toBe(gold);
  });
  it.each(answers.math)('MATH: $output', ({ output, extracted, gold, correct }) => {
    expect(mathAnswer(output)).toBe(extracted);
    expect(mathCorrect(output, gold)).toBe(correct);
  });
  it('compare numbers digit by digit', () => {
    expect(gsm8kCorrect('#### 9007199254740993', '9007199254740993')).toBe(true);
    expect(gsm8kCorrect('The answer is: 9007199254740992', '9007199254740993')).toBe(false);
    expect(gsm8kCorrect('The answer is: 007.50', '7.5')).toBe(true);
    expect(gsm8kGold('no mark')).toBeNull();
  });
});
