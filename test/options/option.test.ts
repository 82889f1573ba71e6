import { describe, expect, it } from 'vitest';
import { ArgumentError } from '../../lib/errors.ts';
import { choice, number, onOff, text, whole } from '../../lib/options/kinds.ts';
import {
  type Check,
  camel,
  checkTogether,
  checkValue,
  defaultsOf,
  group,
  identityOfTable,
  kebab,
  type OptionTable,
  optionCalled,
  resolveTable,
  snake,
} from '../../lib/options/option.ts';

const kTable = group('Speed', {
  learningRate: number({ least: 0, default: 0.1, help: 'rate', aliases: ['lr'] }),
  topK: whole({ least: 1, default: ({ task }) => (task === 'b' ? 5 : 10), help: 'k' }),
  output: text({ default: null, help: 'folder', identity: false }),
  late: onOff({ default: false, help: 'late', identity: (on: boolean) => on || undefined }),
  form: choice({ choices: ['a', 'b'], default: 'a', help: 'form', group: 'Other' }),
});

describe('a table of options', () => {
  it('fills in defaults, by task where they are functions', () => {
    expect(defaultsOf(kTable)).toEqual({
      ...{ learningRate: 0.1, topK: 10, output: null, late: false, form: 'a' },
    });
    expect(
      resolveTable(kTable, { learningRate: 2, output: undefined, other: 1 }, { task: 'b' }),
    ).toEqual({ learningRate: 2, topK: 5, output: null, late: false, form: 'a' });
  });

  it('accepts null only where that is the default', () => {
    expect(resolveTable(kTable, { output: null }).output).toBeNull();
    expect(() => resolveTable(kTable, { topK: null })).toThrow(
      'topK must be a whole number >= 1, got null',
    );
  });

  it('is part of the identity of a run, except for entries that say otherwise', () => {
    const values = { learningRate: 1, topK: 2, output: 'x', late: false, form: 'b' };
    expect(JSON.stringify(identityOfTable(kTable, values))).toBe(
      '{"learningRate":1,"topK":2,"form":"b"}',
    );
    expect(identityOfTable(kTable, { ...values, late: true })).toMatchObject({ late: true });
  });

  it('has a heading for all entries without one of their own', () => {
    const table: OptionTable = kTable;
    expect(table.learningRate?.group).toBe('Speed');
    expect(table.form?.group).toBe('Other');
  });

  it('finds an option by its names in other programs', () => {
    const table = group('x', { maxGradNorm: number({ help: '', aliases: ['grad-clip'] }) });
    for (const name of ['grad-clip', 'grad_clip', 'gradClip']) {
      expect(optionCalled(name, table)).toBe('maxGradNorm');
    }
    expect(optionCalled('max-grad-norm', table)).toBeNull();
  });
});

describe('the error of a check', () => {
  it('names the option as the caller wrote it, and the value', () => {
    const refused = () => checkValue('--form', kTable.form, 'c');
    expect(refused).toThrow(ArgumentError);
    expect(refused).toThrow(/^--form must be one of a, b, got "c"$/);
    expect(() => checkValue('x', kTable.learningRate, Number.NaN)).toThrow(
      /^x must be a number >= 0, got NaN$/,
    );
    expect(() => checkValue('x', kTable.form, [Number.NaN])).toThrow(/, got \["NaN"\]$/);
    const circle: unknown[] = [];
    circle.push(circle);
    for (const odd of [() => 1, Symbol('s'), 1n, circle, new Map()]) {
      expect(() => checkValue('x', kTable.form, odd)).toThrow(/^x must be one of a, b, got /);
    }
  });

  it('for several options spells their names as the caller does', () => {
    const checks: readonly Check<{ a: number; b: number }>[] = [
      {
        when: ({ a, b }) => a > b,
        message: (_, name) => `${name('a')} must not be above ${name('b')}`,
      },
    ];
    expect(() => checkTogether(checks, { a: 1, b: 1 })).not.toThrow();
    expect(() => checkTogether(checks, { a: 2, b: 1 })).toThrow(/^a must not be above b$/);
    const how = { name: (key: string) => `--${key}`, where: 'file' };
    expect(() => checkTogether(checks, { a: 2, b: 1 }, how)).toThrow(
      /^file: --a must not be above --b$/,
    );
  });
});

it('names are converted to kebab, snake and camel case', () => {
  expect(kebab('loraAlpha')).toBe('lora-alpha');
  expect(snake('svdTopK')).toBe('svd_top_k');
  expect(camel('svd-top_k')).toBe('svdTopK');
});
