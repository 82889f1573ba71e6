// However a run diverges, it ends as one error: ERR_NOT_FINITE, with the step, what is not finite, and what to do.
import { describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { NamedTensor, TunedModel } from '../../lib/adapters/tuned_model.ts';
import { errorFromCode, NativeError } from '../../lib/errors.ts';
import { evaluateClassifier } from '../../lib/eval/classify.ts';
import { copy_, fill_ } from '../../lib/ops/index.ts';
import { setAnomalyMode } from '../../lib/runtime.ts';
import { noGrad, tensor } from '../../lib/tensor.ts';
import { calibrate } from '../../lib/train/calibrate.ts';
import { placed } from '../../lib/train/failure.ts';
import { warmUpHead } from '../../lib/train/head_warmup.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { TrainCallback } from '../../lib/train/types.ts';
import { createCalibrated } from '../support/calibrated.ts';
import { kMethodConfigs } from '../support/method_configs.ts';
import { tinyClassifier, tinyLabelled } from '../support/tiny_classifier.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';

const kAdvice = /lower the learning rate \(.+ in this step\).*maxGradNorm \(now \d.*setAnomalyMode/;
const kNone = { consistencyWeight: 0, diversityWeight: 0, svdWeight: 0 };
const kAtOnce = { regularizerSchedule: 'constant' } as const;

const optionsFor = (tuned: TunedModel, more: Partial<TrainerOptions> = {}): TrainerOptions => ({
  tuned,
  data: tinySource(tinyBatches()),
  learningRate: 0.02,
  lrSchedulerType: 'constant',
  maxSteps: 6,
  ...more,
});

async function failureOf(work: Promise<unknown>): Promise<NativeError> {
  const error = await work.then(
    () => expect.unreachable('it came to its end'),
    (thrown: unknown) => thrown,
  );
  expect(error).toBeInstanceOf(NativeError);
  expect(error).toMatchObject({ code: 'ERR_NOT_FINITE' });
  return error as NativeError;
}

/** A callback that spoils a trained parameter after a step. */
const spoiling =
  (tuned: TunedModel, step: number, value: number): TrainCallback =>
  (event) => {
    if (event.type !== 'step' || event.record.step !== step) return;
    const [first] = tuned.parameters() as [NamedTensor];
    noGrad(() => fill_(first.tensor, value));
  };

describe('a run that diverges', () => {
  it('by its learning rate, under the regularizers of the default method', async () => {
    const tuned = await AdapterModel.create(new TinyModel(), { method: 'balora', r: 4 });
    const regularizers = { svdTopK: 3, ...kAtOnce };
    const options = optionsFor(tuned, { learningRate: 1e30, warmupSteps: 0, regularizers });
    const { message } = await failureOf(new Trainer(options).train());
    expect(message).toMatch(/^step 2: not finite \(.+\); the parameters are those after step 1; /);
    expect(message).toMatch(kAdvice);
    expect(message).toContain('1e+30');
  });

  it.each([
    ['the task', {}],
    ['consistency', { consistencyWeight: 0.1 }],
    ['diversity', { diversityWeight: 0.1, ...kAtOnce }],
    ['svd', { svdWeight: 0.1, svdTopK: 3, ...kAtOnce }],
    ['svd by the nuclear norm', { svdWeight: 0.1, svdTopK: 3, svdNorm: 'nuclear', ...kAtOnce }],
  ] as const)('in %s, by NaN and by infinity', async (_, given) => {
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const tuned = await AdapterModel.create(new TinyModel(), { r: 4 });
      const regularizers = { ...kNone, ...given };
      const callbacks = [spoiling(tuned, 2, value)];
      const run = new Trainer(optionsFor(tuned, { regularizers, callbacks })).train();
      const { message } = await failureOf(run);
      expect(message).toMatch(/^step 3: not finite \(.+\); the parameters are those after step 2;/);
      expect(message).toMatch(kAdvice);
    }
  });

  it.each(kMethodConfigs)('under the method %s', async (_, config) => {
    const tuned = await createCalibrated(new TinyModel(), config);
    const regularizers = { svdTopK: 3, ...kAtOnce };
    const callbacks = [spoiling(tuned, 2, Number.NaN)];
    const run = new Trainer(optionsFor(tuned, { regularizers, callbacks })).train();
    const { message } = await failureOf(run);
    expect(message).toMatch(/^step 3: not finite \(.+\); .*; lower the learning rate/);
  });

  it('in its optimiser, whose parameters are being written', async () => {
    const tuned = await AdapterModel.create(new TinyModel(), { r: 4 });
    const afterBackward: TrainerOptions['afterBackward'] = ({ step, parameters }) => {
      if (step !== 2) return;
      for (const { tensor: factor } of parameters) noGrad(() => fill_(factor, Number.NaN));
    };
    const more = { optim: 'riemannian', regularizers: kNone, afterBackward } as const;
    const { message } = await failureOf(new Trainer(optionsFor(tuned, more)).train());
    expect(message).toMatch(
      /^step 3: not finite \(eigh: .*\); while the parameters were written; /,
    );
  });

  it('in anomaly mode, with the op and the place where it was called', async () => {
    const tuned = await AdapterModel.create(new TinyModel(), { r: 4 });
    setAnomalyMode(true);
    try {
      const callbacks = [spoiling(tuned, 2, Number.POSITIVE_INFINITY)];
      const options = optionsFor(tuned, { regularizers: kNone, callbacks });
      const { message } = await failureOf(new Trainer(options).train());
      expect(message).toMatch(
        /^step 3: not finite \(linear.* made a value that is not finite.*; lower the learning rate/,
      );
    } finally {
      setAnomalyMode(false);
    }
  });

  it('keeps the lines of an op that say where it was called, in the stack too', () => {
    const line = '  enqueued at mine.ts:7';
    const found = errorFromCode('ERR_NOT_FINITE', `add made a value that is not finite\n${line}`);
    const error = placed(found, (what, by) => new NativeError(`step 1: ${what}`, by)) as Error;
    expect(error.message).toBe(`step 1: add made a value that is not finite\n${line}`);
    expect(error.stack).toContain(error.message);
    expect(error.cause).toBe(found);
  });

  it('in its last update, which no later loss shows', async () => {
    const tuned = await AdapterModel.create(new TinyModel(), { r: 4 });
    const callbacks = [spoiling(tuned, 6, Number.POSITIVE_INFINITY)];
    const run = new Trainer(optionsFor(tuned, { regularizers: kNone, callbacks })).train();
    const { message } = await failureOf(run);
    expect(message).toMatch(
      /^step 6: not finite \(the largest parameter after the update is Infinity\)/,
    );
  });

  it.each(['evaluation', 'sample'] as const)('in an %s between two steps', async (part) => {
    const tuned = await AdapterModel.create(new TinyModel({ vocabulary: 300 }), { r: 4 });
    const callbacks: TrainCallback[] = [
      part === 'evaluation'
        ? spoiling(tuned, 2, Number.NaN)
        : async (event) => {
            if (event.type === 'evaluating') await spoiling(tuned, 2, Number.NaN)(stepEvent(2));
          },
    ];
    const more = { evalData: tinySource(tinyBatches({ count: 1 })), evalSteps: 2, callbacks };
    const samplePrompts = { prompt: 'ab', tokenizer: tinyTokenizer(), maxNewTokens: 2 };
    const options = optionsFor(tuned, {
      regularizers: kNone,
      ...more,
      ...(part === 'sample' && { samplePrompts }),
    });
    const { message } = await failureOf(new Trainer(options).train());
    expect(message).toMatch(
      part === 'evaluation'
        ? /^step 2: not finite in the evaluation after it \(evaluate: the loss is NaN.*; lower the/
        : /^step 2: not finite in the evaluation after it \(generate: the logit.*; lower the/,
    );
  });
});

const stepEvent = (step: number) => ({ type: 'step', record: { step } }) as never;

describe('what comes before a run', () => {
  it.each([
    ['corda', {}],
    ['eva', {}],
    ['lora_ga', {}],
    ['lora_ga', { quick: true }],
  ] as const)('a calibration of %s names its micro-batch', async (method, settings) => {
    const model = new TinyModel();
    // The id 2 is in one micro-batch only.
    const { embed_tokens: table } = model;
    const rows = Float32Array.from(table.dataSync() as Float32Array);
    rows.fill(Number.NaN, 2 * 8, 3 * 8);
    noGrad(() => copy_(table, tensor(rows, { shape: table.shape })));
    const batches = tinyBatches({ rows: 24 }).map((batch, b) => ({
      ...batch,
      inputIds: batch.inputIds.map((id) => (id === 2 && b !== 2 ? 3 : id)),
    }));
    // The head is the table, so that only the inputs are spoilt for starts that read these.
    const data = tinySource(method === 'lora_ga' ? batches.slice(2) : batches);
    const { message } = await failureOf(calibrate(model, { r: 2, method }, { data, settings }));
    const number = method === 'lora_ga' ? 1 : 3;
    expect(message).toMatch(
      new RegExp(`^calibrate: micro-batch ${number}: not finite \\(.+\\); .* dtype f32`),
    );
  });

  it('the warm-up of a head names its step', async () => {
    const model = await tinyClassifier();
    const data = await tinyLabelled(24, { batchSize: 8 });
    const { message } = await failureOf(warmUpHead(model, data, { learningRate: 1e38 }));
    expect(message).toMatch(/^warmUpHead: step 2: not finite \(loss .+\); lower the learning rate/);
  });
});

it('the evaluation of a classifier is not a number of NaN', async () => {
  const model = await tinyClassifier();
  const data = await tinyLabelled(24, { batchSize: 8 });
  const tuned = await AdapterModel.create(model, { r: 2 });
  const [first] = tuned.parameters() as [NamedTensor];
  noGrad(() => fill_(first.tensor, Number.NaN));
  const { message } = await failureOf(evaluateClassifier(model, data.batches()));
  expect(message).toMatch(/^evaluate: the loss is NaN: /);
});
