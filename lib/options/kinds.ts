/**
 * The kinds of values that options take. One kind serves the library, the command line (where values are text), the
 * configuration file (YAML or JSON values), the help page and the JSON schema, so that these cannot disagree.
 */
import { basename } from 'node:path';
import { z } from 'zod';
import { camel, type Entry, type Kind, type Option, snake, spellings } from './option.ts';

type Widened<D> = D extends number ? number : D;

/** Bounds of a number. */
export interface Bounds {
  /** The least value. */
  readonly least?: number;
  /** Whether the least value itself is refused, too. */
  readonly above?: boolean;
  /** An upper bound that a value must stay below. */
  readonly below?: number;
  /** The largest value. */
  readonly most?: number;
}

/** Declares an option whose kind of value is defined for it alone. */
export function value<T, const D = undefined, R = T>(
  entry: Entry<D> & Kind<T, R>,
): Option<T, D, R> {
  return entry;
}

const asNumber = (given: string): unknown =>
  given.trim() === '' || Number.isNaN(Number(given)) ? given : Number(given);

/** The value of a text that is JSON; any other text is returned unchanged, for the schema to refuse. */
function fromJson(given: string): unknown {
  try {
    return JSON.parse(given);
  } catch {
    return given;
  }
}

/** A schema that first converts another spelling of a value to the standard one. */
function readBefore<T>(read: (given: unknown) => unknown, schema: z.ZodType<T>): z.ZodType<T> {
  return z.preprocess(read, schema) as unknown as z.ZodType<T>;
}

/** The kind of a number within bounds. */
export function numberKind(
  base: z.ZodNumber,
  { least, above = false, below, most }: Bounds,
  whole = false,
) {
  const from = least === undefined ? base : above ? base.gt(least) : base.min(least);
  const under = below === undefined ? from : from.lt(below);
  const bounds = [
    ...(least === undefined ? [] : [`${above ? '>' : '>='} ${least}`]),
    ...(below === undefined ? [] : [`< ${below}`]),
    ...(most === undefined ? [] : [`<= ${most}`]),
  ];
  const range = bounds.length === 0 ? '' : ` ${bounds.join(' and ')}`;
  const noun = whole ? 'whole number' : bounds.length === 0 ? 'finite number' : 'number';
  return {
    schema: (most === undefined ? under : under.max(most)) as z.ZodType<number>,
    wanted: `a ${noun}${range}`,
    placeholder: whole ? 'n' : 'number',
    fromText: asNumber,
  };
}

/** Declares a finite number within bounds. */
export function number<const D extends number | null | undefined = undefined>(
  entry: Entry<D> & Bounds,
): Option<number, Widened<D>> {
  return { ...(entry as Entry<Widened<D>>), ...numberKind(z.number(), entry) };
}

/** Declares a whole number within bounds. */
export function whole<const D extends number | null | undefined = undefined>(
  entry: Entry<D> & Bounds,
): Option<number, Widened<D>> {
  return { ...(entry as Entry<Widened<D>>), ...numberKind(z.int(), entry, true) };
}

/** Declares a choice among the words in `choices`. */
export function choice<const C extends string, const D extends C | null | undefined = undefined>(
  entry: Entry<D> & {
    readonly choices: readonly C[];
    readonly refused?: Readonly<Record<string, string>>;
  },
): Option<C, D extends string ? C : D> {
  const { choices } = entry;
  return {
    ...(entry as Entry<D extends string ? C : D>),
    schema: z.enum(choices),
    wanted: `one of ${choices.join(', ')}`,
    placeholder: choices.length < 4 ? choices.join('|') : 'name',
    choices: choices.length < 4 ? undefined : choices,
    fromText: (given) => given,
  };
}

/** The word for null where null may be chosen; an empty value in a file means that nothing was chosen. */
const kNone = 'none';

/** Declares a choice among the words in `choices` or null, which is written `none` on the command line and in a file. */
export function choiceOrNull<const C extends string>(
  entry: Entry<undefined> & { readonly choices: readonly C[] },
): Option<C | null, undefined> {
  const { choices } = entry;
  const shown = [...choices, kNone];
  const read = (given: unknown): unknown => (given === kNone ? null : given);
  return {
    ...entry,
    schema: z.enum(choices).nullable(),
    wanted: `one of ${shown.join(', ')}`,
    placeholder: 'name',
    choices: shown,
    fromText: read,
    fromFile: read,
    fileSchema: z.enum(shown),
  };
}

/** Declares a switch. On the command line, the bare flag sets it to true and its name after `--no-` sets it to false. */
export function onOff<const D extends boolean | undefined = undefined>(
  entry: Entry<D>,
): Option<boolean, D extends boolean ? boolean : D> {
  return {
    ...(entry as Entry<D extends boolean ? boolean : D>),
    schema: z.boolean(),
    wanted: 'true or false',
    placeholder: null,
    fromText: (given) => (given === 'true' ? true : given === 'false' ? false : given),
  };
}

/** Declares a text. */
export function text<const D extends string | null | undefined = undefined>(
  entry: Entry<D> & { readonly placeholder?: string },
): Option<string, D extends string ? string : D> {
  return {
    ...(entry as Entry<D extends string ? string : D>),
    schema: z.string(),
    wanted: 'text',
    placeholder: entry.placeholder ?? 'text',
    fromText: (given) => given,
  };
}

/** Declares the path of a file or folder, or a name that stands for one. */
export function filePath<const D extends string | null | undefined = undefined>(
  entry: Entry<D> & { readonly placeholder: string },
): Option<string, D extends string ? string : D> {
  return { ...text(entry), schema: z.string().min(1), wanted: 'a path' };
}

/** Declares paths of files: one, or a list; on the command line, a flag for each. */
export function filePaths(
  entry: Entry<undefined> & { readonly placeholder: string },
): Option<string | readonly string[], undefined> {
  const path = z.string().min(1);
  return {
    ...entry,
    schema: z.union([path, z.array(path).min(1).readonly()]),
    wanted: 'a path or a list of paths',
    placeholder: entry.placeholder,
    fromText: (given) => given,
    fromTexts: (given) => (given.length === 1 ? given[0] : given),
  };
}

/** Declares a list of numbers above 0; on the command line, they are separated by commas. */
export function numbers(entry: Entry<undefined>): Option<readonly number[], undefined> {
  return {
    ...entry,
    schema: z.array(z.number().gt(0)).min(1).readonly(),
    wanted: 'a list of numbers > 0',
    placeholder: 'number,number',
    fromText: (given) => commaList(given).map(asNumber),
  };
}

/** Declares words by name: an object, or on the command line `name=word,name=word`. */
export function wordsByName(
  entry: Entry<undefined> & { readonly placeholder: string },
): Option<Readonly<Record<string, string>>, undefined> {
  const word = z.string().min(1);
  return {
    ...entry,
    schema: z.record(word, word),
    wanted: 'name=word,name=word, each name once',
    placeholder: entry.placeholder,
    fromText: (given) => valuesIn(given, (word) => word),
  };
}

/** Declares a prompt template; on the command line, \\n and \\t stand for a line break and a tab. */
export function template(entry: Entry<undefined>): Option<string, undefined> {
  const escapes: Record<string, string> = { n: '\n', t: '\t', '\\': '\\' };
  return {
    ...text({ ...entry, placeholder: 'template' }),
    fromText: (given) => given.replace(/\\([nt\\])/g, (_, char: string) => escapes[char] as string),
  };
}

const kUnits: Record<string, number> = {
  '': 1,
  b: 1,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  kib: 2 ** 10,
  mib: 2 ** 20,
  gib: 2 ** 30,
};
/**
 * A size as text: a positive number of at most 15 digits on either side of the point, and a unit of {@link kUnits} in any case. A number
 * without one is in bytes, and at least {@link kLeastBare}: who writes a smaller one has left the unit out.
 */
const kSize =
  /^\s*(?:(?=[\d.]*[1-9])(\d{1,15}(?:\.\d{0,15})?|\.\d{1,15}) *([bB]|[kKmMgG][iI]?[bB])|([1-9]\d{6,14}))\s*$/;
const kLeastBare = 1e6;

/** Declares a size in bytes: a number, a text such as 1.2GiB or 900MB, or one of the given words. A program may give any number. */
export function size<const W extends string>(
  entry: Entry<null> & { readonly words: readonly W[] },
): Option<W | number, null> {
  const { words } = entry;
  const read = (given: unknown): unknown => {
    const found = typeof given === 'string' ? kSize.exec(given) : null;
    if (found === null) return given;
    const [, amount, unit = '', bare] = found;
    return Math.max(1, Math.round(Number(amount ?? bare) * (kUnits[unit.toLowerCase()] as number)));
  };
  return {
    ...entry,
    schema: readBefore(read, z.union([z.enum(words), z.number().gt(0)])),
    wanted: `${words.join(', ')} or a size with its unit such as 1.2GiB`,
    placeholder: [...words, 'size'].join('|'),
    fromText: (given) => given,
    fileSchema: z.union([z.enum(words), z.number().min(kLeastBare), z.string().regex(kSize)]),
  };
}

/** Declares paths by name: an object, or on the command line a flag for each (`name=path`, or a path, whose last part is the name). */
export function namedPaths(
  entry: Entry<undefined> & { readonly placeholder: string },
): Option<Readonly<Record<string, string>>, undefined> {
  const read = (given: string): [name: string, path: string] => {
    const [, name = '', path = ''] = /^([^=/]+)=(.+)$/.exec(given) ?? [];
    return name === '' ? [basename(given), given] : [name, path];
  };
  return {
    ...entry,
    schema: z.record(z.string().min(1), z.string().min(1)),
    wanted: 'name=path, each name once',
    placeholder: entry.placeholder,
    fromText: (given) => Object.fromEntries([read(given)]),
    fromTexts: (given) => {
      const pairs = given.map(read);
      const isUnique = new Set(pairs.map(([name]) => name)).size === pairs.length;
      return isUnique ? Object.fromEntries(pairs) : given;
    },
  };
}

const commaList = (given: string): string[] => given.split(',').map((name) => name.trim());

/** The object that a text `name=word,name=word` stands for; the text itself where it is none, or has a name twice. */
function valuesIn(given: string, read: (word: string) => unknown): unknown {
  const pairs = commaList(given).map((one) => one.split('='));
  const values = Object.fromEntries(pairs.map(([name, word = '']) => [name, read(word)]));
  const isRight = pairs.every(({ length }) => length === 2);
  return isRight && Object.keys(values).length === pairs.length ? values : given;
}

/** Declares names, as a list or as a single text; on the command line, names are separated by commas. */
export function names(entry: Entry<undefined>): Option<string | string[], undefined> {
  return {
    ...entry,
    schema: z.union([z.string(), z.array(z.string()).min(1)]),
    wanted: 'a name or a list of names',
    placeholder: 'name,name',
    fromText: (given) => (given.includes(',') ? commaList(given) : given),
  };
}

/** Declares a list of names; on the command line, they are separated by commas. */
export function nameList<const D extends null | undefined = undefined>(
  entry: Entry<D>,
): Option<readonly string[], D> {
  return {
    ...entry,
    schema: z.array(z.string().min(1)).readonly(),
    wanted: 'a list of names',
    placeholder: 'name,name',
    fromText: commaList,
    normalize: (list) => Object.freeze([...list]),
  };
}

/** Declares a count, a whole number >= 1 for all things or one for each by its name; on the command line `name=n,name=n`. */
export function countByName(
  entry: Entry<undefined>,
): Option<number | Readonly<Record<string, number>>, undefined> {
  const count = z.int().min(1);
  return {
    ...entry,
    schema: z.union([count, z.record(z.string().min(1), count)]),
    wanted: 'a whole number >= 1, or name=n,name=n',
    placeholder: 'n|name=n',
    fromText: (given) => {
      if (!given.includes('=')) return asNumber(given);
      const pairs = commaList(given).map((one) => one.split('='));
      if (pairs.some(({ length }) => length !== 2)) return given;
      return Object.fromEntries(pairs.map(([name, n]) => [name, asNumber(n as string)]));
    },
  };
}

/** Declares numbers, words and switches by name: an object, or on the command line `name=value,name=value`. */
export function valuesByName(
  entry: Entry<undefined>,
): Option<Readonly<Record<string, number | string | boolean>>, undefined> {
  return {
    ...entry,
    schema: z.record(z.string().min(1), z.union([z.number(), z.string(), z.boolean()])),
    wanted: 'name=value,name=value, each name once',
    placeholder: 'name=value',
    fromText: (given) =>
      valuesIn(given, (word) =>
        word === 'true' || word === 'false' ? word === 'true' : asNumber(word),
      ),
  };
}

/** Declares a list of paths, which on the command line follow the flag one after the other. */
export function pathList<const D extends null | undefined = undefined>(
  entry: Entry<D> & { readonly placeholder: string },
): Option<readonly string[], D> {
  return {
    ...entry,
    schema: z.array(z.string().min(1)).min(1).readonly(),
    wanted: 'a list of paths',
    placeholder: `${entry.placeholder}...`,
    fromText: (given) => [given],
    fromTexts: (texts) => texts,
    normalize: (list) => Object.freeze([...list]),
  };
}

const kName = /^[\w.-]+$/;

/**
 * Declares module names: a list, or a single text that is a regular expression (which may hold commas) or a word that stands
 * for all modules of a kind. On the command line and in a file, a text of plain names is read as a list, because as an
 * expression it would match no path.
 */
export function modules<const D extends string | null>(
  entry: Entry<D> & { readonly words?: readonly string[] },
): Option<readonly string[] | string, D, readonly string[] | string> {
  const { words = [] } = entry;
  const read = (given: unknown): unknown => {
    if (typeof given !== 'string' || words.includes(given)) return given;
    const parts = commaList(given);
    return parts.every((part) => kName.test(part)) ? parts : given;
  };
  return {
    ...entry,
    schema: z.union([z.string(), z.array(z.string().min(1)).readonly()]),
    wanted: 'a regular expression or a list of names',
    placeholder: 'name,name',
    fromText: read,
    fromFile: read,
    normalize: (given) => (typeof given === 'string' ? given : Object.freeze([...new Set(given)])),
  };
}

/** Declares a whole number of at least 0, or a list of such numbers; on the command line, they are separated by commas. */
export function indices(
  entry: Entry<null>,
): Option<readonly number[] | number, null, readonly number[]> {
  const index = z.int().min(0);
  return {
    ...entry,
    schema: z.union([index, z.array(index).readonly()]),
    wanted: 'a whole number >= 0 or a list of them',
    placeholder: 'n,n',
    fromText: (given) => given.split(',').map(asNumber),
    normalize: (given) => Object.freeze(typeof given === 'number' ? [given] : [...given]),
  };
}

/** Numbers by pattern, as pairs, because an object does not keep the order of all keys. */
export type Patterns = readonly (readonly [pattern: string, value: number])[];

/**
 * The schema of an object with numbers under keys that are not empty. (That of z.record leaves out the key __proto__, which JSON
 * and YAML can hold.)
 */
export function numbersByKey(number: z.ZodType<number>): z.ZodType<Record<string, number>> {
  return z.custom<Record<string, number>>(
    (given) =>
      typeof given === 'object' &&
      given !== null &&
      !Array.isArray(given) &&
      Object.entries(given).every(([key, value]) => key !== '' && number.safeParse(value).success),
  );
}

/**
 * Declares numbers by pattern: an object, or JSON on the command line. The normalized form, a list of pairs, is accepted
 * as well.
 */
export function patterns(
  entry: Entry<Readonly<Record<string, never>>> & {
    readonly of: Pick<Kind<number>, 'schema' | 'wanted'>;
  },
): Option<Readonly<Record<string, number>> | Patterns, Readonly<Record<string, never>>, Patterns> {
  const { schema, wanted } = entry.of;
  const pattern = z.string().min(1);
  return {
    ...entry,
    schema: z.union([numbersByKey(schema), z.array(z.tuple([pattern, schema])).readonly()]),
    wanted: `an object of patterns, each with ${wanted}`,
    placeholder: 'json',
    fromText: fromJson,
    fileSchema: z.record(pattern, schema),
    normalize: (given) => {
      const pairs = Array.isArray(given) ? (given as Patterns) : Object.entries(given);
      return Object.freeze(pairs.map(([pattern, number]) => [pattern, number] as const));
    },
  };
}

/** Declares an object of settings, or JSON on the command line. Its keys may be spelled as those of a configuration file. */
export function settings<T extends object>(
  entry: Entry<T> & {
    readonly fields: z.ZodType<T> & { readonly shape: z.ZodRawShape };
    readonly of: string;
  },
): Option<T, T> {
  const { fields, of } = entry;
  const keys = Object.keys(fields.shape);
  const read = (given: unknown): unknown => {
    if (typeof given !== 'object' || given === null || Array.isArray(given)) return given;
    const entries = Object.entries(given).map(([key, item]) => [camel(key), item] as const);
    // A key in two spellings is left for the schema to refuse.
    const isUnique = new Set(entries.map(([key]) => key)).size === entries.length;
    return isUnique ? Object.fromEntries(entries) : given;
  };
  const inFile = keys.flatMap((key) => spellings(key).map((name) => [name, fields.shape[key]]));
  return {
    ...entry,
    schema: readBefore(read, fields),
    wanted: `an object of ${of} (${keys.map(snake).join(', ')})`,
    placeholder: 'json',
    fromText: fromJson,
    fileSchema: z.strictObject(Object.fromEntries(inFile)),
  };
}

/** Declares any JSON value that a program attaches. */
export function json<T, const D extends null | undefined>(
  entry: Entry<D> & { readonly of: string; readonly schema: z.ZodType<T> },
): Option<T, D> {
  return { ...entry, wanted: entry.of, placeholder: 'json', fromText: fromJson };
}
