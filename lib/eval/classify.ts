/** Evaluation of classifiers on held-out data. */
import { orReason, withAbort } from '../abort.ts';
import type { LabelledBatch } from '../data/labelled_batches.ts';
import { ArgumentError } from '../errors.ts';
import { nluTaskLoss } from '../losses/logits_loss.ts';
import type { SequenceClassifier } from '../models/index.ts';
import { withMethods } from '../options/call.ts';
import { noGrad, scope, type Tensor, tensor } from '../tensor.ts';
import { requireFinite } from './evaluate.ts';
import { classificationMetrics, multiLabelMetrics, regressionMetrics } from './metrics.ts';
import { type ClassifierEvaluation, checkEvaluation, type EvaluateOptions } from './types.ts';

const kClassifier = withMethods('a classifier', 'outputs', 'forward');

/** The inputs of a model's forward pass for a batch: with token types if the model reads them. */
export function modelBatch(model: SequenceClassifier, batch: LabelledBatch) {
  const { inputIds, positions, cuSeqlens, tokenTypeIds } = batch;
  const rows = { inputIds, positions, cuSeqlens };
  return model.readsTokenTypes ? { ...rows, tokenTypeIds } : rows;
}

/** The labels of a batch as a tensor: class ids (B) in i32, or values (B,D) in f32. */
export function labelTensor(model: SequenceClassifier, { labels, indices }: LabelledBatch): Tensor {
  const classes = model.problemType === 'single_label_classification';
  if (classes !== labels instanceof Int32Array) {
    throw new ArgumentError(
      `labels: the labels of the data do not fit ${model.problemType}; make the data with that problemType`,
    );
  }
  const { device, numLabels } = model;
  return classes
    ? tensor(labels, { device })
    : tensor(labels, { shape: [indices.length, numLabels], device });
}

/**
 * Computes loss, metrics and predictions. The prediction is the class of the largest output (the first of equals), the outputs
 * themselves for regression, or 1 for each label whose output is above 0.
 * @throws ArgumentError for an option of another type, and when there is no example; NativeError (`ERR_NOT_FINITE`) for a loss that is not
 *   finite
 */
export async function evaluateClassifier(
  model: SequenceClassifier,
  batches: AsyncIterable<LabelledBatch> | Iterable<LabelledBatch>,
  options: EvaluateOptions = {},
): Promise<ClassifierEvaluation> {
  checkEvaluation({ model, kind: kClassifier, batches }, options);
  const { signal, onProgress } = options;
  const begun = performance.now();
  const rows: { index: number; label: number[]; prediction: number[] }[] = [];
  let [loss, tokens] = [0, 0];
  for await (const batch of batches) {
    signal?.throwIfAborted();
    const [values, own] = await orReason(signal, async () => {
      const [logits, mean] = scope(() =>
        noGrad(() =>
          withAbort(signal, () => {
            const outputs = model.outputs(modelBatch(model, batch));
            const task = nluTaskLoss(outputs, labelTensor(model, batch), model.problemType);
            return [outputs.to('f32'), task] as const;
          }),
        ),
      );
      try {
        return [(await logits.data()) as Float32Array, await mean.item()] as const;
      } finally {
        logits.dispose();
        mean.dispose();
      }
    });
    loss += own * batch.indices.length;
    tokens += batch.inputIds.length;
    const width = batch.labels.length / batch.indices.length;
    batch.indices.forEach((index, b) => {
      const outputs = values.subarray(b * model.numLabels, (b + 1) * model.numLabels);
      const label = Array.from(batch.labels.subarray(b * width, (b + 1) * width));
      rows.push({ index, label, prediction: predicted(outputs, model) });
    });
    onProgress?.(rows.length);
  }
  if (rows.length === 0)
    throw new ArgumentError('evaluate: the data has no example; give it at least one');
  requireFinite({ loss });
  rows.sort((a, b) => a.index - b.index);
  const scalarOrList = (values: number[]) => (values.length === 1 ? (values[0] as number) : values);
  return {
    problemType: model.problemType,
    loss: loss / rows.length,
    examples: rows.length,
    tokens,
    metrics: metricsOf(rows, model),
    predictions: rows.map(({ prediction }) => scalarOrList(prediction)),
    labels: rows.map(({ label }) => scalarOrList(label)),
    seconds: (performance.now() - begun) / 1000,
  };
}

function predicted(outputs: Float32Array, { problemType }: SequenceClassifier): number[] {
  if (problemType === 'regression') return Array.from(outputs);
  if (problemType === 'multi_label_classification')
    return Array.from(outputs, (z) => Number(z > 0));
  let best = 0;
  outputs.forEach((z, d) => {
    if (z > (outputs[best] as number)) best = d;
  });
  return [best];
}

/** The metrics of examples and their predictions, by the problem type. */
export function metricsOf(
  rows: readonly { label: number[]; prediction: number[] }[],
  { problemType, numLabels }: Pick<SequenceClassifier, 'problemType' | 'numLabels'>,
): ClassifierEvaluation['metrics'] {
  const labels = rows.flatMap(({ label }) => label);
  const predictions = rows.flatMap(({ prediction }) => prediction);
  if (problemType === 'regression') return regressionMetrics(labels, predictions);
  return problemType === 'single_label_classification'
    ? classificationMetrics(labels, predictions, numLabels)
    : multiLabelMetrics(labels, predictions, numLabels);
}
