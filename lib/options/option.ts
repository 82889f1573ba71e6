/**
 * The declaration of an option. Its entry alone defines its type, default, check and error message, its flag, its key in a
 * configuration file, its JSON schema, its part in the identity of a run, and its line of help.
 */
import type { z } from 'zod';
import { ArgumentError } from '../errors.ts';
import { didYouMean, misspelt } from '../nearest.ts';
import { shown } from '../shown.ts';

/** The seed of everything that draws random numbers, where the caller gives none. */
export const DEFAULT_SEED = 42;

/** The circumstances that a default may depend on. The defaults of a method are its presets, in lib/adapters/methods. */
export interface DefaultContext {
  /** Name of the task, such as `causal-lm`. */
  readonly task: string;
}

/**
 * A default, or a function that gives the default in the circumstances. A default of null means that the value is decided
 * elsewhere, and null may then be given explicitly, too.
 */
export type Default<D> = D | ((context: DefaultContext) => D);

/** Values of options, by their names in the library. */
export type Values = Readonly<Record<string, unknown>>;

/** Whether a value is an object with keys, neither null nor a list. */
export function isObject(value: unknown): value is Values {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

/** Something that an option needs to have an effect. */
export interface Requirement {
  holds(values: Values): boolean;
  /**
   * The words that follow "it needs".
   * @param name gives the caller's spelling of an option's name
   */
  needs(name: (key: string) => string): string;
}

/** The part of an option's declaration that is the same for every kind of value. */
export interface Entry<D = unknown> {
  readonly default?: Default<D>;
  /** The line of help, without the choices and the default, which are appended to it. */
  readonly help: string;
  /** The line of help for `--no-...`, for a switch that is on by default. */
  readonly helpOff?: string;
  /** The heading under which the option stands in the help and in the documentation. */
  readonly group?: string;
  /**
   * Names, in kebab case, under which other programs have this option. They are not accepted; the error suggests this option.
   */
  readonly aliases?: readonly string[];
  /**
   * The option's part in the identity of a run, which must match for a checkpoint to be continued. By default it is the value
   * itself. With `false` the option has no part in it; a function maps the value to its part, or to undefined for none.
   */
  readonly identity?: false | ((value: never) => unknown);
  /** Needs of the option for it to have an effect; without them, a run says that it has none. Default: none. */
  readonly requires?: readonly Requirement[];
  /** A value other than the default with which the option needs nothing, since it is switched off. */
  readonly off?: unknown;
  /** Whether a command requires the option. */
  readonly required?: boolean;
  /**
   * A limit on where the option can be set: `flag` for the command line but not a file, `library` for programs only, without
   * a flag.
   */
  readonly only?: 'flag' | 'library';
}

/** A kind of value: how it is checked, and how it is written on the command line and in a file. */
export interface Kind<T = unknown, R = T> {
  readonly schema: z.ZodType<T>;
  /** The description of allowed values, to follow "must be" in a message: `a whole number >= 1`. */
  readonly wanted: string;
  /** The placeholder shown after the flag; null for a switch, which has no value. */
  readonly placeholder: string | null;
  /** All allowed values, where the placeholder is too short to list them. */
  readonly choices?: readonly string[];
  /** Words that are refused for a reason of their own, with that reason as the second half of the message. */
  readonly refused?: Readonly<Record<string, string>>;
  /**
   * Converts the text of a flag to a value for the schema; a text that cannot be converted is returned unchanged, for the
   * schema to refuse.
   */
  fromText(text: string): unknown;
  /** Converts the texts of a flag that may be given several times, in the place of `fromText`. Default: only the last one counts. */
  fromTexts?(texts: readonly string[]): unknown;
  /** Converts a value of a configuration file, once it is checked, to a value for the schema. Default: unchanged. */
  fromFile?(value: unknown): unknown;
  /** The schema of values in a configuration file, where it differs from the schema of the option. */
  readonly fileSchema?: z.ZodType;
  /** Converts a checked value to its normalized form. By default the value is used as it is. */
  normalize?(value: T): R;
}

/** An option. T is the type that a caller gives, D the type of the default, and R the normalized type that the library uses. */
export interface Option<T = unknown, D = unknown, R = T> extends Kind<T, R>, Entry<D> {}

/** Options by their names in the library, in the order in which the help shows them. */
export type OptionTable = Readonly<Record<string, Option>>;

type Given<O> = O extends Option<infer T, infer D, infer _R> ? T | Extract<D, null> : never;
type Resolved<O> = O extends Option<infer _T, infer D, infer R> ? R | Extract<D, null> : never;
type Present<O> = O extends Option<infer T, infer _D, infer _R> ? T : never;

/**
 * The input type of a table of options, in which each may be omitted. The doc comments of its fields are those of the entries.
 */
export type InputOf<S> = { -readonly [K in keyof S]?: Given<S[K]> };
/** The options of a table with every default filled in. */
export type ResolvedOf<S> = { -readonly [K in keyof S]: Resolved<S[K]> };
/** The values that were given, without the options that were not. */
export type ValuesOf<S> = { -readonly [K in keyof S]?: Present<S[K]> };

/** Sets the help heading of the entries that do not have one. */
export function group<S extends OptionTable>(heading: string, table: S): S {
  const entries = Object.entries(table).map(([key, option]) => [
    key,
    { ...option, group: option.group ?? heading },
  ]);
  return Object.fromEntries(entries) as S;
}

/** The default of an option in given circumstances. */
export function defaultOf<D>(
  option: Pick<Entry<D>, 'default'>,
  context: DefaultContext = kGeneral,
): D {
  const value = option.default as Default<D>;
  return typeof value === 'function'
    ? (value as (context: DefaultContext) => D)(context)
    : (value as D);
}

const kGeneral: DefaultContext = { task: 'causal-lm' };

/** The defaults of all options of a table. */
export function defaultsOf<S extends OptionTable>(
  table: S,
  context: DefaultContext = kGeneral,
): ResolvedOf<S> {
  return Object.fromEntries(
    Object.entries(table).map(([key, option]) => [key, defaultOf(option, context)]),
  ) as ResolvedOf<S>;
}

/**
 * Checks a value of an option, with the same message wherever the value comes from.
 * @param name the option as the caller wrote it: `learningRate`, `--learning-rate`, `file.yaml: learning-rate`
 * @throws ArgumentError with name and value if the option does not allow it
 */
export function checkValue<T, D, R>(
  name: string,
  option: Option<T, D, R>,
  value: unknown,
): T | Extract<D, null> {
  if (value === null && option.default === null) return value as Extract<D, null>;
  const result = option.schema.safeParse(value);
  if (result.success) return result.data;
  throw new ArgumentError(`${name} ${complaint(option, value)}`);
}

/**
 * Checks a value of an option in a configuration file, and converts it to a value for the library. The file's schema refuses what
 * the JSON schema refuses.
 * @throws ArgumentError as checkValue() does
 */
export function checkFileValue(name: string, option: Option, value: unknown): unknown {
  const { schema, fileSchema = schema, fromFile } = option;
  if (!fileSchema.safeParse(value).success) {
    throw new ArgumentError(`${name} ${complaint(option, value)}`);
  }
  return checkValue(name, option, fromFile ? fromFile(value) : value);
}

/** The second half of a message, after the option's name, that explains why a value is refused, with the choice that it misspells. */
export function complaint(
  { wanted, refused = {}, choices = [] }: Pick<Kind, 'wanted' | 'refused' | 'choices'>,
  value: unknown,
): string {
  if (typeof value === 'string' && Object.hasOwn(refused, value))
    return `${value} ${refused[value]}`;
  return `must be ${wanted}, got ${shown(value)}${suggestion(value, choices)}`;
}

/** The text ` (did you mean "x"?)` with the choice that a value misspells, or an empty text where it misspells none. */
export function suggestion(value: unknown, choices: readonly string[]): string {
  return didYouMean(typeof value === 'string' ? misspelt(value, choices) : null);
}

/**
 * Picks the options of a table from the caller's options, checks them, and fills in the defaults; keys of other tables
 * are ignored.
 * @throws ArgumentError with the option's name and value
 */
export function resolveTable<S extends OptionTable>(
  table: S,
  input: object,
  context: DefaultContext = kGeneral,
): ResolvedOf<S> {
  const given = input as Readonly<Record<string, unknown>>;
  const entries = Object.entries(table).map(([key, option]) => {
    const value = given[key];
    const whole = value === undefined ? defaultOf(option, context) : checkValue(key, option, value);
    return [key, normalized(option, whole)];
  });
  return Object.fromEntries(entries) as ResolvedOf<S>;
}

/** The normalized form of a checked value. */
export function normalized({ normalize }: Option, value: unknown): unknown {
  return value === null || normalize === undefined ? value : normalize(value);
}

/** The part of a run's identity that a table's values make up, in the order of the table. */
export function identityOfTable(
  table: OptionTable,
  values: Readonly<Record<string, unknown>>,
): Record<string, unknown> {
  const parts = Object.entries(table).flatMap(([key, { identity }]) => {
    if (identity === false) return [];
    const part = identity === undefined ? values[key] : identity(values[key] as never);
    return part === undefined ? [] : [[key, part] as const];
  });
  return Object.fromEntries(parts);
}

/** A check that refuses a combination of values. Checks stand beside the table of the options concerned. */
export interface Check<V> {
  when(values: V): boolean;
  /**
   * The error message for a refused combination.
   * @param name gives the caller's spelling of an option's name
   */
  message(values: V, name: (key: string) => string): string;
}

/**
 * Runs checks of combinations of values, with the same messages wherever the values come from.
 * @param options.name gives the caller's spelling of an option's name; by default the library's
 * @param options.where the file or function that the values were given to, placed before the message
 * @throws ArgumentError with the message of the first check that refuses the values
 */
export function checkTogether<V>(
  checks: readonly Check<V>[],
  values: V,
  { name = (key) => key, where }: { name?: (key: string) => string; where?: string } = {},
): void {
  const broken = checks.find((check) => check.when(values));
  if (broken === undefined) return;
  const message = broken.message(values, name);
  throw new ArgumentError(where === undefined ? message : `${where}: ${message}`);
}

/**
 * The line of help of an option, with the last of what it needs, which itself needs the rest.
 * @param name gives the spelling of an option's name
 */
export function helpOf({ help, requires = [] }: Option, name: (key: string) => string): string {
  return [help, ...requires.slice(-1).map(({ needs }) => `needs ${needs(name)}`)].join('; ');
}

/** The kebab-case form of a name: `loraAlpha` becomes `lora-alpha`. */
export function kebab(key: string): string {
  return key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

/** The snake-case form of a name, as in transformers and PEFT: `loraAlpha` becomes `lora_alpha`. */
export function snake(key: string): string {
  return key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** The camel-case form of a name: `lora-alpha` and `lora_alpha` become `loraAlpha`. */
export function camel(name: string): string {
  return name.replace(/[-_](.)/g, (_, letter: string) => letter.toUpperCase());
}

/** The spellings of an option's name that a configuration file may use: `lora-alpha`, `lora_alpha` and `loraAlpha`. */
export function spellings(key: string): readonly string[] {
  return [...new Set([kebab(key), snake(key), key])];
}

/** The name of the option that declares this alias, in any spelling; null where no option does. */
export function optionCalled(name: string, table: OptionTable): string | null {
  const plain = kebab(camel(name));
  const found = Object.entries(table).find(([, { aliases = [] }]) => aliases.includes(plain));
  return found?.[0] ?? null;
}
