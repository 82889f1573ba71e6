import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Command } from 'commander';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { METHOD_NAMES } from '../../lib/adapters/methods/registry.ts';
import { addOptions, readOptions } from '../../lib/cli/command_options.ts';
import { editDistance, nearest } from '../../lib/cli/nearest.ts';
import { toConfig } from '../../lib/cli/option_table.ts';
import { kTrainOptions, type TrainSettings } from '../../lib/cli/train_options.ts';
import { camel, kebab } from '../../lib/options/option.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-cli-'));
});
afterAll(() => rm(folder, { recursive: true }));

/** What `balora train` with these arguments would run with. */
async function parse(...args: string[]): Promise<TrainSettings> {
  const command = new Command().exitOverride().configureOutput({ writeErr: () => {} });
  addOptions(command, kTrainOptions, { config: true });
  command.parse(args, { from: 'user' });
  return readOptions(command, kTrainOptions);
}

async function configFile(text: string, name = 'config.yaml'): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, text);
  return path;
}

const kNeeded = ['--model', 'm', '--data', 'd'];

describe('flags', () => {
  it('read every type', async () => {
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

  it('keep one name as text, and true as a value', async () => {
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

  it('names what is missing, and the flag most like an unknown one', async () => {
    await expect(parse('--model', 'm')).rejects.toThrow(/^--data is required/);
    await expect(parse(...kNeeded, '--lora-alfa', '1')).rejects.toThrow(
      /Did you mean --lora-alpha/,
    );
  });

  it('are those of the specification', () => {
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

describe('configuration files', () => {
  it('lie under the flags, in either spelling, as YAML or JSON', async () => {
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

  it('give back what toConfig wrote', async () => {
    const values = await parse(...kNeeded, '--r', '4', '--no-shuffle', '--target-modules', 'a,b');
    const path = await configFile(JSON.stringify(toConfig(values)), 'again.json');
    expect(await parse('--config', path)).toEqual(values);
  });

  it.each([
    ['lerning-rate: 1', 'unknown option "lerning-rate" (did you mean "learning-rate"?)'],
    ['alpha: 1', 'unknown option "alpha" (did you mean "lora-alpha"?)'],
    ['zzzzzzzz: 1', 'unknown option "zzzzzzzz"'],
    ['dry-run: true', 'unknown option "dry-run"'],
    ['r: "8"', 'r must be a whole number >= 1, got "8"'],
    ['packing: 1', 'packing must be true or false, got 1'],
    [
      'target_modules: [1]',
      'target_modules must be a regular expression or a list of names, got [1]',
    ],
    ['columns: [1]', 'columns must be a name or a list of names, got [1]'],
    ['max_length: 4\nmax-length: 4', '"max-length" is given in two spellings'],
    ['- a', 'must hold options by name'],
    ['r: 1\nr: 2', ':2:1: '],
    ['a: [1', ':1:6: '],
  ])('%j is refused', async (text, message) => {
    const path = await configFile(text);
    const error = await parse('--config', path, ...kNeeded).catch((e: unknown) => e as Error);
    expect(error).toBeInstanceOf(Error);
    expect((error as Error).message).toContain(message);
    expect((error as Error).message).toContain(path);
  });

  it('that do not exist are named', async () => {
    const path = join(folder, 'none.yaml');
    await expect(parse('--config', path)).rejects.toThrow(
      `the configuration ${path}: no such file`,
    );
  });
});

describe('names', () => {
  it('kebab and camel undo each other for every option', () => {
    for (const key of Object.keys(kTrainOptions)) expect(camel(kebab(key))).toBe(key);
  });

  it('editDistance is a distance', () => {
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

  it('nearest says nothing where nothing is alike', () => {
    expect(nearest('xyzxyz', ['model', 'data'])).toBe('');
    expect(nearest('Modle', ['model', 'data'])).toBe(' (did you mean "model"?)');
  });
});
