/** The trainer with every variant of an adapter and every optimiser: it starts equal to the base, learns and resumes. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { LoraConfigInput } from '../../lib/adapters/config.ts';
import type { AdapterConfigInput } from '../../lib/adapters/create.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import type { NamedTensor, TunedModel } from '../../lib/adapters/tuned_model.ts';
import { deviceInfo } from '../../lib/device.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { zeros } from '../../lib/ops/index.ts';
import { parameterGroups } from '../../lib/train/parameter_groups.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { OptimizerName, StepRecord } from '../../lib/train/types.ts';
import { fixturePath, readJson } from '../support/fixtures.ts';
import { goldenArrays } from '../support/golden.ts';
import { goldenBatch } from '../support/golden_batch.ts';
import { stateValues } from '../support/run_numbers.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-variants-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const kFamily = 'architectures/llama-untied-gqa';
const { batch } = goldenBatch(goldenArrays(fixturePath(`${kFamily}/inputs.safetensors`)), {
  ids: 'input_ids',
  mask: 'attention_mask',
  labels: 'labels',
});
const kBaLora = { consistencyWeight: 0.1, diversityWeight: 0.02, svdWeight: 0.02, svdTopK: 3 };

async function records(options: TrainerOptions): Promise<StepRecord[]> {
  const found: StepRecord[] = [];
  for await (const event of new Trainer(options).run()) {
    if (event.type === 'step') found.push(event.record);
  }
  return found;
}

const kVariants: [string, LoraConfigInput, { gradientCheckpointing?: boolean }?][] = [
  ['dora', { useDora: true }],
  ['dora on pissa', { useDora: true, initLoraWeights: 'pissa' }],
  ['lora_bias', { loraBias: true }],
  ['dropout', { loraDropout: 0.1 }],
  ['dropout, checkpointed', { loraDropout: 0.1 }, { gradientCheckpointing: true }],
  ['a trained head', { modulesToSave: ['lm_head', 'norm'] }],
  ['one layer', { layersToTransform: [1] }],
];

describe.each(['f32', 'bf16'] as const)('BA-LoRA on a golden model in %s', (dtype) => {
  it.each(kVariants)('with %s', async (name, config, { gradientCheckpointing = false } = {}) => {
    const path = fixturePath(`${kFamily}/model`);
    const model = await AutoModelForCausalLM.fromPretrained(path, { dtype });
    model.gradientCheckpointing = gradientCheckpointing;
    const tuned = await AdapterModel.create(model, { r: 3, loraAlpha: 6, ...config });
    const found = await records({
      tuned,
      data: tinySource([batch, batch]),
      learningRate: 0.02,
      lrSchedulerType: 'constant',
      gradientAccumulationSteps: 2,
      maxSteps: 8,
      regularizers: { ...kBaLora, regularizerSchedule: 'constant' },
    });
    const [first, last] = [found[0] as StepRecord, found[7] as StepRecord];
    // The teacher is the model without the adapter, to which every variant is equal at the start (up to the rounding of PiSSA's pairs, and
    // on AVX2 to that of f32 logits from widened bf16, whose sums depend on the other rows of the product).
    const widened = dtype === 'bf16' && deviceInfo('cpu').instructions === 'avx2' ? 1e-6 : 0;
    const most = name.includes('pissa') ? (dtype === 'f32' ? 1e-9 : 1e-3) : widened;
    expect(first.terms.consistency?.value).toBeLessThanOrEqual(most);
    expect(last.terms.consistency?.value as number).toBeGreaterThan(0);
    expect(last.taskLoss).toBeLessThan(first.taskLoss - 0.1);
    tuned.dispose();
    model.dispose();
  });
});

describe('a run that is stopped and resumed is bit-identical', () => {
  it.each([
    ['dora', { useDora: true, initLoraWeights: 'pissa' }, {}],
    ['lora_bias', { loraBias: true }, { loraplusLrRatio: 4 }],
    ['dropout', { loraDropout: 0.2 }, { gradientAccumulationSteps: 2 }],
    ['saved modules', { modulesToSave: ['norm'] }, { weightDecay: 0.1 }],
    ['adafactor', {}, { optim: 'adafactor' as OptimizerName }],
    ['lora_fa', { method: 'lora_fa' }, { weightDecay: 0.1, gradientAccumulationSteps: 2 }],
    ['qpissa', { method: 'qpissa' }, { weightDecay: 0.1 }],
    ['loftq, three times', { initLoraWeights: 'loftq_iter_3' }, { gradientAccumulationSteps: 2 }],
    ['riemannian', { loraDropout: 0.1 }, { optim: 'riemannian' as OptimizerName }],
  ] satisfies [string, AdapterConfigInput, Partial<TrainerOptions>][])(
    '%s',
    async (_, config, more) => {
      const start = () => AdapterModel.create(new TinyModel(), { r: 4, loraAlpha: 8, ...config });
      const options = (tuned: TunedModel): TrainerOptions => ({
        tuned,
        data: tinySource(tinyBatches()),
        learningRate: 0.02,
        maxSteps: 6,
        regularizers: kBaLora,
        ...more,
      });
      const whole = await start();
      const expected = await records(options(whole));

      const output = join(folder, 'run');
      const stop = new AbortController();
      const begun = await start();
      const callbacks = [
        (event: { type: string; record?: StepRecord }) => {
          if (event.type === 'step' && event.record?.step === 3) stop.abort();
        },
      ];
      await new Trainer({ ...options(begun), output, signal: stop.signal, callbacks }).train();
      const resumed = await start();
      const rest = await records({ ...options(resumed), output, resume: true });
      expect(rest.map(({ loss }) => loss)).toEqual(expected.slice(3).map(({ loss }) => loss));
      expect(stateValues(resumed)).toEqual(stateValues(whole));
    },
  );
});

it('refuses an impossible export before the first step', async () => {
  const tuned = await AdapterModel.create(new TinyModel(), {
    r: 3,
    useDora: true,
    initLoraWeights: 'pissa',
  });
  const options = { tuned, data: tinySource(tinyBatches()), output: join(folder, 'run') };
  expect(() => new Trainer({ ...options, export: 'residual' })).toThrow(/is not for DoRA/);
  const lora = { ...options, tuned: await AdapterModel.create(new TinyModel(), { r: 3 }) };
  expect(() => new Trainer({ ...lora, export: 'residual' })).toThrow(/this one has no residual/);
});

describe('parameter groups', () => {
  const golden = readJson(fixturePath('optim/optim.json')) as {
    loraplus: {
      lr: number;
      ratio: number;
      weight_decay: number;
      groups: { lr: number; weight_decay: number; params: string[] }[];
    }[];
  };
  it.each(golden.loraplus)('of LoRA+ with the ratio $ratio are those of PEFT', (one) => {
    // Here adapters have no pair for the embedding.
    const wanted = one.groups.filter(({ params }) => !params[0]?.includes('lora_embedding'));
    const parameters: NamedTensor[] = wanted.flatMap(({ params }) =>
      params.map((name) => {
        const vector = name.endsWith('bias') || name.includes('norm.');
        return { name, tensor: zeros(vector ? [2] : [2, 2]), decays: !vector };
      }),
    );
    const { ratio, weight_decay: weightDecay } = one;
    const found = parameterGroups(parameters, { loraplusLrRatio: ratio, weightDecay });
    const sorted = (groups: { lr: number; decay: number; names: string[] }[]) =>
      groups
        .map((group) => ({ ...group, names: [...group.names].sort() }))
        .sort((a, b) => ((a.names[0] as string) < (b.names[0] as string) ? -1 : 1));
    expect(
      sorted(
        found.map((group) => ({
          lr: one.lr * (group.learningRateScale as number),
          decay: group.weightDecay as number,
          names: group.parameters.map(({ name }) => name),
        })),
      ),
    ).toEqual(
      sorted(
        wanted.map(({ lr, weight_decay, params }) => ({ lr, decay: weight_decay, names: params })),
      ),
    );
  });

  it('refuse LoRA+ without an adapter', async () => {
    const tuned = new FullModel(new TinyModel());
    const data = tinySource(tinyBatches());
    await expect(new Trainer({ tuned, data, loraplusLrRatio: 2 }).train()).rejects.toThrow(
      'loraplusLrRatio is for adapters, and full fine-tuning has no lora_B; leave it at 1',
    );
  });

  it('have no weight decay on norms in full fine-tuning', () => {
    const groups = parameterGroups(new FullModel(new TinyModel()).parameters(), {
      loraplusLrRatio: 1,
      weightDecay: 0.1,
    });
    const without = groups.filter(({ weightDecay }) => weightDecay === 0);
    expect(without.flatMap(({ parameters }) => parameters.map(({ name }) => name))).toEqual([
      'layers.0.norm.weight',
      'layers.1.norm.weight',
      'norm.weight',
    ]);
  });
});
