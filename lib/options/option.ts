/**
 * An option, declared once. Its entry is the one place that has its type, default, check and message, its flag, its key in a
 * configuration file, its JSON schema, its part in a run's identity and its line of help: all of these are read out of it.
 */
import type { z } from 'zod';
import { ArgumentError } from '../errors.ts';

/** The circumstances that a default may depend on. A method's own defaults are its presets: lib/adapters/methods. */
export interface DefaultContext {
  /** Name of the task, such as `causal-lm`. */
  readonly task: string;
}

/** A default, or the default in given circumstances. null: none, so something else decides; null may then be given, too. */
export type Default<D> = D | ((context: DefaultContext) => D);

/** The part of an entry that every kind of option has. */
export interface Entry<D = unknown> {
  readonly default?: Default<D>;
  /** The line of the help; choices and the default are added to it. */
  readonly help: string;
  /** The line for `--no-...`, of a switch that is on by default. */
  readonly helpOff?: string;
  /** Heading of the help and of the docs under which it stands. */
  readonly group?: string;
  /** Other names that people look for it under, in kebab case. They are suggested where they are given, and not accepted. */
  readonly aliases?: readonly string[];
  /**
   * Its part in the identity of a run. By default its value, so that a checkpoint is not continued under another one. false: it
   * does not belong there. A function: what stands there for a value, undefined for nothing.
   */
  readonly identity?: false | ((value: never) => unknown);
  /** Whether a command cannot go without it. */
  readonly required?: boolean;
  /** `flag`: an act of the command line, not a setting for a file. `library`: made by a program, so it has no flag. */
  readonly only?: 'flag' | 'library';
}

/** A kind of values: how they are checked, and how they are written on a command line and in a file. */
export interface Kind<T = unknown, R = T> {
  readonly schema: z.ZodType<T>;
  /** Words for what a value must be, behind "must be": `a whole number >= 1`. */
  readonly wanted: string;
  /** Shown behind the flag; null for a switch, which has no value. */
  readonly placeholder: string | null;
  /** The values there are, where the placeholder is too short to say so. */
  readonly choices?: readonly string[];
  /** The text of a flag as a value for the schema; a text that is none is passed on, for the schema to refuse. */
  fromText(text: string): unknown;
  /** The same for a value of a configuration file. Default: it is the value. */
  fromFile?(value: unknown): unknown;
  /** Values that a configuration file may hold, where these are others than the schema takes. */
  readonly fileSchema?: z.ZodType;
  /** The form in which a checked value is worked with. Default: it is the value. */
  normalize?(value: T): R;
}

/** An option: T is what a caller gives, D what holds where nothing is given, R the form in which it is worked with. */
export interface Option<T = unknown, D = unknown, R = T> extends Kind<T, R>, Entry<D> {}

/** Options by their names in the library, in the order of the help. */
export type OptionTable = Readonly<Record<string, Option>>;

type Given<O> = O extends Option<infer T, infer D, infer _R> ? T | Extract<D, null> : never;
type Resolved<O> = O extends Option<infer _T, infer D, infer R> ? R | Extract<D, null> : never;
type Present<O> = O extends Option<infer T, infer _D, infer _R> ? T : never;

/** The options of a table as a caller gives them: each may be left out. Doc comments of the entries are those of the type. */
export type InputOf<S> = { -readonly [K in keyof S]?: Given<S[K]> };
/** The options of a table with every default filled in. */
export type ResolvedOf<S> = { -readonly [K in keyof S]: Resolved<S[K]> };
/** The values that were given; those that were not are absent. */
export type ValuesOf<S> = { -readonly [K in keyof S]?: Present<S[K]> };

/** Puts the entries under a heading of the help; those that have one keep it. */
export function group<S extends OptionTable>(heading: string, table: S): S {
  const entries = Object.entries(table).map(([key, option]) => [
    key,
    { ...option, group: option.group ?? heading },
  ]);
  return Object.fromEntries(entries) as S;
}

/** The default of an option in its circumstances. */
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
 * Refuses a value that the option does not allow, in the same words wherever it comes from.
 * @param name the option as the caller wrote it: `learningRate`, `--learning-rate`, `file.yaml: learning-rate`
 * @throws ArgumentError with name and value
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

/** The words behind an option's name that say why a value is refused. */
export function complaint({ wanted }: Pick<Kind, 'wanted'>, value: unknown): string {
  return `must be ${wanted}, got ${shown(value)}`;
}

function shown(value: unknown): string {
  if (typeof value === 'number' || typeof value === 'bigint') return String(value);
  if (typeof value === 'function') return 'a function';
  try {
    return JSON.stringify(value, (_, part) => finite(part)) ?? String(value);
  } catch {
    return String(value);
  }
}

/** JSON has no word for numbers that are not finite. */
function finite(part: unknown): unknown {
  return typeof part === 'number' && !Number.isFinite(part) ? String(part) : part;
}

/**
 * The options of a table out of a caller's, defaults filled in; keys of other tables are passed over.
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

/** A checked value in the form in which it is worked with. */
export function normalized({ normalize }: Option, value: unknown): unknown {
  return value === null || normalize === undefined ? value : normalize(value);
}

/** The part of a run's identity that the values of a table are, in the order of the table. */
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

/** A combination of values that is refused. It stands beside the table of these options. */
export interface Check<V> {
  when(values: V): boolean;
  /** @param name the caller's spelling of an option's name */
  message(values: V, name: (key: string) => string): string;
}

/**
 * Refuses values that do not go together, in the same words wherever they come from.
 * @param options.name the caller's spelling of an option's name; default: as in the library
 * @param options.where the file or function that the values were given to, in front of the message
 * @throws ArgumentError with the message of the first check that holds
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

/** `loraAlpha` -> `lora-alpha`. */
export function kebab(key: string): string {
  return key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

/** `loraAlpha` -> `lora_alpha`, the spelling of transformers and PEFT. */
export function snake(key: string): string {
  return key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** `lora-alpha`, `lora_alpha` -> `loraAlpha`. */
export function camel(name: string): string {
  return name.replace(/[-_](.)/g, (_, letter: string) => letter.toUpperCase());
}

/** The option that is meant by a name it does not have, whatever its spelling; null where no entry declares that name. */
export function optionCalled(name: string, table: OptionTable): string | null {
  const plain = kebab(camel(name));
  const found = Object.entries(table).find(([, { aliases = [] }]) => aliases.includes(plain));
  return found?.[0] ?? null;
}
