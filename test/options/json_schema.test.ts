import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { checkConfig, fileOptions } from '../../lib/cli/option_table.ts';
import { kTrainOptions } from '../../lib/cli/train_options.ts';
import { jsonSchemaOf } from '../../lib/options/json_schema.ts';
import { kebab, type Option, snake } from '../../lib/options/option.ts';
import { OPTIMIZER_NAMES } from '../../lib/train/types.ts';

const table = fileOptions(kTrainOptions);
const schema = jsonSchemaOf(table, { title: 'x', defaults: { learningRate: 2e-5 } });
const validator = z.fromJSONSchema(schema as Parameters<typeof z.fromJSONSchema>[0]);

function accepted(config: Readonly<Record<string, unknown>>): boolean {
  try {
    checkConfig(kTrainOptions, config, 'f');
    return true;
  } catch {
    return false;
  }
}

/** Values of every kind that YAML and JSON have, right and wrong ones for each option. */
const kValues: readonly unknown[] = [
  ...[null, true, false],
  ...[0, 1, 2, 3, -1, 0.5, 1.5, 1000, 2 ** 53, 1e20, 1e300],
  ...['', ' ', 'x', 'a,b', '1', '0.5', 'true', 'none', 'max', 'min', 'all-linear', '.*proj', '{q}'],
  ...['lora', 'pissa', 'pissa_niter_4', 'pissa_niter_N', 'pissa_niter_', 'gaussian'],
  ...[
    '1.2GiB',
    ' 900 mb ',
    '1.GB',
    '.5kib',
    '7b',
    '0',
    '0.0',
    '.',
    '1.2.3GB',
    '5tb',
    '5k',
    '-1GB',
    '1e3',
  ],
  ...['0.0001', '9'.repeat(400), '1GiB1'],
  ...[[], ['a'], ['a', 'b'], [''], ['a', null], [1], [1, 2], [-1], [0.5], ['1'], [[]], [{}]],
  ...[[['a', 1]], [['a', 0]], [['a']]],
  ...[{}, { a: 1 }, { a: 1.5 }, { a: 0 }, { a: -1 }, { a: '1' }, { a: null }, { '': 1 }],
  ...[{ min_lr: 1 }, { minLr: 1 }, { 'min-lr': 1 }, { min_lr: '1' }, { min_lr: null }, { min: 1 }],
  ...[{ decay_type: '1-sqrt' }, { decayType: 'x' }, { minlr: 1 }, { min_Lr: 1 }],
];

/** The values for an option: those for all, and each of its choices. */
function valuesFor({ choices = [], placeholder }: Option): readonly unknown[] {
  return [...kValues, ...choices, ...(placeholder ?? '').split('|')];
}

describe('the schema of a configuration file', () => {
  it('has help, default and bounds of an option', () => {
    const { properties } = schema as { properties: Record<string, object> };
    expect(properties['learning-rate']).toEqual({
      description: 'highest learning rate',
      default: 2e-5,
      type: ['number', 'null'],
      minimum: 0,
    });
    expect(properties['max-steps']).toEqual({
      description: 'number of steps; overrides the epochs',
      type: ['integer', 'null'],
      minimum: 1,
      maximum: Number.MAX_SAFE_INTEGER,
    });
    expect(properties['init-lora-weights']).toMatchObject({
      anyOf: [
        { type: 'boolean' },
        { type: 'string', enum: expect.arrayContaining(['gaussian', 'pissa']) },
        { type: 'string' },
        { type: 'null' },
      ],
    });
    expect(properties.optim).toMatchObject({ enum: [...OPTIMIZER_NAMES, null] });
    expect(Object.keys(properties).length).toBe(Object.keys(table).length + 1);
  });

  it('has no word that means something else to an editor', () => {
    expect(JSON.stringify(schema)).not.toContain('readOnly');
  });

  it.each(Object.entries(table))('accepts for %s what balora accepts', (key, option) => {
    const verdicts = valuesFor(option).map((value) => {
      const config = { [kebab(key)]: value };
      return { value, schema: validator.safeParse(config).success, balora: accepted(config) };
    });
    expect(verdicts.filter((verdict) => verdict.schema !== verdict.balora)).toEqual([]);
    // The table has a value that is accepted, besides null, and one that is not.
    const verdictsWithoutNull = verdicts.filter(({ value }) => value !== null);
    expect(new Set(verdictsWithoutNull.map(({ balora }) => balora))).toEqual(
      new Set([true, false]),
    );
    const value = verdictsWithoutNull.find(({ balora }) => balora)?.value;
    for (const name of [snake(key), key]) {
      const config = { [name]: value };
      expect([validator.safeParse(config).success, accepted(config)], name).toEqual([true, true]);
    }
  });

  it.each<[Record<string, unknown>, boolean]>([
    [{}, true],
    [{ $schema: './balora.schema.json', model: 'm' }, true],
    [{ $schema: null }, true],
    [{ $schema: 1 }, false],
    [{ learningrate: 1 }, false],
    [{ 'learning_-rate': 1 }, false],
    [{ 'per-device_train-batch-size': 1 }, false],
    [{ lr: 1 }, false],
    [{ lr: null }, false],
    [{ constructor: 1 }, false],
    [{ 'dry-run': true }, false],
    [{ preparation: {} }, false],
    [{ 'run-config': {} }, false],
    [{ 'base-model-name-or-path': 'x' }, false],
  ])('has the same keys: %j, %j', (config, expected) => {
    expect([validator.safeParse(config).success, accepted(config)]).toEqual([expected, expected]);
  });

  it('leaves it to balora to refuse a key in two spellings', () => {
    for (const config of [
      { 'lora-alpha': 1, lora_alpha: 1 },
      { 'lr-scheduler-kwargs': { min_lr: 1, minLr: 2 } },
    ]) {
      expect([validator.safeParse(config).success, accepted(config)]).toEqual([true, false]);
    }
  });
});
