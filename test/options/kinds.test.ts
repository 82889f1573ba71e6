import { describe, expect, it } from 'vitest';
import { z } from 'zod';
import {
  choice,
  choiceOrNull,
  filePath,
  indices,
  modules,
  nameList,
  names,
  number,
  onOff,
  patterns,
  settings,
  size,
  text,
  value,
  whole,
} from '../../lib/options/kinds.ts';
import { checkFileValue, checkValue, normalized, type Option } from '../../lib/options/option.ts';

const help = '';
const kFields = z.strictObject({ minLr: z.number().optional(), warmupType: z.string().optional() });
const of = whole({ least: 1, help });

/** The value that a flag's text is read as, or the message of the error. */
function read(option: Option, given: string): unknown {
  try {
    return checkValue('x', option, option.fromText(given));
  } catch (error) {
    return (error as Error).message;
  }
}

describe('a kind of values', () => {
  it.each<[string, Option, string, unknown]>([
    ['number', number({ help }), '-2.5e3', -2500],
    ['number', number({ help }), 'Infinity', 'x must be a finite number, got Infinity'],
    ['number', number({ help }), '', 'x must be a finite number, got ""'],
    ['filePath', filePath({ placeholder: 'file', help }), '', 'x must be a path, got ""'],
    ['filePath', filePath({ placeholder: 'file', help }), ' ', ' '],
    ['number', number({ least: 0, help }), '-1', 'x must be a number >= 0, got -1'],
    ['number', number({ least: 0, above: true, help }), '0', 'x must be a number > 0, got 0'],
    ['number', number({ least: 0, below: 1, help }), '1', 'x must be a number >= 0 and < 1, got 1'],
    ['number', number({ least: 0, most: 1, help }), '1', 1],
    ['number', number({ least: 0, most: 1, help }), '2', 'x must be a number >= 0 and <= 1, got 2'],
    ['whole', whole({ least: 1, help }), '3', 3],
    ['whole', whole({ least: 1, help }), '1.5', 'x must be a whole number >= 1, got 1.5'],
    ['whole', whole({ least: 1, help }), 'many', 'x must be a whole number >= 1, got "many"'],
    ['choice', choice({ choices: ['a', 'b'], help }), 'b', 'b'],
    ['choice', choice({ choices: ['a', 'b'], help }), 'c', 'x must be one of a, b, got "c"'],
    [
      'choice',
      choice({ choices: ['lora', 'lora_fa', 'lora_ga', 'hra'], help }),
      'LoRA-GA',
      'x must be one of lora, lora_fa, lora_ga, hra, got "LoRA-GA" (did you mean "lora_ga"?)',
    ],
    [
      'choice',
      choice({ choices: ['lora', 'lora_fa', 'lora_ga', 'hra'], help }),
      'ia3',
      'x must be one of lora, lora_fa, lora_ga, hra, got "ia3"',
    ],
    ['choiceOrNull', choiceOrNull({ choices: ['a'], help }), 'none', null],
    [
      'choiceOrNull',
      choiceOrNull({ choices: ['a'], help }),
      'b',
      'x must be one of a, none, got "b"',
    ],
    ['onOff', onOff({ help }), 'false', false],
    ['onOff', onOff({ help }), 'no', 'x must be true or false, got "no"'],
    ['text', text({ help }), 'a b', 'a b'],
    ['size', size({ words: ['max'], default: null, help }), '1.5GiB', 1.5 * 2 ** 30],
    ['size', size({ words: ['max'], default: null, help }), '900 MB', 9e8],
    ['size', size({ words: ['max'], default: null, help }), 'max', 'max'],
    ['size', size({ words: ['max'], default: null, help }), '1500000', 1_500_000],
    ...['0', '0GiB', '0.6', '600', '999999', '0000600'].map(
      (given): [string, Option, string, unknown] => [
        'size',
        size({ words: ['max'], default: null, help }),
        given,
        `x must be max or a size with its unit such as 1.2GiB, got "${given}"`,
      ],
    ),
    ['names', names({ help }), 'a, b', ['a', 'b']],
    ['names', names({ help }), 'a', 'a'],
    ['nameList', nameList({ help }), 'a', ['a']],
    ['nameList', nameList({ help }), 'a,', 'x must be a list of names, got ["a",""]'],
    ['modules', modules({ default: null, help }), 'q_proj,v_proj', ['q_proj', 'v_proj']],
    ['modules', modules({ default: null, help }), '(q|v),x', '(q|v),x'],
    ['modules', modules({ words: ['all'], default: null, help }), 'all', 'all'],
    ['indices', indices({ default: null, help }), '0,2', [0, 2]],
    [
      'indices',
      indices({ default: null, help }),
      '-1',
      'x must be a whole number >= 0 or a list of them, got [-1]',
    ],
    ['patterns', patterns({ of, default: {}, help }), '{"a": 2}', { a: 2 }],
    [
      'patterns',
      patterns({ of, default: {}, help }),
      '{"a": 0}',
      'x must be an object of patterns, each with a whole number >= 1, got {"a":0}',
    ],
    [
      'settings',
      settings({ fields: kFields, of: 'options', default: {}, help }),
      '{"min_lr": 1}',
      { minLr: 1 },
    ],
    [
      'settings',
      settings({ fields: kFields, of: 'options', default: {}, help }),
      '[]',
      'x must be an object of options (min_lr, warmup_type), got []',
    ],
    [
      'value',
      value({ schema: z.literal(1), wanted: 'one', placeholder: 'n', fromText: Number, help }),
      '2',
      'x must be one, got 2',
    ],
  ])('%s reads %o %s', (_, option, given, expected) => {
    expect(read(option, given)).toEqual(expected);
  });
});

it('patterns keep their order, also of names that are numbers, and are accepted in their normalised form', () => {
  const option = patterns({ of, default: {}, help });
  const pairs = normalized(option, { b: 1, a: 2 });
  expect(pairs).toEqual([
    ['b', 1],
    ['a', 2],
  ]);
  expect(normalized(option, checkValue('x', option, pairs))).toEqual(pairs);
});

it('a single index becomes a list, and repeated module names are removed', () => {
  expect(normalized(indices({ default: null, help }), 3)).toEqual([3]);
  expect(normalized(modules({ default: null, help }), ['b', 'a', 'b'])).toEqual(['b', 'a']);
  expect(normalized(modules({ default: null, help }), null)).toBeNull();
});

it('a size without a unit that a file has is in bytes, and never a few of them', () => {
  const option = size({ words: ['max'], default: null, help });
  expect(checkFileValue('x', option, 1_500_000)).toBe(1_500_000);
  for (const given of [600, 0.6, '600']) {
    expect(() => checkFileValue('x', option, given)).toThrow(
      /^x must be max or a size with its unit such as 1.2GiB, got "?(600|0\.6)"?$/,
    );
  }
});
