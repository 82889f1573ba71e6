import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Command } from 'commander';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loraConfig } from '../../lib/adapters/config.ts';
import { loraOptions } from '../../lib/adapters/lora_options.ts';
import { METHOD_NAMES } from '../../lib/adapters/methods/registry.ts';
import { addOptions, readOptions } from '../../lib/cli/command_options.ts';
import { kEvaluateOptions } from '../../lib/cli/evaluate_options.ts';
import { refuseOthers } from '../../lib/cli/other_arguments.ts';
import { kTrainOptions, type TrainSettings } from '../../lib/cli/train_options.ts';
import { trainSetup } from '../../lib/cli/train_setup.ts';
import { editDistance, nearest } from '../../lib/nearest.ts';
import { camel, kebab, type OptionTable, snake } from '../../lib/options/option.ts';
import { REGULARIZER_OPTIONS } from '../../lib/train/regularizers.ts';
import { trainerOptions } from '../../lib/train/schema.ts';
import { balora } from '../support/run_cli.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-cli-'));
});
afterAll(() => rm(folder, { recursive: true }));

/** The settings that `balora train` reads from these arguments. */
async function parse(...args: string[]): Promise<TrainSettings> {
  const command = new Command().exitOverride().configureOutput({ writeErr: () => {} });
  addOptions(command, kTrainOptions, { config: true });
  command.allowUnknownOption().allowExcessArguments().parse(args, { from: 'user' });
  refuseOthers(command, kTrainOptions, args);
  return readOptions(command, kTrainOptions);
}

async function configFile(text: string, name = 'config.yaml'): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, text);
  return path;
}

const kNeeded = ['--model', 'm', '--data', 'd'];

describe('flags', () => {
  it('have values of every type', async () => {
    expect(
      await parse(
        ...kNeeded,
        ...['--r', '16', '--lora-alpha', '5.5', '--method', 'balora', '--packing', '--no-shuffle'],
        ...['--target-modules', 'q_proj, v_proj', '--init-lora-weights', 'pissa_niter_4'],
        ...['--learning-rate', '2e-4', '--prompt-template', 'Q: {q}\\nA: \\\\n'],
      ),
    ).toEqual({
      model: 'm',
      data: 'd',
      r: 16,
      loraAlpha: 5.5,
      method: 'balora',
      packing: true,
      shuffle: false,
      targetModules: ['q_proj', 'v_proj'],
      initLoraWeights: 'pissa_niter_4',
      learningRate: 2e-4,
      promptTemplate: 'Q: {q}\nA: \\n',
    });
  });

  it('keep a single name as text, and read true as a boolean', async () => {
    const values = await parse(
      ...kNeeded,
      ...['--target-modules', '.*proj', '--init-lora-weights', 'true'],
    );
    expect(values.targetModules).toBe('.*proj');
    expect(values.initLoraWeights).toBe(true);
  });

  it.each([
    ['q_proj', ['q_proj']],
    ['self_attn.q_proj, v_proj', ['self_attn.q_proj', 'v_proj']],
    ['all-linear', 'all-linear'],
    ['.*\\.[qv]_proj', '.*\\.[qv]_proj'],
    ['.*\\.\\d{1,2}\\.q_proj', '.*\\.\\d{1,2}\\.q_proj'],
    ['(a|b),c', '(a|b),c'],
  ])('--target-modules %s means %j, in a file too', async (text, expected) => {
    const path = await configFile(JSON.stringify({ target_modules: text }), 'modules.json');
    for (const given of [
      ['--target-modules', text],
      ['--config', path],
    ]) {
      expect((await parse(...kNeeded, ...given)).targetModules).toEqual(expected);
    }
  });

  it('take ranks and alphas by pattern as JSON, and modules to leave out', async () => {
    const flags = ['--rank-pattern', '{"down_proj": 4}', '--alpha-pattern', '{"b": 1.5, "a": 2}'];
    const values = await parse(
      ...kNeeded,
      ...flags,
      '--exclude-modules',
      'lm_head',
      '--use-rslora',
    );
    expect(values).toMatchObject({
      rankPattern: { down_proj: 4 },
      excludeModules: ['lm_head'],
      useRslora: true,
    });
    expect(Object.entries(values.alphaPattern ?? {})).toEqual([
      ['b', 1.5],
      ['a', 2],
    ]);
    await expect(parse(...kNeeded, '--rank-pattern', '{"a": 0.5}')).rejects.toThrow(
      '--rank-pattern must be an object of patterns, each with a whole number >= 1, got {"a":0.5}',
    );
  });

  it("take a schedule's options as JSON, in transformers' names or in camel case", async () => {
    const expected = { minLrRate: 0.1, numCycles: 0.5 };
    for (const json of ['{"min_lr_rate": 0.1, "numCycles": 0.5}', JSON.stringify(expected)]) {
      const { lrSchedulerKwargs } = await parse(...kNeeded, '--lr-scheduler-kwargs', json);
      expect(lrSchedulerKwargs).toEqual(expected);
    }
    const path = await configFile('lr_scheduler_kwargs: { decay_type: 1-sqrt, numDecaySteps: 4 }');
    expect(await parse(...kNeeded, '--config', path)).toMatchObject({
      lrSchedulerKwargs: { decayType: '1-sqrt', numDecaySteps: 4 },
    });
  });

  it.each(['{"min_lr": ', '[]', '3', '{"min": 0.1}', '{"min_lr": "0.1"}', '{"decay_type": "x"}'])(
    '--lr-scheduler-kwargs %s is refused',
    async (json) => {
      await expect(parse(...kNeeded, '--lr-scheduler-kwargs', json)).rejects.toThrow(
        /^--lr-scheduler-kwargs must be an object of options of the schedule \(num_cycles, .*min_lr_rate/,
      );
    },
  );

  it.each([
    [['--r', '1.5'], '--r must be a whole number >= 1, got 1.5'],
    [['--r', 'many'], '--r must be a whole number >= 1, got "many"'],
    [['--r', ''], '--r must be a whole number >= 1, got ""'],
    [['--learning-rate', '-1'], '--learning-rate must be a number >= 0, got -1'],
    [['--learning-rate', 'Infinity'], '--learning-rate must be a number >= 0'],
    [['--method', 'lora2'], `--method must be one of ${METHOD_NAMES.join(', ')}, got "lora2"`],
  ])('%s is refused', async (args, message) => {
    await expect(parse(...kNeeded, ...args)).rejects.toThrow(message);
  });

  it.each([
    ['train', kNeeded, ['model', 'eval-data', 'adapter', 'output', 'config']],
    ['evaluate', kNeeded, ['model', 'data', 'adapter']],
    ['merge', ['--model=m', '--adapter=a', '--output=o'], ['model', 'adapter', 'output']],
    ['inspect', ['m'], ['data']],
  ])('of %s refuse an empty path before anything begins', async (command, needed, names) => {
    for (const name of names) {
      const { code, out, err } = await balora([command, ...needed, `--${name}=`]);
      expect([code, out, err]).toEqual([2, '', `error: --${name} must be a path, got ""\n`]);
    }
  });

  it('of several files refuse an empty one', async () => {
    const { err } = await balora(['train', '--model', 'm', '--data', 'd', '--data=']);
    expect(err).toBe('error: --data must be a path or a list of paths, got ["d",""]\n');
    const { err: alone } = await balora(['train', '--model', 'm', '--data=']);
    expect(alone).toBe('error: --data must be a path or a list of paths, got ""\n');
  });

  it('are named where they are missing, and suggested for a similar unknown one', async () => {
    await expect(parse('--model', 'm')).rejects.toThrow(/^--data is required/);
    await expect(parse(...kNeeded, '--lora-alfa', '1')).rejects.toThrow(
      /did you mean "--lora-alpha"/,
    );
  });

  it('exist for every option of the library except those that only programs can use', () => {
    const library: OptionTable = { ...trainerOptions, ...REGULARIZER_OPTIONS, ...loraOptions };
    const own = Object.keys(library).filter((key) => library[key]?.only === 'library');
    expect(own.sort()).toEqual([
      ...['baseModelNameOrPath', 'commandLine', 'fanInFanOut', 'inferenceMode', 'keptKeys'],
      ...['keptTriplets', 'preparation', 'revision', 'runConfig', 'taskType', 'totalStep'],
    ]);
    const command = new Command();
    addOptions(command, kTrainOptions, { config: true });
    const flags = command.options.map(({ long }) => long);
    for (const key of Object.keys(library).filter((name) => !own.includes(name))) {
      expect(flags).toContain(`--${kebab(key)}`);
    }
  });

  it('of a method with tensors of its own stand in a group of the method', () => {
    const command = new Command();
    addOptions(command, kTrainOptions, { config: true });
    const group = (flag: string) =>
      command.options.find(({ long }) => long === flag)?.helpGroupHeading;
    expect(['--beta1', '--tinit', '--miss-form'].map(group)).toEqual([
      ...['Method adalora:', 'Method adalora:', 'Method miss:'],
    ]);
    expect(['--use-dora', '--lora-alpha'].map(group)).toEqual([
      ...['Method and adapter:', 'Method and adapter:'],
    ]);
  });

  it('include those of the first version', () => {
    const expected =
      '--model --data --eval-data --output --overwrite --resume --method --r --lora-alpha --init-lora-weights ' +
      '--target-modules --adapter --optim --learning-rate --lr-scheduler-type --warmup-steps --weight-decay ' +
      '--adam-beta1 --adam-beta2 --adam-epsilon --max-grad-norm --num-train-epochs --max-steps ' +
      '--per-device-train-batch-size --gradient-accumulation-steps --max-length --packing --dtype --seed ' +
      '--no-shuffle --consistency-weight --diversity-weight --svd-weight --temperature --entropy-top-k ' +
      '--svd-top-k --svd-norm --positions --consistency-schedule --regularizer-schedule ' +
      '--regularizer-warmup-ratio --regularizer-ramp-ratio --prompt-template --prompt-field --response-field ' +
      '--eval-steps --save-steps --save-minutes --logging-steps --export --threads --dry-run --config';
    const command = new Command();
    addOptions(command, kTrainOptions, { config: true });
    const flags = command.options.map((option) => option.long);
    for (const flag of expected.split(' ')) expect(flags).toContain(flag);
  });
});

/** Names of options in transformers, PEFT and their scripts, and the names here. */
const kOtherNames: [string, string][] = [
  ['lr', 'learning-rate'],
  ['epochs', 'num-train-epochs'],
  ['num-epochs', 'num-train-epochs'],
  ['batch-size', 'per-device-train-batch-size'],
  ['eval-batch-size', 'per-device-eval-batch-size'],
  ['grad-accum', 'gradient-accumulation-steps'],
  ['rank', 'r'],
  ['lora-r', 'r'],
  ['lora-rank', 'r'],
  ['alpha', 'lora-alpha'],
  ['dropout', 'lora-dropout'],
  ['output-dir', 'output'],
  ['overwrite-output-dir', 'overwrite'],
  ['resume-from-checkpoint', 'resume'],
  ['model-name-or-path', 'model'],
  ['train-file', 'data'],
  ['validation-file', 'eval-data'],
  ['max-seq-length', 'max-length'],
  ['lr-scheduler', 'lr-scheduler-type'],
  ['bf16', 'dtype'],
  ['load-best-model-at-end', 'metric-for-best-model'],
];

describe('names of options in other programs', () => {
  it.each(kOtherNames)('%s is refused with the suggestion %s', async (other, ours) => {
    const words = `(did you mean "--${ours}"?)`;
    for (const flag of [[`--${other}`, '1'], [`--${other}=1`], [`--${other}`]]) {
      await expect(parse(...kNeeded, ...flag)).rejects.toThrow(
        `unknown option --${other} ${words}`,
      );
    }
    for (const key of [other, snake(camel(other))]) {
      const path = await configFile(`${key}: 1`);
      await expect(parse('--config', path)).rejects.toThrow(
        `${path}: unknown option "${key}" (did you mean "${ours}"?)`,
      );
    }
  });

  it.each([
    ['train', kTrainOptions],
    ['evaluate', kEvaluateOptions],
  ] as [string, OptionTable][])('are unique in %s, and no option has one', (_, table) => {
    const options = Object.entries(table);
    const names = options.flatMap(([key, { aliases = [] }]) => [kebab(key), ...aliases]);
    expect(names.filter((name, i) => names.indexOf(name) !== i)).toEqual([]);
    expect(names.filter((name) => !/^[a-z][a-z0-9-]*$/.test(name))).toEqual([]);
  });

  it('are not in the help', () => {
    const command = new Command();
    addOptions(command, kTrainOptions);
    expect(command.helpInformation()).not.toMatch(/--(lr|rank|epochs)[ ,<]/);
    expect(command.helpInformation()).toMatch(/singular values.* \(default:\s+10; of\s+sequence-/);
  });
});

describe('configuration files', () => {
  it('may name a schema for editors', async () => {
    const yaml = await configFile('$schema: ./balora.schema.json\nmodel: m\ndata: d\n');
    expect(await parse('--config', yaml)).toEqual({ model: 'm', data: 'd' });
  });

  it('are overridden by flags; keys have either spelling, in YAML or JSON', async () => {
    const yaml = await configFile(
      'model: m\ndata: d\nlearning_rate: 1.0e-4\nr: 8\ntarget-modules: [q_proj]\npacking: true\noutput:\n',
    );
    expect(await parse('--config', yaml, '--r', '4', '--no-packing')).toEqual({
      model: 'm',
      data: 'd',
      learningRate: 1e-4,
      r: 4,
      targetModules: ['q_proj'],
      packing: false,
    });
    const json = await configFile('{"model": "m", "data": "d", "r": 2}', 'config.json');
    expect(await parse('--config', json)).toEqual({ model: 'm', data: 'd', r: 2 });
    expect(await parse('--config', await configFile(''), ...kNeeded)).toEqual({
      model: 'm',
      data: 'd',
    });
  });

  it('may have patterns under names of Object, which are kept', async () => {
    const text = 'rank-pattern: {b: 1, __proto__: 2, constructor: 3}';
    const { rankPattern } = await parse('--config', await configFile(text), ...kNeeded);
    expect(loraConfig({ rankPattern }).rankPattern).toEqual([
      ['b', 1],
      ['__proto__', 2],
      ['constructor', 3],
    ]);
    const flag = await parse(...kNeeded, '--alpha-pattern', '{"toString": 1, "__proto__": 2.5}');
    expect(loraConfig({ alphaPattern: flag.alphaPattern }).alphaPattern).toEqual([
      ['toString', 1],
      ['__proto__', 2.5],
    ]);
  });

  describe('that a run recorded', () => {
    const given = ['--r', '4', '--no-shuffle', '--target-modules', 'a,b', '--lora-alpha', '4'];
    const recorded = async (changes: object = {}) => {
      const values = await parse(...kNeeded, ...given, '--overwrite', '--output', 'o');
      const { overwrite: _, ...settings } = values as Record<string, unknown>;
      const { run } = trainSetup(values as TrainSettings);
      const record = { format: 2, version: '0.3.0', ...run.config, identity: {}, ...changes };
      return { settings, config: run.config, path: await file(record) };
    };
    const file = (content: object) => configFile(JSON.stringify(content), 'run.json');

    it('give the same settings, but for how the command began', async () => {
      const { settings, config, path } = await recorded();
      expect(await parse('--config', path)).toEqual(settings);
      expect(config).toMatchObject({
        values: { r: 4, 'consistency-weight': 0.025, 'weight-decay': 0, 'max-length': 512 },
        source: {
          ...{ r: 'given', 'consistency-weight': 'method' },
          ...{ 'weight-decay': 'default', 'max-length': 'default' },
        },
      });
      const other = { task: 'seq2seq-lm', model: 'm', data: 'd' } as const;
      const { values, source } = trainSetup(other, new Set(['model'])).run.config;
      expect(values).toMatchObject({ 'max-source-length': 512, 'use-rslora': false });
      expect(source).toMatchObject({ model: 'file', data: 'given' });
      for (const key of ['max-length', 'variant', 'd-initial'])
        expect(values).not.toHaveProperty(key);
    });

    it('have the defaults of then, unless a flag changes what these depend on', async () => {
      const { settings, config } = await recorded();
      const values = { ...config.values, 'weight-decay': 0.1, 'consistency-weight': 0.02 };
      const { path } = await recorded({ values });
      const then = { weightDecay: 0.1, consistencyWeight: 0.02 };
      expect(await parse('--config', path)).toEqual({ ...settings, ...then });
      expect(await parse('--config', path, '--method', 'balora')).toMatchObject(then);
      const other = await parse('--config', path, '--method', 'lora');
      expect(other).toEqual({ ...settings, method: 'lora' });
      expect(await parse('--config', path, '--weight-decay', '0.5')).toMatchObject({
        weightDecay: 0.5,
      });
    });

    it('of version 0.2.0 are those of its command', async () => {
      const command = { model: 'm', data: 'd', 'lora-alpha': 4, method: 'lora' };
      const path = await file({ command, trainer: { seed: 42 }, identity: { seed: 42 } });
      expect(await parse('--config', path)).toEqual({
        ...{ model: 'm', data: 'd', loraAlpha: 4, method: 'lora' },
      });
    });

    it.each([
      [{ format: 3 }, 'format 3 is not known, only those up to 2; use the version of balora'],
      [{ task: 'chess' }, 'its task, method, values and source are not those of a run; take'],
      [{ method: 'toString' }, 'its task, method, values and source are not those of a run; take'],
      [{ values: 1 }, 'its task, method, values and source are not those of a run; take'],
      [{ values: { lr: 1 } }, 'unknown option "lr"'],
    ])('are refused with %j', async (changes, message) => {
      const { path } = await recorded({ source: { lr: 'given' }, ...changes });
      await expect(parse('--config', path)).rejects.toThrow(message);
    });

    it('are refused from a program without settings of a command', async () => {
      const path = await file({ command: null, trainer: {}, identity: {} });
      await expect(parse('--config', path)).rejects.toThrow(
        'is of a run that a program made, and has no settings of a command',
      );
    });
  });

  it.each([
    ['lerning-rate: 1', 'unknown option "lerning-rate" (did you mean "learning-rate"?)'],
    ['alpha: 1', 'unknown option "alpha" (did you mean "lora-alpha"?)'],
    ['zzzzzzzz: 1', 'unknown option "zzzzzzzz"; balora train --help lists the options'],
    ['__proto__: {r: 4}', 'unknown option "__proto__"'],
    ['constructor: 1', 'unknown option "constructor"'],
    ['lr_scheduler_kwargs: {__proto__: 1}', 'lr_scheduler_kwargs must be an object of options'],
    ['rank-pattern: {__proto__: a}', 'rank-pattern must be an object of patterns'],
    ['dry-run: true', 'unknown option "dry-run"'],
    ['r: "8"', 'r must be a whole number >= 1, got "8"'],
    ['output: ""', 'output must be a path, got ""'],
    ["eval_data: ''", 'eval_data must be a path, got ""'],
    ['packing: 1', 'packing must be true or false, got 1'],
    [
      'target_modules: [1]',
      'target_modules must be a regular expression or a list of names, got [1]',
    ],
    ['columns: [1]', 'columns must be a name or a list of names, got [1]'],
    ['max_length: 4\nmax-length: 4', '"max-length" is given in two spellings'],
    ['- a', 'must hold options by name'],
    ['r: 1\nr: 2', ':2:1: '],
    ['r: 1\n? [a, b]\n: 2', ':2: a key must be the name of an option'],
    ['r: 1\n? {a: 1}\n: 2', ':2: a key must be the name of an option'],
    ['r: !!js/function x', ':1:4: Unresolved tag'],
    ['a: [1', ':1:6: '],
  ])('%j is refused', async (text, message) => {
    const path = await configFile(text);
    const error = await parse('--config', path, ...kNeeded).catch((e: unknown) => e as Error);
    expect(error).toBeInstanceOf(Error);
    expect((error as Error).message).toContain(message);
    expect((error as Error).message).toContain(path);
  });

  it('are named where they do not exist', async () => {
    const path = join(folder, 'none.yaml');
    await expect(parse('--config', path)).rejects.toThrow(
      `the configuration ${path}: no such file`,
    );
  });
});

describe('names', () => {
  it('kebab and camel are inverse for every option', () => {
    for (const key of Object.keys(kTrainOptions)) expect(camel(kebab(key))).toBe(key);
  });

  it('editDistance is symmetric, bounded and 0 only for equal words', () => {
    const word = fc.string({ unit: fc.constantFrom('a', 'b', 'c'), maxLength: 6 });
    fc.assert(
      fc.property(word, word, (a, b) => {
        expect(editDistance(a, b)).toBe(editDistance(b, a));
        expect(editDistance(a, b) === 0).toBe(a === b);
        expect(editDistance(a, b)).toBeLessThanOrEqual(Math.max(a.length, b.length));
      }),
    );
    expect(editDistance('kitten', 'sitting')).toBe(3);
    expect(editDistance('modle', 'model')).toBe(1);
  });

  it('nearest suggests nothing where no name is similar', () => {
    expect(nearest('xyzxyz', ['model', 'data'])).toBeNull();
    expect(nearest('Modle', ['model', 'data'])).toBe('model');
  });
});

it('balora schema prints the schema of a configuration file', async () => {
  const { code, out } = await balora(['schema']);
  expect(code).toBe(0);
  const { properties } = JSON.parse(out) as { properties: Record<string, { default?: unknown }> };
  expect(properties['learning-rate']).toMatchObject({ default: 2e-5, minimum: 0 });
  // The preset of the method determines this default, so the schema has none.
  expect(properties['consistency-weight']).not.toHaveProperty('default');
  expect(properties).not.toHaveProperty('dry-run');
});
