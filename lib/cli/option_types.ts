/**
 * The kinds of values that options take. One kind serves the command line (text), the configuration file (YAML or JSON values)
 * and the help page, so that the three cannot disagree.
 */
import { z } from 'zod';
import { START_NAMES } from '../adapters/methods/registry.ts';
import type { ChoiceOption, NumberOption } from '../losses/options.ts';
import { RAMP_TYPES, type SchedulerOptions } from '../optim/schedulers.ts';
import { camel, type OptionType, snake } from './option_table.ts';

const asNumber = (text: string): unknown =>
  text.trim() === '' || Number.isNaN(Number(text)) ? text : Number(text);

/** A text that is no JSON is passed on, too. */
function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

export function text(placeholder = 'text'): OptionType<string> {
  return { schema: z.string(), wanted: 'text', placeholder, parse: (value) => value };
}

/** A prompt template; on the command line \\n and \\t stand for a line break and a tab. */
export function template(): OptionType<string> {
  const escapes: Record<string, string> = { n: '\n', t: '\t', '\\': '\\' };
  return {
    ...text('template'),
    parse: (value) => value.replace(/\\([nt\\])/g, (_, char: string) => escapes[char] as string),
  };
}

export function number(least: number): OptionType<number> {
  return {
    schema: z.number().min(least),
    wanted: `a number >= ${least}`,
    placeholder: 'number',
    parse: asNumber,
  };
}

/** The type of an option that a loss term declares. */
export function declared(spec: NumberOption | ChoiceOption): OptionType {
  if ('choices' in spec) return choice(...spec.choices);
  const { least, above = false, whole = false } = spec;
  if (whole) return integer(least);
  return above ? positive(least) : number(least);
}

/** A number above `least`. */
function positive(least: number): OptionType<number> {
  return {
    schema: z.number().gt(least),
    wanted: `a number > ${least}`,
    placeholder: 'number',
    parse: asNumber,
  };
}

export function integer(least: number): OptionType<number> {
  return {
    schema: z.int().min(least),
    wanted: `a whole number >= ${least}`,
    placeholder: 'n',
    parse: asNumber,
  };
}

/** `max`, `min`, or a size in bytes: a number, or a text such as 1.2GiB or 900MB. */
export function memoryBudget(): OptionType<'max' | 'min' | number> {
  const units: Record<string, number> = {
    '': 1,
    b: 1,
    kb: 1e3,
    mb: 1e6,
    gb: 1e9,
    kib: 2 ** 10,
    mib: 2 ** 20,
    gib: 2 ** 30,
  };
  const parse = (value: unknown): unknown => {
    const found = typeof value === 'string' && /^([0-9.]+) *([a-z]*)$/i.exec(value.trim());
    const unit = found ? units[(found[2] as string).toLowerCase()] : undefined;
    return found && unit !== undefined ? Math.round(Number(found[1]) * unit) : value;
  };
  return {
    schema: z.preprocess(parse, z.union([z.literal('max'), z.literal('min'), z.number().min(1)])),
    wanted: 'max, min or a size such as 1.2GiB',
    placeholder: 'max|min|size',
    parse,
  };
}

export function choice<const T extends string>(...choices: readonly T[]): OptionType<T> {
  return {
    schema: z.enum(choices),
    wanted: `one of ${choices.join(', ')}`,
    placeholder: choices.length < 4 ? choices.join('|') : 'name',
    ...(choices.length < 4 ? {} : { choices }),
    parse: (value) => value,
  };
}

/** On or off. On the command line the bare flag means on, `--no-` and its name off. */
export function onOff(): OptionType<boolean> {
  return {
    schema: z.boolean(),
    wanted: 'true or false',
    placeholder: null,
    parse: (value) => (value === 'true' ? true : value === 'false' ? false : value),
  };
}

/** Names: a list, or one text. On the command line commas make a list. */
export function names(): OptionType<string | string[]> {
  return {
    schema: z.union([z.string(), z.array(z.string()).min(1)]),
    wanted: 'a name or a list of names',
    placeholder: 'name,name',
    parse: (value) => (value.includes(',') ? value.split(',').map((name) => name.trim()) : value),
  };
}

const kName = /^[\w.-]+$/;

/**
 * Modules: trailing names, one regular expression for the whole path (which may hold commas), or a word that stands for all of
 * a kind. A text of plain names is a list in a configuration file, too: as an expression it would match no path.
 */
export function modules(...words: readonly string[]): OptionType<string | string[]> {
  const parse = (value: unknown): unknown => {
    if (typeof value !== 'string' || words.includes(value)) return value;
    const parts = value.split(',').map((name) => name.trim());
    return parts.every((part) => kName.test(part)) ? parts : value;
  };
  const schema = names().schema;
  return {
    schema: z.preprocess(parse, schema) as unknown as z.ZodType<string | string[]>,
    wanted: 'a regular expression or a list of names',
    placeholder: 'name,name',
    parse,
  };
}

/** A list of names; on the command line separated by commas. */
export function nameList(): OptionType<string[]> {
  return {
    schema: z.array(z.string().min(1)).min(1),
    wanted: 'a list of names',
    placeholder: 'name,name',
    parse: (value) => value.split(',').map((name) => name.trim()),
  };
}

/** A list of whole numbers from 0 on; on the command line separated by commas. */
export function integers(): OptionType<number[]> {
  return {
    schema: z.array(z.int().min(0)).min(1),
    wanted: 'a list of whole numbers >= 0',
    placeholder: 'n,n',
    parse: (value) => value.split(',').map(asNumber),
  };
}

/**
 * Shape parameters of a schedule in transformers' names, or in camel case: an object, on the command line as JSON. Which of them
 * a schedule needs is the schedule's business.
 */
export function schedulerKwargs(): OptionType<SchedulerOptions> {
  const number = z.number().optional();
  const curve = z.enum(RAMP_TYPES).optional();
  const schema = z.strictObject({
    ...{ numCycles: number, lrEnd: number, power: number, minLr: number, minLrRate: number },
    ...{ timescale: number, numDecaySteps: number, numStableSteps: number, minLrRatio: number },
    ...{ warmupType: curve, decayType: curve },
  } satisfies Record<keyof SchedulerOptions, z.ZodType>);
  const camelKeys = (value: unknown): unknown =>
    typeof value === 'object' && value !== null && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).map(([key, given]) => [camel(key), given]))
      : value;
  return {
    schema: z.preprocess(camelKeys, schema) as unknown as z.ZodType<SchedulerOptions>,
    wanted: `an object of options of the schedule (${Object.keys(schema.shape).map(snake).join(', ')})`,
    placeholder: 'json',
    parse: parseJson,
  };
}

/** Numbers by pattern of a module's path, in their order: an object, on the command line as JSON. */
export function patterns(value: OptionType<number>): OptionType<Record<string, number>> {
  return {
    schema: z.record(z.string().min(1), value.schema),
    wanted: `an object of patterns, each with ${value.wanted}`,
    placeholder: 'json',
    parse: parseJson,
  };
}

/** PEFT's init_lora_weights: true, false or the name of a start. */
export function loraInit(): OptionType<boolean | string> {
  const onOrOff = onOff();
  return {
    schema: z.union([z.boolean(), z.string()]),
    wanted: `one of ${START_NAMES.join(', ')}`,
    placeholder: 'name',
    choices: START_NAMES,
    parse: (value) => onOrOff.parse(value),
  };
}
