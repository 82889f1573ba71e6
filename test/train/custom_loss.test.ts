// Custom losses, written with the public plain losses or the fused ones, against the built-in terms, on a golden llama and on a
// gemma2, whose logits are soft-capped.
import { expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { LoraConfigInput } from '../../lib/adapters/config.ts';
import { ArgumentError } from '../../lib/errors.ts';
import {
  consistencyLoss,
  diversityLoss,
  fusedSvdLoss,
  HeadGram,
  headLogits,
  svdLoss,
} from '../../lib/losses/index.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { add, crossEntropy, headLosses, indexSelect, mul, slice } from '../../lib/ops/index.ts';
import { memoryStats } from '../../lib/runtime.ts';
import { keep, type Tensor, tensor } from '../../lib/tensor.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { LossContext, LossResult, StepRecord } from '../../lib/train/types.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { fixturePath } from '../support/fixtures.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

const kModel = fixturePath('architectures/llama-untied-gqa/model');
const kCapped = fixturePath('architectures/gemma2/model');
const kWeights = { consistency: 0.4, diversity: 0.05, svd: 0.2 };
const kTerms = { temperature: 2, entropyTopK: 5, svdTopK: 3 };

/** Two sequences with unsupervised rows, so that the terms do not use all rows. */
const kBatch = {
  inputIds: Int32Array.of(3, 9, 14, 20, 5, 7, 11, 2, 30, 8),
  targets: Int32Array.of(-100, 14, 20, 5, -100, -100, 2, 30, 8, -100),
  positions: Int32Array.of(0, 1, 2, 3, 4, 0, 1, 2, 3, 4),
  cuSeqlens: Int32Array.of(0, 5, 10),
};

function own(context: LossContext): LossResult {
  const { hidden, headWeight, teacherHidden, teacherHeadWeight, logitSoftcap, batch } = context;
  const head = { softcap: logitSoftcap ?? 0 };
  const supervised = [...batch.targets.keys()].filter((i) => batch.targets[i] !== -100);
  const rows = tensor(Int32Array.from(supervised));
  const targets = tensor(Int32Array.from(supervised, (i) => batch.targets[i] as number));
  const logits = headLogits(indexSelect(hidden, rows), headWeight, head);
  const teacher = headLogits(indexSelect(teacherHidden(), rows), teacherHeadWeight, head);
  const task = crossEntropy(logits, targets);
  const consistency = consistencyLoss(logits, teacher, { temperature: kTerms.temperature });
  const diversity = diversityLoss(logits, { topK: kTerms.entropyTopK });
  const svd = svdLoss(logits, { k: kTerms.svdTopK });
  let loss = add(task, mul(consistency, kWeights.consistency));
  loss = add(loss, mul(diversity, kWeights.diversity));
  loss = add(loss, mul(svd, kWeights.svd));
  const metrics = { task, consistency, diversity, svd };
  const detached = Object.entries(metrics).map(([name, value]) => [name, value.detach()]);
  return { loss, metrics: Object.fromEntries(detached) as Record<string, Tensor> };
}

function ownFused(context: LossContext, gram: HeadGram): LossResult {
  const { hidden, headWeight, teacherHidden, teacherHeadWeight, logitSoftcap, batch } = context;
  const supervised = [...batch.targets.keys()].filter((i) => batch.targets[i] !== -100);
  const count = supervised.length;
  const rows = tensor(Int32Array.from(supervised));
  const student = indexSelect(hidden, rows);
  const softcap = logitSoftcap ?? 0;
  const { temperature, entropyTopK, svdTopK } = kTerms;
  const { loss, sums } = headLosses({
    ...{ hidden: student, head: headWeight, softcap, temperature, entropyTopK },
    ...{ teacher: indexSelect(teacherHidden(), rows), teacherHead: teacherHeadWeight },
    targets: tensor(Int32Array.from(supervised, (i) => batch.targets[i] as number)),
    taskScale: 1 / count,
    consistencyScale: kWeights.consistency / count,
    diversityScale: kWeights.diversity / count,
  });
  const svd = fusedSvdLoss(student, { weight: headWeight, softcap }, gram, { k: svdTopK });
  const mean = (at: number, sign: number): Tensor =>
    mul(slice(sums, 0, { start: at, stop: at + 1 }), sign / count);
  const metrics = { task: mean(0, 1), consistency: mean(1, 1), diversity: mean(2, -1) };
  return { loss: add(loss, mul(svd, kWeights.svd)), metrics: { ...metrics, svd: svd.detach() } };
}

/** Trains by plain gradient descent without clipping, so that the change of the parameters is the sum of the gradients. */
async function run(
  config: LoraConfigInput,
  more: Partial<TrainerOptions> | ((model: CausalLM) => Partial<TrainerOptions>),
  path = kModel,
) {
  const model = await AutoModelForCausalLM.fromPretrained(path, { dtype: 'f32' });
  const tuned = await AdapterModel.create(model, { r: 3, loraAlpha: 6, ...config });
  const options: TrainerOptions = {
    tuned,
    data: tinySource([kBatch]),
    optim: 'sgd',
    learningRate: 0.5,
    lrSchedulerType: 'constant',
    maxGradNorm: 0,
    weightDecay: 0,
    maxSteps: 4,
    ...(typeof more === 'function' ? more(model) : more),
  };
  const records: StepRecord[] = [];
  for await (const event of new Trainer(options).run()) {
    if (event.type === 'step') records.push(event.record);
  }
  const state = Object.entries(tuned.state()).map(
    ([name, value]) => [name, value.dataSync() as Float32Array] as const,
  );
  tuned.dispose();
  model.dispose();
  return { records, state };
}

it.each([
  ['a frozen head', {}, true, kModel],
  ['a trained head', { modulesToSave: ['lm_head'] }, false, kModel],
  ['soft-capped logits', {}, true, kCapped],
] as const)('equals the built-in BA-LoRA with %s', async (_, config, shared, path) => {
  const plain = (context: LossContext) => {
    expect(context.teacherHeadWeight === context.headWeight).toBe(shared);
    expect(context.logitSoftcap).toBe(path === kCapped ? 5 : null);
    return own(context);
  };
  const fused = ({ head }: CausalLM) => {
    const gram = new HeadGram(head.weight);
    return { loss: (context: LossContext) => ownFused(context, gram) };
  };
  const regularizers = {
    consistencyWeight: kWeights.consistency,
    diversityWeight: kWeights.diversity,
    svdWeight: kWeights.svd,
    consistencySchedule: 'constant',
    regularizerSchedule: 'constant',
    ...kTerms,
  } as const;
  const builtIn = await run(config, { regularizers }, path);
  for (const given of [{ loss: plain }, fused]) {
    expectEqual(await run(config, given, path), builtIn);
  }
});

type Run = Awaited<ReturnType<typeof run>>;

function expectEqual(mine: Run, builtIn: Run): void {
  builtIn.records.forEach((record, i) => {
    const found = mine.records[i] as StepRecord;
    // Both sum in f32, in different orders, so that values above 1 are compared relatively.
    expect(found.loss / record.loss).toBeCloseTo(1, 5);
    expect(found.gradNorm / record.gradNorm).toBeCloseTo(1, 4);
    expect((found.custom?.task as number) / record.taskLoss).toBeCloseTo(1, 5);
    expect(found.custom?.consistency).toBeCloseTo(record.terms.consistency?.value as number, 5);
    expect(found.custom?.diversity).toBeCloseTo(record.terms.diversity?.value as number, 5);
    expect(found.custom?.svd).toBeCloseTo(record.terms.svd?.value as number, 5);
  });
  // The terms matter: the student differs from the teacher.
  expect(builtIn.records.at(-1)?.terms.consistency?.value).toBeGreaterThan(1e-4);
  mine.state.forEach(([name, values], i) => {
    const [other, expected] = builtIn.state[i] as (typeof builtIn.state)[number];
    expect(name).toBe(other);
    const worst = values.reduce(
      (most, x, j) => Math.max(most, Math.abs(x - (expected[j] as number))),
      0,
    );
    expect(worst, name).toBeLessThan(2e-5); // f32 sums in another order, in four steps with the learning rate 0.5
  });
}

it.each([
  ['a function', (context: LossContext) => own(context)],
  ['an async function', async (context: LossContext) => own(context)],
])('frees what %s made', async (_, loss) => {
  const live: number[] = [];
  await run(
    {},
    {
      maxSteps: 12,
      loss,
      callbacks: [
        async (event) => {
          if (event.type !== 'step') return;
          await collectGarbage();
          live.push(memoryStats().liveBytes);
        },
      ],
    },
  );
  expect(live).toHaveLength(12);
  expect(live[11]).toBe(live[2]);
});

it('does not free tensors that the function keeps', async () => {
  let kept: Tensor | null = null;
  const { records } = await run(
    {},
    {
      loss: (context) => {
        kept ??= keep(tensor([2]));
        const { loss } = own(context);
        return { loss: mul(loss, kept) };
      },
    },
  );
  expect(records).toHaveLength(4);
  expect((kept as Tensor | null)?.itemSync()).toBe(2);
});

it.each<[unknown, RegExp]>([
  [undefined, /loss: the function must return \{ loss \}, a tensor, got nothing/],
  [{ loss: 1 }, /got {"loss":1}/],
  [{ metrics: {} }, /a tensor, got {"metrics":{}}/],
])('that returns %o is refused', async (result, message) => {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 2 });
  const data = tinySource(tinyBatches());
  const trainer = new Trainer({ tuned, data, maxSteps: 1, loss: () => result as never });
  await expect(trainer.train()).rejects.toThrow(message);
  await expect(trainer.train()).rejects.toThrow(ArgumentError);
});
