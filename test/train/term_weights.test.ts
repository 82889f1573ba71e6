// Weights of the regularizers at a step: the adaptive schedule depends on the teacher's entropy relative
// to the largest possible one.
import { expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { LabelledBatches } from '../../lib/data/labelled_batches.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import { bind } from '../../lib/losses/term.ts';
import { consistency } from '../../lib/losses/terms/consistency.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import { tinyClassifier, tinyClassifierTokenizer } from '../support/tiny_classifier.ts';

const kAdaptive = { consistencyWeight: 0.1, consistencySchedule: 'adaptive' as const };

it.each([
  [0, Math.log(3), 0.1],
  [Math.log(3), Math.log(3), 0.01],
  [700, 2000 * Math.LN2, 0.1 - 0.09 * (700 / (2000 * Math.LN2))],
  [0, 0, 0.1],
])('an entropy of %s where the most is %s', (mean, most, weight) => {
  const teacherEntropy = most > 0 ? mean / most : 0;
  const term = bind(consistency, kAdaptive);
  expect(term.readsTeacherEntropy).toBe(true);
  expect(term.weightAt({ step: 0, totalSteps: 10, teacherEntropy })).toBeCloseTo(weight, 12);
});

it('a fresh head with 1100 labels counts as uncertain', async () => {
  const numLabels = 1100;
  const problemType = 'multi_label_classification' as const;
  const label = Array.from({ length: numLabels }, (_, d) => d % 2);
  const data = await LabelledBatches.create(
    arrayRows([{ text: 'a good film', label }]),
    tinyClassifierTokenizer(),
    { numLabels, problemType },
  );
  const model = await tinyClassifier({ numLabels, problemType, newHead: true });
  const tuned = await AdapterModel.create(model, { r: 2 });
  const trainer = new Trainer({ tuned, data, regularizers: kAdaptive, maxSteps: 1 });
  const { last } = await trainer.train();
  // The weight goes from a tenth of l1 for an uncertain teacher to l1 for a certain one.
  expect(last?.terms.consistency?.weight).toBeLessThan(0.02);
});
