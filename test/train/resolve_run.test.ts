// The entry of an option determines its errors in the library, of its flag and in a configuration file, and its part in identities. A run
// resolves its options once.
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { beforeEach, describe, expect, it, vi } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { configIdentity, type LoraConfigInput, loraConfig } from '../../lib/adapters/config.ts';
import { checkConfig, checkFlags } from '../../lib/cli/option_table.ts';
import { kTrainOptions } from '../../lib/cli/train_options.ts';
import { trainSetup } from '../../lib/cli/train_setup.ts';
import { bind } from '../../lib/losses/term.ts';
import { kebab } from '../../lib/options/option.ts';
import { differences } from '../../lib/train/identity.ts';
import { resolveRegularizers } from '../../lib/train/regularizers.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import { balora } from '../support/run_cli.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

// These count their calls.
vi.mock('../../lib/train/resolve_run.ts', async (load) => {
  const module = await load<typeof import('../../lib/train/resolve_run.ts')>();
  return { ...module, resolveRun: vi.fn(module.resolveRun) };
});
vi.mock('../../lib/train/regularizers.ts', async (load) => {
  const module = await load<typeof import('../../lib/train/regularizers.ts')>();
  return { ...module, resolveRegularizers: vi.fn(module.resolveRegularizers) };
});
vi.mock('../../lib/losses/term.ts', async (load) => {
  const module = await load<typeof import('../../lib/losses/term.ts')>();
  return { ...module, bind: vi.fn(module.bind) };
});

import { type RunSettings, resolveRun } from '../../lib/train/resolve_run.ts';

const messageOf = (call: () => unknown): string => {
  try {
    call();
  } catch (error) {
    return (error as Error).message;
  }
  return 'accepted';
};

/** The message without the option's name, for a value in each of these places. */
function complaints(key: string, value: unknown, library: () => unknown): Record<string, string> {
  const name = kebab(key);
  const flag = typeof value === 'object' ? JSON.stringify(value) : String(value);
  const after = (prefix: string, message: string): string =>
    message.startsWith(prefix) ? message.slice(prefix.length) : `without ${prefix}: ${message}`;
  return {
    library: after(key, messageOf(library).replace(/^loraConfig: /, '')),
    flag: after(
      `--${name}`,
      messageOf(() => checkFlags(kTrainOptions, { [key]: flag })),
    ),
    file: after(
      `f.yaml: ${name}`,
      messageOf(() => checkConfig(kTrainOptions, { [name]: value }, 'f.yaml')),
    ),
  };
}

const kTrainer: [string, unknown][] = [
  ['optim', 'lion'],
  ['learningRate', -1],
  ['lrSchedulerType', 'cosign'],
  ['lrSchedulerKwargs', { min: 1 }],
  ['warmupSteps', -1],
  ['adamBeta1', 1],
  ['momentum', 1],
  ['loraplusLrRatio', 0],
  ['numTrainEpochs', 0],
  ['maxSteps', 1.5],
  ['gradientAccumulationSteps', 0],
  ['saveMinutes', -1],
  ['saveTotalLimit', 0],
  ['export', 'merged'],
  ['output', ''],
  ['memoryBudget', 'small'],
  ['seed', -1],
  ['metricForBestModel', 'bleu'],
];
const kRegularizer: [string, unknown][] = [
  ['consistencyWeight', -1],
  ['temperature', 0],
  ['svdTopK', 0],
  ['svdNorm', 'l1'],
  ['positions', 'all'],
];
const kAdapter: [string, unknown][] = [
  ['r', 0],
  ['loraDropout', 1],
  ['loraAlpha', 'big'],
  ['initLoraWeights', 'mica'],
  ['rankPattern', { a: 0 }],
];

describe('a wrong value', () => {
  it.each([
    ...kTrainer.map(([key, value]) => [key, value, () => resolveRun({ [key]: value })] as const),
    ...kRegularizer.map(
      ([key, value]) => [key, value, () => resolveRegularizers({ [key]: value })] as const,
    ),
    ...kAdapter.map(
      ([key, value]) =>
        [key, value, () => loraConfig({ [key]: value } as LoraConfigInput)] as const,
    ),
  ])('of %s (%j) is refused in the same words wherever it comes from', (key, value, library) => {
    const { library: words, flag, file } = complaints(key, value, library);
    expect(words).toMatch(/^ must be .*, got /);
    expect(flag).toBe(words);
    expect(file).toBe(words);
  });

  it.each<[RunSettings, RegExp, RegExp]>([
    [
      { overwrite: true, resume: true, output: 'o' },
      /^overwrite and resume exclude each other; pass one of them$/,
      /^--overwrite and --resume exclude each other; pass one of them$/,
    ],
    [{ resume: true }, /^resume needs output, the folder/, /^--resume needs --output, the folder/],
    [
      { metricForBestModel: 'loss' },
      /^metricForBestModel needs evalData$/,
      /^--metric-for-best-model needs --eval-data$/,
    ],
    [
      { lrSchedulerType: 'cosine_with_min_lr' },
      /^lrSchedulerKwargs: cosine_with_min_lr: one of minLr and minLrRate must be given$/,
      /^lrSchedulerKwargs: cosine_with_min_lr: one of minLr and minLrRate must be given$/,
    ],
  ])('together: %j', (input, library, commandLine) => {
    expect(() => resolveRun(input)).toThrow(library);
    expect(() => trainSetup({ model: 'm', data: 'd', ...(input as object) })).toThrow(commandLine);
  });

  it('is refused before a model is looked for', async () => {
    const wrong = ['--lr-scheduler-type', 'cosine_with_min_lr'];
    const { err } = await balora(['train', '--model', 'no/model', '--data', 'd', ...wrong]);
    expect(err).toMatch(/^error: --lr-scheduler-kwargs: cosine_with_min_lr: one of minLr and/);
  });

  it('in combination with the preset of a method is reported with flags, too', () => {
    const bounds = { consistencyWeightMin: 0.2, consistencySchedule: 'adaptive' } as const;
    expect(() => trainSetup({ model: 'm', data: 'd', ...bounds })).toThrow(
      '--consistency-weight-min (0.2) must not be above --consistency-weight-max (0.025)',
    );
    expect(() => trainSetup({ model: 'm', data: 'd', loraBias: true })).toThrow(
      '--lora-bias needs --init-lora-weights true or false, got "pissa"',
    );
  });
});

describe('resolved options', () => {
  it('have the options of the first version in their order, as run/config.json and identities do', () => {
    const first =
      '{"optim":"adamw","learningRate":0.00002,"lrSchedulerType":"cosine","lrSchedulerKwargs":{},"warmupSteps":0.03,' +
      '"weightDecay":0,"adamBeta1":0.9,"adamBeta2":0.999,"adamEpsilon":1e-8,"momentum":0,"loraplusLrRatio":1,' +
      '"maxGradNorm":1,"numTrainEpochs":1,"maxSteps":3,"gradientAccumulationSteps":1,"overwrite":false,' +
      '"resume":false,"saveSteps":0,"saveMinutes":10,"evalSteps":0,"loggingSteps":1,"saveTotalLimit":2,' +
      '"export":"lora","output":"x","memoryBudget":null,"cacheTeacher":false,' +
      '"captureGraphs":false,"seed":42}';
    const known = Object.keys(JSON.parse(first) as object);
    const { optimization, output, resources, seed } = resolveRun({ maxSteps: 3, output: 'x' });
    const now = Object.entries({ ...optimization, ...output, ...resources, seed });
    const same = now.filter(([key]) => known.includes(key));
    expect(JSON.stringify(Object.fromEntries(same))).toBe(first);
  });

  it('accept a size with a unit, and options of a schedule in either spelling', () => {
    const given = { memoryBudget: '2KiB', lrSchedulerKwargs: { min_lr: 1 } } as object;
    const { resources, optimization } = resolveRun({
      ...given,
      lrSchedulerType: 'cosine_with_min_lr',
    });
    expect(resources.memoryBudget).toBe(2048);
    expect(optimization.lrSchedulerKwargs).toEqual({ minLr: 1 });
  });
});

it('an option of any table that a checkpoint lacks counts as having its default', () => {
  const now = { momentum: 0, memoryBudget: 'min', useDora: false, r: 8, cacheTeacher: true };
  expect(differences({}, now)).toEqual([
    'cacheTeacher: was not set, is true',
    'memoryBudget: was not set, is "min"',
  ]);
  expect(differences({}, { momentum: 0.5 })).toEqual(['momentum: was 0, is 0.5']);
  // A key that every object has.
  expect(differences({ constructor: 1 }, {})).toEqual(['constructor: was 1, is not set']);
});

it('an option of the adapter that a checkpoint lacks, and the order of keys, make no difference', () => {
  const now = configIdentity(loraConfig({ r: 4, rankPattern: { b: 2, a: 3 } }), null);
  const { layersPattern: _, ...then } = now;
  expect(differences({ adapter: then }, { adapter: now })).toEqual([]);
  const [first, second] = [
    { minLrRatio: 0.1, numDecaySteps: 1 },
    { numDecaySteps: 1, minLrRatio: 0.1 },
  ];
  expect(differences({ lrSchedulerKwargs: first }, { lrSchedulerKwargs: second })).toEqual([]);
  const turned = configIdentity(loraConfig({ r: 4, rankPattern: { a: 3, b: 2 } }), null);
  expect(differences({ adapter: now }, { adapter: turned })).toHaveLength(1);
});

it('a single name of layersPattern stays text, as in checkpoints and PEFT', () => {
  expect(checkFlags(kTrainOptions, { layersPattern: 'layers' })).toEqual({
    layersPattern: 'layers',
  });
  expect(checkConfig(kTrainOptions, { 'layers-pattern': 'layers' }, 'f')).toEqual({
    layersPattern: 'layers',
  });
  expect(checkFlags(kTrainOptions, { layersPattern: 'a, b' })).toEqual({
    layersPattern: ['a', 'b'],
  });
});

it("names of Object's properties are no regularizers, and null is allowed only on the command line", () => {
  expect(() => resolveRegularizers({ constructor: 1 } as never)).toThrow(
    'regularizers: unknown option "constructor"',
  );
  const evalData = {};
  const settings = { metricForBestModel: 'none', evalData } as unknown as RunSettings;
  expect(() => resolveRun(settings)).toThrow(/^metricForBestModel must be one of/);
  expect(checkFlags(kTrainOptions, { metricForBestModel: 'none' })).toEqual({
    metricForBestModel: null,
  });
});

describe('the difference between two runs', () => {
  const options = {
    ...{ batchSize: 4, maxLength: 512, packing: false, padding: 'none', shuffle: true, seed: 42 },
    ...{ promptTemplate: 'chat', fields: 'question -> answer' },
  };
  const run = {
    ...{ data: 'digest', dataOptions: options, seed: 42, adapterSeed: 42, dtype: 'f32' },
    ...{
      adapter: configIdentity(loraConfig({ r: 8 }), null),
      preparation: { headWarmupEpochs: 2 },
    },
  };

  it.each(Object.keys(options))(
    'is named by the option %s of the data, without a digest',
    (key) => {
      const now = { ...run, data: 'other', dataOptions: { ...options, [key]: 'new' } };
      const before = options[key as keyof typeof options];
      const shown = typeof before === 'string' ? `"${before}"` : before;
      expect(differences(run, now)).toEqual([`${key}: was ${shown}, is "new"`]);
    },
  );

  it('is named by the option of the adapter and of the preparation', () => {
    const now = {
      ...run,
      adapter: configIdentity(loraConfig({ r: 4 }), null),
      preparation: { headWarmupEpochs: 3 },
    };
    expect(differences(run, now)).toEqual(['headWarmupEpochs: was 2, is 3', 'r: was 8, is 4']);
  });

  it('is one seed where all are changed', () => {
    const dataOptions = { ...options, seed: 7 };
    const now = { ...run, data: 'other', dataOptions, seed: 7, adapterSeed: 7 };
    expect(differences(run, now)).toEqual(['seed: was 42, is 7']);
  });

  it('is the digest of the data where no option accounts for it', () => {
    expect(differences(run, { ...run, data: 'other' })).toEqual([
      'data: was "digest", is "other", of the rows of the data, or the tokenizer',
    ]);
    // Checkpoints from before the options were kept.
    const { dataOptions: _, ...older } = run;
    expect(differences(older, run)).toEqual([]);
  });
});

describe('a run resolves its options once, and makes each of its terms once', () => {
  const counted = [resolveRun, resolveRegularizers, bind].map((called) => vi.mocked(called));
  const calls = () => counted.map(({ mock }) => mock.calls.length);
  beforeEach(() => {
    for (const called of counted) called.mockClear();
  });
  const tinyRun = async (method: 'balora' | 'lora') => {
    const tuned = await AdapterModel.create(new TinyModel(), { r: 2, method });
    const data = tinySource(tinyBatches({ count: 2 }));
    return { tuned, trainer: new Trainer({ tuned, data, maxSteps: 2 }) };
  };

  it('as a program makes it, with its plan', async () => {
    const { trainer } = await tinyRun('balora');
    await trainer.plan({ measure: true });
    expect((await trainer.train()).steps).toBe(2);
    expect(calls()).toEqual([1, 1, 3]);
  });

  it('of the command line', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'balora-once-'));
    const [model, data] = [join(folder, 'model'), join(folder, 'data.jsonl')];
    await writeTinyCheckpoint(model);
    await writeFile(data, '{"question": "What is 1?", "answer": "It is."}');
    const { code, err } = await balora([
      ...['train', '--model', model, '--data', data, '--output', join(folder, 'out'), '--r', '2'],
      ...['--prompt-template', 'none', '--max-steps', '2', '--max-length', '64'],
    ]);
    await rm(folder, { recursive: true });
    expect(code, err).toBe(0);
    expect(calls()).toEqual([1, 1, 3]);
  });

  it('but again where another method has become the active one', async () => {
    const { tuned, trainer } = await tinyRun('balora');
    await tuned.addAdapter('plain', { r: 2, method: 'lora' });
    tuned.setAdapter('plain');
    expect(trainer.options).toMatchObject({ method: 'lora', terms: [] });
    await trainer.train();
    expect(calls().slice(1)).toEqual([2, 3]);
  });
});
