// Fine-tuning on a device against the CPU, from loading to merging, on the golden tiny LLaMA: a fresh adapter from the SVD, BA-LoRA
// steps, evaluation, adapter folders, merging, checkpoints. The default device stays the CPU, so that a tensor that is not created
// on the device of its model is an error. On the fake device (test/fake_device) the numbers equal the CPU's bit for bit; elsewhere
// they agree up to the rounding of f32 sums.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import { saveMerged } from '../../lib/adapters/merge.ts';
import type { TunedModel } from '../../lib/adapters/tuned_model.ts';
import { deviceInfo, getDefaultDevice, setDefaultDevice } from '../../lib/device.ts';
import { evaluateClassifier } from '../../lib/eval/classify.ts';
import { evaluate } from '../../lib/eval/evaluate.ts';
import { storageBytes } from '../../lib/io/blocks.ts';
import { consistencyLoss, diversityLoss, headLogits, svdLoss } from '../../lib/losses/plain.ts';
import { AutoModelForCausalLM, type FromPretrainedOptions } from '../../lib/models/auto.ts';
import { AutoModelForSequenceClassification } from '../../lib/models/auto_classifier.ts';
import { AutoModelForSeq2SeqLM } from '../../lib/models/auto_seq2seq.ts';
import type { CausalLM } from '../../lib/models/causal_lm.ts';
import { add, crossEntropy, indexSelect, mul } from '../../lib/ops/index.ts';
import { memoryStats, synchronize } from '../../lib/runtime.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { warmUpHead } from '../../lib/train/head_warmup.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import type { TrainerOptions } from '../../lib/train/trainer_options.ts';
import type { LossContext, LossResult, StepRecord } from '../../lib/train/types.ts';
import { expectClose, values } from '../support/compare.ts';
import { kFakePlugin, kNoFake, setVariable } from '../support/fake_device.ts';
import { fixturePath } from '../support/fixtures.ts';
import { balora } from '../support/run_cli.ts';
import { numbersOf } from '../support/run_numbers.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';
import { tinyLabelled } from '../support/tiny_classifier.ts';
import { tinyBatches, tinySource } from '../support/tiny_model.ts';

const kPlugin = process.env.BALORA_CUDA_PLUGIN;
const kExact = kPlugin === undefined || kPlugin === kFakePlugin;
const kReason = kPlugin === undefined ? kNoFake : null;
const kRelative = 2e-3; // of a tensor's largest value, after a few steps

const kModel = fixturePath('architectures/llama-untied-gqa/model');
const kBaLora = { consistencyWeight: 0.1, diversityWeight: 0.02, svdWeight: 0.02, svdTopK: 3 };
const kVocabulary = 96;

const batches = () => tinyBatches({ count: 4, rows: 20, vocabulary: kVocabulary });

function expectSame(found: ArrayLike<number>, expected: ArrayLike<number>, what: string): void {
  expect(found.length, what).toBe(expected.length);
  let [scale, worst] = [1e-6, 0];
  for (let i = 0; i < expected.length; i++) {
    scale = Math.max(scale, Math.abs(expected[i] as number));
    const error = Math.abs((found[i] as number) - (expected[i] as number));
    if (!(error <= worst)) worst = error; // NaN counts as the worst
  }
  expect(worst, `${what} (largest value ${scale})`).toBeLessThanOrEqual(
    kExact ? 0 : kRelative * scale,
  );
}

function expectSameTensors(found: Record<string, Tensor>, expected: Record<string, Tensor>): void {
  expect(Object.keys(found)).toEqual(Object.keys(expected));
  for (const [name, t] of Object.entries(expected)) {
    expect(found[name]?.device).toBe('cuda:0');
    const signed = kExact ? null : withExpectedSigns(name, found, expected);
    expectSame(signed ?? values(found[name] as Tensor), values(t), name);
  }
}

/**
 * The tensor with the signs of the expected one; null where it belongs to no pair. The product of a pair from an SVD is the same
 * with row r of A and column r of B negated, and the solver is free to choose the sign.
 */
function withExpectedSigns(
  name: string,
  found: Record<string, Tensor>,
  expected: Record<string, Tensor>,
): number[] | null {
  const a = name.replace(/(lora|initial|quantized)_B/, '$1_A');
  if (!/(lora|initial|quantized)_[AB]/.test(name) || !(a in found)) return null;
  const [rank, width] = (found[a] as Tensor).shape as [number, number];
  const [mine, theirs] = [values(found[a] as Tensor), values(expected[a] as Tensor)];
  const signs = Array.from({ length: rank }, (_, r) => {
    let dot = 0;
    for (let i = r * width; i < (r + 1) * width; i++) dot += Number(mine[i]) * Number(theirs[i]);
    return Math.sign(dot);
  });
  const mixed = Array.from(values(found[name] as Tensor), Number);
  return mixed.map((value, i) => {
    const r = name === a ? Math.floor(i / width) : i % rank;
    return value * (signs[r] as number);
  });
}

async function train(tuned: TunedModel, more: Partial<TrainerOptions> = {}): Promise<StepRecord[]> {
  const found: StepRecord[] = [];
  const options: TrainerOptions = {
    tuned,
    data: tinySource(batches()),
    learningRate: 0.01,
    lrSchedulerType: 'constant',
    regularizers: kBaLora,
    gradientAccumulationSteps: 2,
    maxSteps: 2,
    ...more,
  };
  for await (const event of new Trainer(options).run()) {
    if (event.type === 'step') found.push(event.record);
  }
  return found;
}

/** A loss of the user's own, from docs/how-to-add-a-loss.md. */
function ownLoss(context: LossContext): LossResult {
  const { hidden, headWeight, teacherHidden, teacherHeadWeight, logitSoftcap, batch } = context;
  const head = { softcap: logitSoftcap ?? 0 };
  const supervised = [...batch.targets.keys()].filter((i) => batch.targets[i] !== -100);
  const rows = tensor(Int32Array.from(supervised));
  const targets = tensor(Int32Array.from(supervised, (i) => batch.targets[i] as number));
  const logits = headLogits(indexSelect(hidden, rows), headWeight, head);
  const teacher = headLogits(indexSelect(teacherHidden(), rows), teacherHeadWeight, head);
  const consistency = consistencyLoss(logits, teacher, { temperature: 2 });
  let loss = add(crossEntropy(logits, targets), mul(consistency, 0.025));
  loss = add(loss, mul(diversityLoss(logits), 0.005));
  loss = add(loss, mul(svdLoss(logits, { k: 3 }), 0.005));
  return { loss, metrics: { consistency: consistency.detach() } };
}

function expectSameRecords(found: readonly StepRecord[], expected: readonly StepRecord[]): void {
  expect(found.length).toBe(expected.length);
  found.forEach((record, i) => {
    numbersOf(record).forEach((value, k) => {
      expectSame([value], [numbersOf(expected[i] as StepRecord)[k] as number], `record ${i} ${k}`);
    });
  });
}

describe.skipIf(kReason !== null)('fine-tuning on a device', () => {
  const folder = mkdtempSync(join(tmpdir(), 'balora-device-training-'));
  let before: string;
  beforeAll(() => {
    if (kPlugin === undefined) setVariable('BALORA_CUDA_PLUGIN', kFakePlugin);
    before = setDefaultDevice('cpu');
  });
  afterAll(() => {
    setDefaultDevice(before);
    rmSync(folder, { recursive: true });
  });

  const load = (device: string, dtype: 'f32' | 'bf16' = 'f32'): Promise<CausalLM> =>
    AutoModelForCausalLM.fromPretrained(kModel, { device, dtype });
  const adapted = async (device: string) =>
    AdapterModel.create(await load(device), { r: 4, initLoraWeights: 'pissa' });

  it('BA-LoRA: steps, evaluation, adapter folders, merging', async () => {
    const host = await adapted('cpu');
    const tuned = await adapted('cuda');
    expect(tuned.model.device).toBe('cuda:0');
    for (const t of tuned.model.parameters()) expect(t.device).toBe('cuda:0');
    expectSameRecords(await train(tuned), await train(host));
    expectSameTensors(tuned.state(), host.state());

    const [found, expected] = [await evaluate(tuned, batches()), await evaluate(host, batches())];
    for (const key of ['loss', 'kl', 'entropy', 'effectiveRank'] as const) {
      expectSame([Number(found[key])], [Number(expected[key])], key);
    }

    await tuned.savePretrained(join(folder, 'adapter'), { form: 'lora' });
    const again = await AdapterModel.fromPretrained(await load('cuda'), join(folder, 'adapter'));
    const batch = batches()[0] as ReturnType<typeof batches>[0];
    // The saved adapter has twice the rank instead of a difference, and therefore another order of summation.
    expectClose(again.model.forward(batch), values(tuned.model.forward(batch)), 1e-5);
    await saveMerged(tuned, join(folder, 'merged'));
    await saveMerged(host, join(folder, 'merged-host'));
    const merged = await AutoModelForCausalLM.fromPretrained(join(folder, 'merged'), {
      device: 'cuda',
    });
    const mergedHost = await AutoModelForCausalLM.fromPretrained(join(folder, 'merged-host'));
    const weights = (model: CausalLM) => Object.fromEntries(model.namedParameters());
    expectSameTensors(weights(merged), weights(mergedHost));
  });

  it.each([
    ['NF4', kModel, 'nf4', 4],
    // Its weights are so small that the teacher's distribution is soon the student's but for rounding.
    ['the blocks of a GGUF file', fixturePath('quant/tiny_llama.gguf'), 'gguf', 64],
  ] as const)('BA-LoRA on a base in %s', async (_, path, baseFormat, loraAlpha) => {
    const run = async (device: string, more: FromPretrainedOptions = { baseFormat }) => {
      const model = await AutoModelForCausalLM.fromPretrained(path, { device, ...more });
      const tuned = await AdapterModel.create(model, { r: 2, loraAlpha });
      const data = tinySource(tinyBatches({ count: 3, rows: 8, vocabulary: model.vocabSize }));
      const steps = { learningRate: 0.1, gradientAccumulationSteps: 1, maxSteps: 3 };
      return { tuned, records: await train(tuned, { data, ...steps }) };
    };
    const forms = (model: CausalLM) => Array.from(model.parameters(), ({ encoding }) => encoding);
    const [found, expected] = [await run('cuda'), await run('cpu')];
    expect(forms(found.tuned.model as CausalLM)).toEqual(forms(expected.tuned.model as CausalLM));
    expect(forms(found.tuned.model as CausalLM).some((form) => form !== null)).toBe(true);
    expectSameRecords(found.records, expected.records);
    expectSameTensors(found.tuned.state(), expected.tuned.state());
    // In bf16 products with blocks are those with their values, bit for bit.
    if (baseFormat === 'nf4') return;
    const [blocks, dense] = [
      await run('cuda', { dtype: 'bf16', baseFormat }),
      await run('cuda', { dtype: 'bf16' }),
    ];
    expect(blocks.records.map(({ loss, gradNorm }) => [loss, gradNorm])).toEqual(
      dense.records.map(({ loss, gradNorm }) => [loss, gradNorm]),
    );
    for (const [name, t] of Object.entries(dense.tuned.state())) {
      expect(values(blocks.tuned.state()[name] as Tensor), name).toEqual(values(t));
    }
  });

  it.each(['qpissa', 'loftq_iter_2'] as const)('BA-LoRA on codes of its own, %s', async (init) => {
    const run = async (device: string) => {
      const config = { r: 2, loraAlpha: 4, initLoraWeights: init };
      const tuned = await AdapterModel.create(await load(device), config);
      return { tuned, records: await train(tuned) };
    };
    const [found, expected] = [await run('cuda'), await run('cpu')];
    for (const { quantized } of found.tuned.modules) {
      expect([quantized?.weight.device, quantized?.weight.encoding]).toEqual(['cuda:0', 'NF4']);
    }
    expectSameRecords(found.records, expected.records);
    expectSameTensors(found.tuned.state(), expected.tuned.state());
    // Its folder gives the same codes on every device.
    const path = join(folder, init);
    await found.tuned.savePretrained(path);
    for (const device of ['cpu', 'cuda']) {
      const again = await AdapterModel.fromPretrained(await load(device), path);
      expect(again.warnings).toEqual([]);
    }
  });

  it('a base in blocks goes to a device and back', async () => {
    const host = await AutoModelForCausalLM.fromPretrained(kModel, { baseFormat: 'nf4' });
    const weight = [...host.parameters()].find(({ encoding }) => encoding !== null) as Tensor;
    const there = weight.to('cuda');
    expect([there.encoding, there.device, there.shape]).toEqual(['NF4', 'cuda:0', weight.shape]);
    const back = there.to('cpu');
    expect(back.encoding).toBe('NF4');
    expect(values(there.to('f32'))).toEqual(values(weight.to('f32')));
    expect(values(back.to('f32'))).toEqual(values(weight.to('f32')));
    expect(storageBytes(there)).toBe(storageBytes(weight));
  });

  // In bf16 a GPU computes the change of a PiSSA pair from its initial values. Its error against f32 may be twice the CPU's.
  it('a PiSSA pair in bf16: no change before the first step, then the error of the CPU', async () => {
    const run = async (device: string, dtype: 'f32' | 'bf16') => {
      const tuned = await AdapterModel.create(await load(device, dtype), {
        r: 4,
        initLoraWeights: 'pissa',
      });
      return train(tuned, { maxSteps: 4 });
    };
    const [found, expected, exact] = [
      await run('cuda', 'bf16'),
      await run('cpu', 'bf16'),
      await run('cpu', 'f32'),
    ];
    // On AVX2, f32 logits from widened bf16 have sums that depend on the other rows of the product.
    const most = deviceInfo('cpu').instructions === 'avx2' ? 1e-6 : 0;
    expect(Math.abs(found[0]?.terms.consistency?.value as number)).toBeLessThanOrEqual(most);
    // Root mean square error over the figures of all steps, each relative to its largest value.
    const off = (records: readonly StepRecord[]): number => {
      const [seen, truths] = [records, exact].map((all) => all.map(numbersOf)) as [
        number[][],
        number[][],
      ];
      const squares = (truths[0] as number[]).flatMap((_, key) => {
        const truth = truths.map((numbers) => numbers[key] as number);
        const scale = Math.max(...truth.map(Math.abs));
        return truth.map((want, i) => (((seen[i]?.[key] as number) - want) / scale) ** 2);
      });
      return Math.sqrt(squares.reduce((sum, square) => sum + square) / squares.length);
    };
    expect(off(found)).toBeLessThanOrEqual(2 * off(expected));
  });

  it('is resumed from a checkpoint bit for bit', async () => {
    const settings = { maxSteps: 3, saveSteps: 1 };
    const straight = await adapted('cuda');
    const whole = await train(straight, { ...settings, output: join(folder, 'straight') });
    const stop = new AbortController();
    const output = join(folder, 'resumed');
    await train(await adapted('cuda'), {
      ...settings,
      output,
      signal: stop.signal,
      callbacks: [
        (event) => void (event.type === 'step' && event.record.step === 2 && stop.abort()),
      ],
    });
    const resumed = await adapted('cuda');
    const rest = await train(resumed, { ...settings, output, resume: true });
    expect(rest.map(({ loss }) => loss)).toEqual(whole.slice(2).map(({ loss }) => loss));
    for (const [name, t] of Object.entries(straight.state())) {
      expect(values(resumed.state()[name] as Tensor)).toEqual(values(t));
    }
  });

  it.each([
    ['a function', (context: LossContext) => ownLoss(context)],
    ['an async function', async (context: LossContext) => ownLoss(context)],
  ])("a loss of one's own, %s that names no device", async (_, loss) => {
    const run = async (device: string) => {
      const tuned = await adapted(device);
      return { tuned, records: await train(tuned, { loss, regularizers: {} }) };
    };
    const [found, expected] = [await run('cuda'), await run('cpu')];
    expectSameRecords(found.records, expected.records);
    expectSameTensors(found.tuned.state(), expected.tuned.state());
    expect(getDefaultDevice()).toBe('cpu');
  });

  describe.skipIf(!kExact)('the rest of the library', () => {
    it('bf16, DoRA, dropout, checkpointed layers, the memory plan', async () => {
      const run = async (device: string) => {
        const model = await load(device, 'bf16');
        const tuned = await AdapterModel.create(model, { r: 2, useDora: true, loraDropout: 0.1 });
        const records = await train(tuned, { memoryBudget: 'min' });
        model.gradientCheckpointing = true;
        return { tuned, records: [...records, ...(await train(tuned))] };
      };
      const [found, expected] = [await run('cuda'), await run('cpu')];
      expectSameRecords(found.records, expected.records);
      expectSameTensors(found.tuned.state(), expected.tuned.state());
    });

    it('full fine-tuning beside a teacher, with the best step kept', async () => {
      const run = async (device: string) => {
        const [model, teacher] = [await load(device), await load(device)];
        const tuned = new FullModel(model, { teacher });
        const more = { evalData: tinySource(batches()), evalSteps: 1 };
        return { tuned, records: await train(tuned, more) };
      };
      const [found, expected] = [await run('cuda'), await run('cpu')];
      expectSameRecords(found.records, expected.records);
      expectSameTensors(found.tuned.state(), expected.tuned.state());
    });

    it('a classifier with a warm-up of the head', async () => {
      const run = async (device: string) => {
        const model = await AutoModelForSequenceClassification.fromPretrained(
          fixturePath('architectures/bert/model'),
          { device, numLabels: 3, newHead: true },
        );
        const data = await tinyLabelled(12, { batchSize: 4 });
        await warmUpHead(model, data, { epochs: 1 });
        const tuned = await AdapterModel.create(model, { r: 2 });
        const regularizers = { consistencyWeight: 0.1, diversityWeight: 0.1, svdWeight: 0.1 };
        await new Trainer({ tuned, data, learningRate: 0.01, maxSteps: 2, regularizers }).train();
        const { loss } = await evaluateClassifier(model, data.batches());
        return { tuned, loss };
      };
      const [found, expected] = [await run('cuda'), await run('cpu')];
      expect(found.loss).toBe(expected.loss);
      expectSameTensors(found.tuned.state(), expected.tuned.state());
    });

    it('an encoder-decoder, and a model with random weights', async () => {
      const t5 = async (device: string) => {
        const model = await AutoModelForSeq2SeqLM.fromPretrained(
          fixturePath('architectures/t5/model'),
          { device },
        );
        const [batch] = tinyBatches({ count: 1, vocabulary: 17 });
        const side = batch as NonNullable<typeof batch>;
        const logits = model.logits(model.forward({ ...side, decoder: side }));
        return values(crossEntropy(logits, tensor(side.targets, { device })));
      };
      expect(await t5('cuda')).toEqual(await t5('cpu'));
      const config = JSON.parse(readFileSync(join(kModel, 'config.json'), 'utf8'));
      const random = await AutoModelForCausalLM.fromConfig(config, { device: 'cuda' });
      expect(random.device).toBe('cuda:0');
    });

    it('the command line', async () => {
      const [model, data] = [join(folder, 'model'), join(folder, 'data.jsonl')];
      await writeTinyCheckpoint(model);
      const rows = Array.from({ length: 8 }, (_, i) => ({ prompt: `q ${i}`, response: 'a b a' }));
      writeFileSync(data, rows.map((row) => JSON.stringify(row)).join('\n'));
      const common = ['--model', model, '--data', data, '--prompt-template', 'none'];
      const run = async (device: string): Promise<string> => {
        const output = join(folder, `cli-${device}`);
        const more = ['--output', output, '--max-steps', '2', '--r', '2', '--device', device];
        expect(await balora(['train', ...common, ...more])).toMatchObject({ code: 0 });
        const evaluation = ['--adapter', output, '--json', '--device', device];
        const { out } = await balora(['evaluate', ...common, ...evaluation]);
        return JSON.stringify({ ...JSON.parse(out), seconds: 0 });
      };
      expect(await run('cuda')).toBe(await run('cpu'));
      const refused = await balora(['train', ...common, '--device', 'tpu']);
      expect(refused.code).not.toBe(0);
      expect(refused.err).toContain('device "tpu" is not known (known: cpu, cuda');
    });

    it('frees all memory of the device', async () => {
      const start = memoryStats({ device: 'cuda' }).liveBytes;
      const tuned = await adapted('cuda');
      await train(tuned);
      tuned.dispose();
      tuned.model.dispose();
      await synchronize();
      // A run leaves no tensors. The bound may be undercut, since tensors of earlier tests may be collected meanwhile.
      expect(memoryStats({ device: 'cuda' }).liveBytes).toBeLessThanOrEqual(start);
    });
  });
});
