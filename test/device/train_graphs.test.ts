// The trainer's graphs on a device that can capture every kernel: the emulated one or a GPU. A run with graphs equals the run
// without them bit for bit, whatever changes from step to step, and its memory stops growing after some steps.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { LoraConfigInput } from '../../lib/adapters/config.ts';
import type { AdapterConfigInput, AdapterMethodName } from '../../lib/adapters/create.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import { METHODS } from '../../lib/adapters/methods/registry.ts';
import type { NamedTensor, TunedModel } from '../../lib/adapters/tuned_model.ts';
import type { Batch } from '../../lib/data/collate.ts';
import { setDefaultDevice } from '../../lib/device.ts';
import { AutoModelForCausalLM } from '../../lib/models/auto.ts';
import { fill_ } from '../../lib/ops/index.ts';
import {
  memoryStats,
  opTimes,
  resetOpTimes,
  setProfiling,
  synchronize,
} from '../../lib/runtime.ts';
import { noGrad } from '../../lib/tensor.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import type { TrainerOptions } from '../../lib/train/trainer_options.ts';
import type { BatchSource, StepRecord } from '../../lib/train/types.ts';
import { createCalibrated } from '../support/calibrated.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { values } from '../support/compare.ts';
import { kFakePlugin } from '../support/fake_device.ts';
import { fixturePath } from '../support/fixtures.ts';
import { kMethodConfigs } from '../support/method_configs.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

const kPlugin = process.env.BALORA_CUDA_PLUGIN;
const kRecords = kPlugin !== undefined && kPlugin !== kFakePlugin;
const kModel = fixturePath('architectures/llama-untied-gqa/model');
const kVocabulary = 96;
const kBaLora = { consistencyWeight: 0.1, diversityWeight: 0.02, svdWeight: 0.02, svdTopK: 3 };

/** Micro-batches of two shapes in turns, which differ in their supervised rows. */
const batches = (count = 4): Batch[] =>
  tinyBatches({ count: 2 * count, rows: 8, vocabulary: kVocabulary })
    .filter((_, b) => b % 3 !== 2)
    .slice(0, count);
const kOneShape = [0, 2, 4].map((b) => batches(6)[b] as Batch);

interface Setting extends Partial<TrainerOptions> {
  readonly full?: boolean;
  readonly dtype?: 'f32' | 'bf16';
  readonly adapter?: LoraConfigInput;
  /** A whole configuration in the place of `adapter`. */
  readonly config?: AdapterConfigInput;
  readonly baseFormat?: 'nf4';
}

async function tunedModel(setting: Setting): Promise<TunedModel> {
  const { full = false, dtype = 'f32', adapter, config, baseFormat } = setting;
  const base = { device: 'cuda', dtype, ...(baseFormat !== undefined && { baseFormat }) } as const;
  const load = () => AutoModelForCausalLM.fromPretrained(kModel, base);
  if (full) return new FullModel(await load(), { teacher: await load() });
  const usual = { r: 2, initLoraWeights: 'pissa_niter_2', ...adapter } as const;
  return createCalibrated(await load(), config ?? usual);
}

function optionsOf(tuned: TunedModel, setting: Setting, captureGraphs: boolean): TrainerOptions {
  const { full: _, dtype: __, adapter: ___, config: ____, baseFormat: _____, ...more } = setting;
  return {
    tuned,
    data: tinySource(batches()),
    learningRate: 0.01,
    regularizers: kBaLora,
    gradientAccumulationSteps: 2,
    maxSteps: 3,
    captureGraphs,
    ...more,
  };
}

interface Found {
  readonly records: readonly StepRecord[];
  readonly state: Record<string, readonly number[]>;
  /** Number of graph launches. */
  readonly launches: number;
}

async function train(setting: Setting, captureGraphs: boolean): Promise<Found> {
  const tuned = await tunedModel(setting);
  await synchronize();
  resetOpTimes();
  const records: StepRecord[] = [];
  for await (const event of new Trainer(optionsOf(tuned, setting, captureGraphs)).run()) {
    if (event.type === 'step') records.push(event.record);
  }
  const state = stateOf(tuned);
  const launches = launchesOfGraphs();
  tuned.dispose();
  tuned.model.dispose();
  return { records, state, launches };
}

function stateOf(tuned: TunedModel): Record<string, readonly number[]> {
  const entries = Object.entries(tuned.state());
  return Object.fromEntries(entries.map(([name, t]) => [name, Array.from(values(t), Number)]));
}

function launchesOfGraphs(): number {
  return opTimes()
    .filter(({ op }) => op === 'graph')
    .reduce((total, { calls }) => total + calls, 0);
}

/** The fields of records that do not depend on the clock or the process. */
function numbers(records: readonly StepRecord[]): unknown[] {
  return records.map(
    ({ tokensPerSecond: _, elapsedSeconds: __, peakRssBytes: ___, ...rest }) => rest,
  );
}

function expectSame(found: Pick<Found, 'records' | 'state'>, expected: Found): void {
  expect(numbers(found.records)).toEqual(numbers(expected.records));
  expect(found.state).toEqual(expected.state);
}

let before: string;
beforeAll(() => {
  before = setDefaultDevice('cpu');
});
afterAll(() => {
  setDefaultDevice(before);
});

it('captureGraphs is refused on the CPU', () => {
  const model = new TinyModel();
  const tuned = new FullModel(model);
  expect(() => new Trainer({ tuned, data: tinySource([]), captureGraphs: true })).toThrow(
    'captureGraphs: graphs need a GPU, and the device is cpu',
  );
});

describe.skipIf(!kRecords)('training by graphs', () => {
  const kLeastLaunches = 5;
  const kConstant = { ...kBaLora, regularizerSchedule: 'constant' } as const;
  const kSettings: Record<string, Setting> = {
    // The weights of all terms and the learning rate change from step to step.
    'BA-LoRA in bf16, by schedules': {
      dtype: 'bf16',
      regularizers: { ...kBaLora, regularizerSchedule: 'linear_warmup', regularizerWarmupSteps: 5 },
      maxSteps: 5,
    },
    'LoRA, windows of three in an epoch of four': {
      regularizers: {},
      gradientAccumulationSteps: 3,
      loraplusLrRatio: 4,
      weightDecay: 0.1,
      maxSteps: 5,
    },
    'all rows regularized, one micro-batch a step, SGD': {
      data: tinySource(kOneShape),
      regularizers: { ...kConstant, positions: 'non_padding' },
      gradientAccumulationSteps: 1,
      maxSteps: 4,
      optim: 'sgd',
      momentum: 0.5,
      maxGradNorm: 0,
    },
    'the adaptive schedule, whose teacher runs before': {
      regularizers: { ...kConstant, consistencySchedule: 'adaptive' },
    },
    'a kept teacher': { regularizers: kConstant, cacheTeacher: true },
    'full fine-tuning': { regularizers: kConstant, full: true, optim: 'adafactor' },
  };
  for (const [name, setting] of Object.entries(kSettings)) {
    it(`equals training without them bit for bit: ${name}`, async () => {
      const found = await train(setting, true);
      const expected = await train(setting, false);
      expect(found.launches).toBeGreaterThanOrEqual(kLeastLaunches);
      expect(expected.launches).toBe(0);
      expectSame(found, expected);
    });
  }

  describe('of each method', () => {
    const kOneShapeSetting: Setting = {
      ...{ data: tinySource(kOneShape), gradientAccumulationSteps: 1, maxSteps: 3 },
      regularizers: {}, // the method's own
    };
    /** For methods that compute their start from weights or data, which takes the emulated device long. */
    const kTwoLinears = { targetModules: ['q_proj', 'down_proj'] };
    const kOwn: Readonly<Partial<Record<AdapterMethodName, Setting>>> = {
      // Triplets lose their values between steps, those of recorded ones, too.
      adalora: { maxSteps: 4 },
      // Its regularizers run.
      balora: { config: { method: 'balora', r: 2, initLoraWeights: 'pissa_niter_2' } },
      // The directions are taken when the passes have been recorded, which are then recorded anew.
      lora_dash: {
        config: { method: 'lora_dash', r: 2, dashWarmup: 3, dashIndex: 2, ...kTwoLinears },
        maxSteps: 6,
      },
      lora_xs: { config: { method: 'lora_xs', r: 2, ...kTwoLinears } },
    };
    const quick = (method: AdapterMethodName, config: AdapterConfigInput): AdapterConfigInput =>
      METHODS[method].adapter?.initLoraWeights === undefined
        ? config
        : { ...config, ...kTwoLinears };
    const compare = async (setting: Setting): Promise<void> => {
      const found = await train(setting, true);
      // Two steps of two graphs at least: LoRA-FA's own update of A and B is none.
      expect(found.launches).toBeGreaterThanOrEqual(4);
      expectSame(found, await train(setting, false));
    };

    it.each(kMethodConfigs)('%s equals training without them bit for bit', (method, config) =>
      compare({ ...kOneShapeSetting, config: quick(method, config), ...kOwn[method] }),
    );

    it.each(['dora', 'adalora'] as const)(
      '%s with the regularizers, clipping and windows of three equals training without them bit for bit',
      (method) => {
        const config = new Map(kMethodConfigs).get(method) as AdapterConfigInput;
        return compare({ config, gradientAccumulationSteps: 3, maxGradNorm: 0.1, maxSteps: 4 });
      },
    );

    it.each(['vera', 'hira'] as const)(
      '%s on NF4 blocks equals training without them bit for bit',
      (method) => {
        const config = new Map(kMethodConfigs).get(method) as AdapterConfigInput;
        return compare({ ...kOneShapeSetting, config, baseFormat: 'nf4' });
      },
    );
  });

  it('launches a step as three graphs from the third step of a shape on', async () => {
    const data = tinySource(kOneShape);
    const setting: Setting = { data, gradientAccumulationSteps: 1, maxSteps: 5, regularizers: {} };
    expect((await train(setting, true)).launches).toBe(3 * (5 - 1));
  });

  it('treats batches as one shape whatever beginning their sequences share', async () => {
    const [first] = kOneShape as [Batch];
    const half = first.inputIds.length / 2;
    const batches = [1, 2, 3].map((alike) => {
      const inputIds = first.inputIds.map((id, n) =>
        n < half ? id : n - half < alike ? (first.inputIds[n - half] as number) : 60 + n,
      );
      return { ...first, inputIds };
    });
    const setting = { data: tinySource(batches), gradientAccumulationSteps: 1, maxSteps: 3 };
    expect((await train({ ...setting, regularizers: {} }, true)).launches).toBe(3 * (3 - 1));
  });

  it('captures no forward or backward where no shape comes twice', async () => {
    const data = tinySource(
      [8, 10, 12].map(
        (rows) => tinyBatches({ count: 1, rows, vocabulary: kVocabulary })[0] as Batch,
      ),
    );
    const setting: Setting = {
      data,
      gradientAccumulationSteps: 1,
      maxSteps: 3,
      regularizers: {},
      optim: 'sgd',
      maxGradNorm: 0,
    };
    const found = await train(setting, true);
    // The norm of the gradients has the same shape in every step.
    expect(found.launches).toBe(2);
    expectSame(found, await train(setting, false));
  });

  it('keeps its memory constant from some step on, and frees it in the end', async () => {
    await collectGarbage();
    const start = memoryStats({ device: 'cuda' });
    const tuned = await tunedModel({});
    const options = optionsOf(tuned, { maxSteps: 6, regularizers: {} }, true);
    const live: number[] = [];
    const graphs: number[] = [];
    for await (const event of new Trainer(options).run()) {
      if (event.type !== 'step') continue;
      await collectGarbage();
      const { liveBytes, byTag } = memoryStats({ device: 'cuda' });
      live.push(liveBytes);
      graphs.push(byTag.graphs ?? 0);
    }
    expect(graphs[0]).toBe(start.byTag.graphs ?? 0);
    expect(graphs.at(-1)).toBeGreaterThan(graphs[0] as number);
    expect(new Set(live.slice(3)).size).toBe(1);
    tuned.dispose();
    tuned.model.dispose();
    await synchronize();
    const end = memoryStats({ device: 'cuda' });
    expect(end.byTag.graphs ?? 0).toBe(start.byTag.graphs ?? 0);
    expect(end.liveBytes).toBeLessThanOrEqual(start.liveBytes);
  });

  it.each([
    ['the loss', {}],
    ['the teacher', { consistencyWeight: 0.1 }],
    ['the decomposition of a term', { svdWeight: 0.1, svdTopK: 3 }],
  ])('diverges as one error with the step and advice, by %s', async (_, weights) => {
    const setting: Setting = {
      ...{ data: tinySource(kOneShape), gradientAccumulationSteps: 1, maxSteps: 6 },
      regularizers: { ...weights, regularizerSchedule: 'constant' },
    };
    const tuned = await tunedModel(setting);
    const [factor] = tuned.parameters() as [NamedTensor];
    const run = new Trainer(optionsOf(tuned, setting, true)).run();
    resetOpTimes();
    const training = (async () => {
      for await (const event of run) {
        if (event.type !== 'step' || event.record.step !== 3) continue;
        noGrad(() => fill_(factor.tensor, Number.NaN));
      }
    })();
    await expect(training).rejects.toMatchObject({
      code: 'ERR_NOT_FINITE',
      message: expect.stringMatching(
        /^step 4: not finite \(.+\); the parameters are those after step 3; lower the learning rate \(0\.\d+ in this step\)/,
      ),
    });
    // The step that failed was computed by graphs, as the third was.
    expect(launchesOfGraphs()).toBeGreaterThanOrEqual(4);
    tuned.dispose();
    tuned.model.dispose();
  });

  it('can be resumed after a stop within a window, and interrupted by profiling', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'balora-train-graphs-'));
    try {
      const expected = await train({ maxSteps: 6, regularizers: {} }, false);
      const stop = new AbortController();
      const setting: Setting = {
        regularizers: {},
        maxSteps: 6,
        output: join(folder, 'run'),
        saveSteps: 1,
      };
      const tuned = await tunedModel(setting);
      const records: StepRecord[] = [];
      // The run stops within the last window, after its first micro-batch, while it waits for the device.
      const data = stoppingSource(batches(), 10, () => setImmediate(() => stop.abort()));
      const options = { ...optionsOf(tuned, setting, true), data, signal: stop.signal };
      for await (const event of new Trainer(options).run()) {
        if (event.type !== 'step') continue;
        records.push(event.record);
        setProfiling(event.record.step === 3);
      }
      expect(records.length).toBe(4);
      expect(tuned.parameters().every(({ tensor }) => tensor.grad === null)).toBe(true);
      const again = await tunedModel(setting);
      const rest = { ...optionsOf(again, { ...setting, resume: true }, true) };
      for await (const event of new Trainer(rest).run()) {
        if (event.type === 'step') records.push(event.record);
      }
      expectSame({ records, state: stateOf(again) }, expected);
    } finally {
      setProfiling(false);
      rmSync(folder, { recursive: true });
    }
  });

  it('ends with an error in a launched graph, and the device stays usable', async () => {
    const tuned = await tunedModel({});
    const all = [...kOneShape, ...kOneShape];
    const bad = { ...(all[3] as Batch), targets: (all[3] as Batch).targets.slice() };
    bad.targets[bad.targets.findIndex((target) => target !== -100)] = 10_000;
    const data = tinySource([...kOneShape, bad]);
    const setting: Setting = { data, gradientAccumulationSteps: 1, regularizers: {}, maxSteps: 4 };
    let steps = 0;
    const run = async (): Promise<void> => {
      for await (const event of new Trainer(optionsOf(tuned, setting, true)).run()) {
        if (event.type === 'step') steps = event.record.step;
      }
    };
    await expect(run()).rejects.toThrow(/target 10000 of row/);
    expect(steps).toBe(3);
    const { state } = await train({ ...setting, data: tinySource(all), maxSteps: 1 }, true);
    expect(Object.values(state).flat().every(Number.isFinite)).toBe(true);
    tuned.dispose();
    tuned.model.dispose();
    await synchronize();
  });

  it('is refused with options that graphs cannot repeat', async () => {
    const refused = async (setting: Setting, why: string): Promise<void> => {
      const tuned = await tunedModel(setting);
      expect(() => new Trainer(optionsOf(tuned, setting, true))).toThrow(`captureGraphs: ${why}`);
      tuned.dispose();
      tuned.model.dispose();
    };
    await refused({ adapter: { loraDropout: 0.1 } }, 'loraDropout > 0');
    await refused({ full: true, dtype: 'bf16' }, 'model.embed_tokens.weight is trained through');
    await refused({ loss: ({ hidden }) => ({ loss: hidden }) }, 'a custom loss');
  });
});

/** Calls `stop` when micro-batch `at` (counted over epochs) has been read. */
function stoppingSource(list: readonly Batch[], at: number, stop: () => void): BatchSource {
  let read = 0;
  return {
    ...tinySource(list),
    *batches(_, start) {
      for (const batch of list.slice(start)) {
        if (++read === at) stop();
        yield batch;
      }
    },
  };
}
