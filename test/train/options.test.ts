// The entry of an option determines its errors in the library, of its flag and in a configuration file, and its part in identities.
import { describe, expect, it } from 'vitest';
import { configIdentity, type LoraConfigInput, loraConfig } from '../../lib/adapters/config.ts';
import { checkConfig, checkFlags } from '../../lib/cli/option_table.ts';
import { kTrainOptions } from '../../lib/cli/train_options.ts';
import { trainSetup } from '../../lib/cli/train_setup.ts';
import { kebab } from '../../lib/options/option.ts';
import { differences, type OptionsInput, resolveOptions } from '../../lib/train/options.ts';
import { resolveRegularizers } from '../../lib/train/regularizers.ts';

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
    ...kTrainer.map(
      ([key, value]) => [key, value, () => resolveOptions({ [key]: value })] as const,
    ),
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

  it.each<[OptionsInput & { evalData?: string }, RegExp, RegExp]>([
    [
      { overwrite: true, resume: true, output: 'o' },
      /^overwrite and resume exclude each other; pass one of them$/,
      /^--overwrite and --resume exclude each other; pass one of them$/,
    ],
    [{ resume: true }, /^resume needs output, the folder/, /^--resume needs --output, the folder/],
    [
      { metricForBestModel: 'loss' } as OptionsInput,
      /^metricForBestModel needs evalData$/,
      /^--metric-for-best-model needs --eval-data$/,
    ],
    [
      { lrSchedulerType: 'cosine_with_min_lr' },
      /^lrSchedulerKwargs: cosine_with_min_lr: one of minLr and minLrRate must be given$/,
      /^lrSchedulerKwargs: cosine_with_min_lr: one of minLr and minLrRate must be given$/,
    ],
  ])('together: %j', (input, library, commandLine) => {
    expect(() => resolveOptions(input)).toThrow(library);
    expect(() => trainSetup({ model: 'm', data: 'd', ...(input as object) })).toThrow(commandLine);
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
      '"export":"lora","output":"x","runConfig":null,"memoryBudget":null,"cacheTeacher":false,' +
      '"captureGraphs":false,"seed":42}';
    const known = Object.keys(JSON.parse(first) as object);
    const { optimization, output, resources, seed } = resolveOptions({ maxSteps: 3, output: 'x' });
    const now = Object.entries({ ...optimization, ...output, ...resources, seed });
    const same = now.filter(([key]) => known.includes(key));
    expect(JSON.stringify(Object.fromEntries(same))).toBe(first);
  });

  it('accept a size with a unit, and options of a schedule in either spelling', () => {
    const given = { memoryBudget: '2KiB', lrSchedulerKwargs: { min_lr: 1 } } as object;
    const { resources, optimization } = resolveOptions({
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
  const settings = { metricForBestModel: 'none', evalData } as unknown as OptionsInput;
  expect(() => resolveOptions(settings)).toThrow(/^metricForBestModel must be one of/);
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
