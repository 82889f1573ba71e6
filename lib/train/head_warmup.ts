/**
 * A linear probe before tuning: only the head is trained, on the frozen model's hidden states, which are computed once. A
 * teacher whose head has random values gives no useful targets; with a probed head, its outputs show what the pre-trained model
 * knows about the task.
 */
import {
  collectGradients,
  decaysIn,
  refreshWorking,
  type TrainedParameter,
  trainedParameter,
} from '../adapters/trained_parameter.ts';
import type { LabelledBatch } from '../data/labelled_batches.ts';
import { shuffledOrder } from '../data/philox.ts';
import { ArgumentError, NativeError } from '../errors.ts';
import { modelBatch } from '../eval/classify.ts';
import { nluTaskLoss } from '../losses/logits_loss.ts';
import { useModel } from '../models/in_use.ts';
import type { SequenceClassifier } from '../models/index.ts';
import { concat, indexSelect } from '../ops/index.ts';
import { AdamW } from '../optim/adamw.ts';
import {
  type CallTable,
  checkArgument,
  checkCall,
  finiteNumber,
  kCall,
  wholeNumber,
  withMethods,
} from '../options/call.ts';
import { DEFAULT_SEED } from '../options/option.ts';
import { synchronize, yieldToEventLoop } from '../runtime.ts';
import { noGrad, scope, Tensor, tensor, unscoped } from '../tensor.ts';
import type { BatchSource } from './types.ts';

/** Options of {@link warmUpHead}. */
export interface HeadWarmUpOptions {
  /** Number of passes over the examples. Default 20. */
  epochs?: number;
  /** Peak learning rate of AdamW, which falls linearly to 0. Default 5e-3. */
  learningRate?: number;
  /** Decoupled weight decay of AdamW. Default 0. */
  weightDecay?: number;
  /** Number of examples in a step. Default 64. */
  batchSize?: number;
  /** Seed of the order of the examples. Default 42. */
  seed?: number;
  signal?: AbortSignal;
}

/** The kinds of the options. */
const kTable: CallTable<HeadWarmUpOptions> = {
  epochs: wholeNumber({ least: 1 }),
  learningRate: finiteNumber({ least: 0, above: true }),
  weightDecay: finiteNumber({ least: 0 }),
  batchSize: wholeNumber({ least: 1 }),
  seed: wholeNumber({ least: 0 }),
  signal: kCall.signal,
};

/** The result of {@link warmUpHead}. */
export interface HeadWarmUp {
  /** Mean task loss over the last epoch. */
  readonly loss: number;
  readonly examples: number;
  /** Paths of the parameters that were trained. */
  readonly trained: readonly string[];
}

/**
 * Trains the modules of the head (`model.headPaths`) in place; all other parameters stay frozen, and the head is frozen
 * afterwards. Call it before adding an adapter: the teacher then has the probed head, and a trained head starts from it.
 * @param data the examples; epoch 0 of it is read once, in its own order
 * @throws ArgumentError for options out of range or data without examples
 */
export async function warmUpHead(
  model: SequenceClassifier,
  data: BatchSource<LabelledBatch>,
  options: HeadWarmUpOptions = {},
): Promise<HeadWarmUp> {
  checkArgument('warmUpHead: the model', kClassifier, model);
  checkArgument('warmUpHead: the data', kBatchSource, data);
  checkCall('warmUpHead', options, kTable);
  const settings = withDefaults(options);
  const release = useModel(model);
  try {
    return await warmUp(model, data, settings);
  } finally {
    release();
  }
}

const kClassifier = withMethods('a classifier', 'headInputsOf', 'namedModules');
/** Data of which each epoch is made of micro-batches. */
const kBatchSource = withMethods('a source of micro-batches, such as LabelledBatches', 'batches');

async function warmUp(
  model: SequenceClassifier,
  data: BatchSource<LabelledBatch>,
  settings: ReturnType<typeof withDefaults>,
): Promise<HeadWarmUp> {
  const { features, labels, width } = await headFeatures(model, data, settings.signal);
  const head = trainableHead(model);
  const optimizer = new AdamW([{ parameters: head }], { weightDecay: settings.weightDecay });
  try {
    const examples = features.shape[0] as number;
    const steps = Math.ceil(examples / settings.batchSize) * settings.epochs;
    let [step, loss] = [0, 0];
    for (let epoch = 0; epoch < settings.epochs; epoch++) {
      const order = shuffledOrder(examples, settings.seed, epoch);
      loss = 0;
      for (let start = 0; start < examples; start += settings.batchSize) {
        settings.signal?.throwIfAborted();
        const rows = Int32Array.from(order.subarray(start, start + settings.batchSize));
        const mean = probeLoss(model, features, { rows, labels, width });
        const value = await mean.item();
        mean.dispose();
        const { learningRate } = settings;
        requireFinite(value, { step: step + 1, dtype: model.dtype, learningRate });
        collectGradients(head);
        optimizer.step({ learningRate: settings.learningRate * (1 - step++ / steps) });
        optimizer.zeroGrad();
        refreshWorking(head);
        loss += (value * rows.length) / examples;
      }
      await yieldToEventLoop();
    }
    return { loss, examples, trained: head.map(({ name }) => name) };
  } finally {
    features.dispose();
    optimizer.dispose();
    freezeHead(head);
    await synchronize();
  }
}

/** Refuses a loss that is not finite. @throws NativeError (`ERR_NOT_FINITE`) naming the step */
function requireFinite(
  loss: number,
  { step, dtype, learningRate }: { step: number; dtype: string; learningRate: number },
): void {
  if (Number.isFinite(loss)) return;
  throw new NativeError(`warmUpHead: step ${step}: not finite (loss ${loss})`, {
    code: 'ERR_NOT_FINITE',
    advice: `lower the learning rate (now ${learningRate}), or load the model in dtype f32 (now ${dtype})`,
  });
}

/**
 * Copies the head of one model into another of the same kind, as for a second model that serves as the teacher of the first.
 */
export function copyHead(from: SequenceClassifier, to: SequenceClassifier): void {
  const source = new Map(from.namedParameters());
  for (const [name, old] of [...to.namedParameters()]) {
    if (!isOfHead(to, name)) continue;
    const value = source.get(name);
    if (value === undefined || value.shape.join() !== old.shape.join()) {
      throw new ArgumentError(
        `copyHead: ${name} must have the same shape in both models; load both with the same numLabels`,
      );
    }
    const { tensor: master, working } = trainedParameter({ name, base: old, decays: false }, value);
    if (working !== master) master.dispose();
    working.requiresGrad = false;
    to.replaceParameter(old, working.freeze());
    old.dispose();
  }
}

interface Features {
  /** The head's inputs (M,C), one row for each example. */
  readonly features: Tensor;
  readonly labels: Int32Array | Float32Array;
  /** The number of label values of an example. */
  readonly width: number;
}

async function headFeatures(
  model: SequenceClassifier,
  data: BatchSource<LabelledBatch>,
  signal: AbortSignal | undefined,
): Promise<Features> {
  const parts: Tensor[] = [];
  const labels: number[] = [];
  let examples = 0;
  let classes = true;
  try {
    for await (const batch of data.batches(0, 0)) {
      signal?.throwIfAborted();
      parts.push(scope(() => noGrad(() => model.headInputsOf(modelBatch(model, batch)))));
      labels.push(...batch.labels);
      examples += batch.indices.length;
      classes = batch.labels instanceof Int32Array;
      await synchronize();
    }
    if (examples === 0)
      throw new ArgumentError('warmUpHead: the data has no example; give it at least one');
    const features = unscoped(() => noGrad(() => concat(parts)));
    const values = classes ? Int32Array.from(labels) : Float32Array.from(labels);
    return { features, labels: values, width: labels.length / examples };
  } finally {
    for (const part of parts) part.dispose();
  }
}

/** Makes the head's parameters trainable, in place, and returns them. */
function trainableHead(model: SequenceClassifier): TrainedParameter[] {
  const head: TrainedParameter[] = [];
  for (const [path, module] of [...model.namedModules()]) {
    for (const [attribute, base] of Object.entries(module)) {
      const name = `${path}.${attribute}`;
      if (!(base instanceof Tensor) || !isOfHead(model, name)) continue;
      const parameter = trainedParameter({ name, base, decays: decaysIn(module, attribute) });
      model.replaceParameter(base, parameter.working);
      base.dispose();
      head.push(parameter);
    }
  }
  return head;
}

function freezeHead(head: readonly TrainedParameter[]): void {
  for (const { tensor: master, working } of head) {
    if (working !== master) master.dispose();
    working.requiresGrad = false;
    working.grad = null;
    working.freeze();
  }
}

function isOfHead(model: SequenceClassifier, name: string): boolean {
  return model.headPaths.some((path) => name.startsWith(`${path}.`));
}

/** The mean loss of the head on the chosen examples, after running its forward and backward pass. */
function probeLoss(
  model: SequenceClassifier,
  features: Tensor,
  { rows, labels, width }: Omit<Features, 'features'> & { rows: Int32Array },
): Tensor {
  return scope(() => {
    const cuSeqlens = Int32Array.from({ length: rows.length + 1 }, (_, b) => b);
    // Each example is a sequence of a single row.
    const batch = { inputIds: rows, positions: rows, cuSeqlens };
    const { device } = features;
    const logits = model.logits(indexSelect(features, tensor(rows, { device })), batch);
    const chosen = Array.from(rows).flatMap((row) =>
      Array.from(labels.subarray(row * width, (row + 1) * width)),
    );
    const targets =
      labels instanceof Int32Array
        ? tensor(Int32Array.from(chosen), { device })
        : tensor(Float32Array.from(chosen), { shape: [rows.length, width], device });
    const loss = nluTaskLoss(logits, targets, model.problemType);
    loss.backward();
    return loss.detach();
  });
}

function withDefaults(options: HeadWarmUpOptions) {
  const {
    epochs = 20,
    learningRate = 5e-3,
    weightDecay = 0,
    batchSize = 64,
    seed = DEFAULT_SEED,
  } = options;
  return { epochs, learningRate, weightDecay, batchSize, seed, signal: options.signal };
}
