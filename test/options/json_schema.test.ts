import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import { checkConfig, fileOptions } from '../../lib/cli/option_table.ts';
import { kTrainOptions } from '../../lib/cli/train_options.ts';
import { jsonSchemaOf } from '../../lib/options/json_schema.ts';

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
      description: 'steps; wins over the epochs',
      type: ['integer', 'null'],
      minimum: 1,
    });
    expect(properties['init-lora-weights']).toMatchObject({
      anyOf: [
        { type: 'boolean' },
        { type: 'string', enum: expect.arrayContaining(['gaussian', 'pissa']) },
        { type: 'string' },
        { type: 'null' },
      ],
    });
    expect(properties.optim).toMatchObject({ enum: ['adamw', 'adafactor', 'sgd', null] });
    expect(Object.keys(properties).length).toBe(Object.keys(table).length + 1);
  });

  it.each<Record<string, unknown>>([
    {},
    { $schema: './balora.schema.json', model: 'm' },
    { 'learning-rate': 1 },
    { learning_rate: 1 },
    { learningrate: 1 },
    { lr: 1 },
    { 'learning-rate': -1 },
    { 'learning-rate': '1' },
    { output: null },
    { r: 1.5 },
    { optim: 'sgd' },
    { optim: 'lion' },
    { packing: true },
    { packing: 1 },
    { 'memory-budget': 'max' },
    { 'memory-budget': '1.2GiB' },
    { 'memory-budget': 1000 },
    { 'memory-budget': 'small' },
    { 'target-modules': ['a'] },
    { 'target-modules': 'a' },
    { 'target-modules': [1] },
    { 'rank-pattern': { a: 1 } },
    { 'rank-pattern': { a: 0 } },
    { 'lr-scheduler-kwargs': { min_lr: 1 } },
    { 'lr-scheduler-kwargs': { minLr: 1 } },
    { 'lr-scheduler-kwargs': { min: 1 } },
    { 'metric-for-best-model': 'none' },
    { 'metric-for-best-model': 'loss' },
    { 'metric-for-best-model': 'bleu' },
    { 'init-lora-weights': true },
    { 'init-lora-weights': 'pissa_niter_4' },
    { 'init-lora-weights': 3 },
    { 'layers-to-transform': 1 },
    { 'layers-to-transform': [1, 2] },
    { 'layers-to-transform': [-1] },
    { 'dry-run': true },
    { preparation: {} },
    { momentum: 0.9 },
    { momentum: 1 },
  ])('says of %j what balora says', (config) => {
    expect(validator.safeParse(config).success).toBe(accepted(config));
  });
});
