// The needs of options: those that lack one are named, by the first that is missing, and help and schema show it.
import { describe, expect, it } from 'vitest';
import { jsonSchemaOf } from '../../lib/options/json_schema.ts';
import { choice, number, whole } from '../../lib/options/kinds.ts';
import { checkTogether, helpOf } from '../../lib/options/option.ts';
import { anyAbove0, given, is, needing, unmet } from '../../lib/options/requirements.ts';

const table = {
  optim: choice({ choices: ['sgd', 'adamw', 'adafactor'], default: 'adamw', help: 'optimizer' }),
  momentum: number({ least: 0, default: 0, help: 'momentum', requires: [is('optim', 'sgd')] }),
  adamBeta1: number({ default: 0.9, help: 'decay', requires: [is('optim', 'adamw', 'lora_fa')] }),
  minutes: number({ default: 10, off: 0, help: 'minutes', requires: [given('output')] }),
  kept: whole({
    ...{ default: 2, help: 'kept' },
    requires: [given('output'), anyAbove0('minutes', 'saveSteps')],
  }),
  topK: whole({
    default: ({ task }: { task: string }) => (task === 'causal-lm' ? 10 : 5),
    help: 'k',
    requires: [anyAbove0('weight')],
  } as never),
};

describe('a need of an option', () => {
  it.each([
    [{ momentum: 0.9, optim: 'adamw' }, ['momentum 0.9 has no effect: it needs optim sgd']],
    [{ momentum: 0.9, optim: 'sgd' }, []],
    [{ momentum: 0, optim: 'adamw' }, []],
    [{ momentum: undefined }, []],
    [
      { adamBeta1: 0.8, optim: 'sgd' },
      ['adamBeta1 0.8 has no effect: it needs optim adamw or lora_fa'],
    ],
    [
      { adamBeta1: 0, optim: 'sgd' },
      ['adamBeta1 0 has no effect: it needs optim adamw or lora_fa'],
    ],
    [{ minutes: 5, output: null }, ['minutes 5 has no effect: it needs output']],
    [{ minutes: 0, output: null }, []],
    [{ kept: 3, minutes: 10 }, ['kept 3 has no effect: it needs output']],
    [
      { kept: 3, minutes: 0, saveSteps: 0, output: 'out' },
      ['kept 3 has no effect: it needs minutes or saveSteps above 0'],
    ],
    [{ kept: 3, minutes: 0, saveSteps: 1, output: 'out' }, []],
    [{ topK: 10 }, []],
    [{ topK: 5, weight: 0 }, ['topK 5 has no effect: it needs weight above 0']],
  ])('%j: %j', (values, expected) => {
    expect(unmet(table, values)).toEqual(expected);
  });

  it('is compared with the default of the task', () => {
    expect(unmet(table, { topK: 5 }, { task: 'sequence-classification' })).toEqual([]);
  });

  it('can be a need of every option of a table, which comes first', () => {
    const never = { holds: () => false, needs: () => 'rain' };
    expect(unmet(table, { kept: 3, optim: 'adamw' }, undefined, never)).toEqual([
      'kept 3 has no effect: it needs rain',
    ]);
  });

  it('is shown in the help and the schema', () => {
    expect(helpOf(table.momentum, (key) => `--${key}`)).toBe('momentum; needs --optim sgd');
    expect(helpOf(table.optim, (key) => `--${key}`)).toBe('optimizer');
    const { properties } = jsonSchemaOf(table, { title: 'x', defaults: {} });
    expect(properties).toMatchObject({
      kept: { description: 'kept; needs minutes or save-steps above 0' },
    });
  });

  it('may be refused instead, by the name that the caller wrote', () => {
    const checks = [needing('resume', given('output'), ', the folder of the run')];
    const tryOut = (values: object): void =>
      checkTogether(checks, values, { name: (key) => `--${key}` });
    expect(() => tryOut({ resume: true })).toThrow(
      '--resume needs --output, the folder of the run',
    );
    for (const values of [{ resume: true, output: 'x' }, { resume: false }, { resume: null }, {}]) {
      expect(() => tryOut(values)).not.toThrow();
    }
  });
});
