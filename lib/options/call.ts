/**
 * The check of the options of a function, at its call. Options of a run, an adapter or a generation, which also have flags, defaults
 * and help, are declared in tables (option.ts); other functions of the library declare here what each of their options must be.
 */
import { z } from 'zod';
import { ArgumentError } from '../errors.ts';
import { didYouMean, nearest } from '../nearest.ts';
import { shown } from '../shown.ts';
import { kAdvice, kHomes, kTwins, namedIn } from './elsewhere.ts';
import { type Bounds, numberKind } from './kinds.ts';
import {
  camel,
  complaint,
  type Entry,
  isObject,
  type Kind,
  kebab,
  type OptionTable,
  optionCalled,
} from './option.ts';

/** A kind of value: its check, and its description to follow "must be". */
export interface CallKind
  extends Pick<Kind, 'schema' | 'wanted' | 'choices' | 'refused'>,
    Pick<Entry, 'aliases'> {
  /** Whether a value is never shown in a message. */
  readonly isSecret?: boolean;
  /** Remark about a refused value, which a message ends with. Default: none. */
  readonly note?: (value: unknown) => string;
}

/** The kind of each option of a call. An option without an entry does not compile. */
export type CallTable<T> = { readonly [K in keyof T]-?: CallKind };

const kindOf = (wanted: string, is: (value: unknown) => boolean): CallKind => ({
  schema: z.custom(is),
  wanted,
});

/** Kinds of values that need no description of their own. */
export const kCall = {
  boolean: kindOf('true or false', (value) => typeof value === 'boolean'),
  text: kindOf('text', (value) => typeof value === 'string'),
  texts: kindOf(
    'a list of texts',
    (value) => Array.isArray(value) && value.every((one) => typeof one === 'string'),
  ),
  /** An object whose values are texts. */
  textsByName: kindOf(
    'an object of texts',
    (value) =>
      isObject(value) && Object.values(value as object).every((one) => typeof one === 'string'),
  ),
  /** A text that is not empty. */
  name: kindOf('a name', (value) => typeof value === 'string' && value !== ''),
  path: kindOf('a path', (value) => typeof value === 'string' && value !== ''),
  function: kindOf('a function', (value) => typeof value === 'function'),
  object: kindOf('an object', isObject),
  /** A number that may be infinite. */
  amount: kindOf('a number >= 0', (value) => typeof value === 'number' && value >= 0),
  list: kindOf('a list', Array.isArray),
  ids: kindOf('a list of ids', (value) => Array.isArray(value) || ArrayBuffer.isView(value)),
  signal: kindOf('an AbortSignal', isSignal),
  batches: kindOf('micro-batches, such as data.batches(0)', isIterable),
  /** A value that is checked elsewhere. */
  any: kindOf('any value', () => true),
} as const;

/** A whole number within bounds. */
export function wholeNumber(bounds: Bounds = {}): CallKind {
  return numberKind(z.int(), bounds, true);
}

/** A finite number within bounds. */
export function finiteNumber(bounds: Bounds = {}): CallKind {
  return numberKind(z.number(), bounds);
}

/** One of several words. */
export function oneOf(words: readonly string[]): CallKind {
  const wanted = `one of ${words.join(', ')}`;
  return { schema: z.enum(words as [string, ...string[]]), wanted, choices: words };
}

/** An instance of a class. @param what the class with its article: `a Tokenizer` */
export function instanceOf(
  type: { readonly prototype: object; readonly name: string },
  what: string,
): CallKind {
  const own = kindOf(what, (value) => value instanceof (type as unknown as new () => object));
  return {
    ...own,
    note: (value) => (isNamed(value, type.name) ? ' of another copy of balora' : ''),
  };
}

/** An object that has these methods. @param what its name in messages: `a source of rows` */
export function withMethods(what: string, ...methods: readonly string[]): CallKind {
  return kindOf(
    what,
    (value) =>
      isObject(value) &&
      methods.every((name) => typeof (value as Record<string, unknown>)[name] === 'function'),
  );
}

/** A list of values of one kind. @param wanted of the list: `a list of functions` */
export function listOf({ schema }: CallKind, wanted: string): CallKind {
  return { schema: z.array(schema), wanted };
}

/** A value of another kind, or null. */
export function orNull({ schema, wanted }: CallKind): CallKind {
  return { schema: schema.nullable(), wanted: `${wanted} or null` };
}

/** The kinds of a table's options in a call that resolves the table, which checks their values. */
export function kindsOf<S extends OptionTable>(table: S): { readonly [K in keyof S]: CallKind } {
  const kinds = Object.entries(table).map(([key, { aliases }]) => [key, { ...kCall.any, aliases }]);
  return Object.fromEntries(kinds) as { readonly [K in keyof S]: CallKind };
}

/**
 * Checks the options of a call, which has no others than its table. One that is undefined counts as not given.
 * @param where the function, for messages: `evaluate`
 * @throws ArgumentError with the function, the option and its value, or what to write in the place of an unknown one
 */
export function checkCall<T extends object>(where: string, options: T, table: CallTable<T>): void {
  if (!isObject(options)) throw noObject(where, options);
  const kinds = table as Readonly<Record<string, CallKind>>;
  for (const [key, value] of Object.entries(options)) {
    if (value === undefined) continue;
    if (!Object.hasOwn(kinds, key)) throw unknownOption(where, key, kinds);
    checkArgument(`${where}: ${key}`, kinds[key] as CallKind, value);
  }
}

/** The words of a text. */
type Words<S extends string> = S extends `${infer First} ${infer Rest}` ? First | Words<Rest> : S;
/** The names of all options, none of which is missing or foreign; else what is wrong, which does not compile. */
type NamesOf<T, S extends string> = [
  Exclude<keyof T, Words<S>>,
  Exclude<Words<S>, keyof T>,
] extends [never, never]
  ? S
  : { missing: Exclude<keyof T, Words<S>>; foreign: Exclude<Words<S>, keyof T> };

const kNames = new Map<string, ReadonlySet<string>>();

function namesIn(own: string): ReadonlySet<string> {
  const known = kNames.get(own);
  if (known !== undefined) return known;
  const names = new Set(own.split(' '));
  kNames.set(own, names);
  return names;
}

/**
 * Checks the names of the options of a call, as checkCall() does, of a function whose values the native side checks. It is quick enough for
 * ops, which take 2 microseconds and are called thousands of times a step: 20 to 60 ns.
 * @param own the names of all options, separated by blanks
 * @returns the options
 * @throws ArgumentError with what to write in the place of an unknown one
 */
export function checkKeys<T extends object, S extends string>(
  where: string,
  options: T,
  own: NamesOf<T, S>,
): T {
  if (typeof options !== 'object' || Array.isArray(options)) throw noObject(where, options);
  for (const name in options) {
    const isOwn = namesIn(own as string).has(name);
    if (!isOwn && options[name] !== undefined && Object.hasOwn(options, name))
      throw unknownOption(where, name, [...namesIn(own as string)]);
  }
  return options;
}

const noObject = (where: string, options: unknown) =>
  new ArgumentError(`${where}: the options must be an object, got ${shown(options)}`);

/** Those of the options of a call that another call has, too. */
export function optionsOf<T extends object>(table: CallTable<T>, options: T): T {
  const own = Object.entries(options).filter(([key]) => Object.hasOwn(table, key));
  return Object.fromEntries(own) as T;
}

/** The names of options, or options by their names, each with the names that it has in other programs. */
type Known = readonly string[] | Readonly<Record<string, Pick<Entry, 'aliases'>>>;

/** The error for an option that a call does not have. */
export function unknownOption(where: string, name: string, known: Known): ArgumentError {
  return new ArgumentError(`${where}: unknown option ${shown(name, 40)}${hintFor(name, known)}`);
}

/** Largest number of known options in a message. */
const kMostKnown = 12;

/**
 * Advice about an unknown option, to follow its name: the option that is meant, in any case style or by its name in PEFT,
 * transformers or mlx-lm; the advice where none has its meaning; the call that has it; the nearest name; or the known ones.
 * @param spelled gives an option as a command line or a file has it, whose users have no calls and find the known ones in its help.
 *   Default: as a program does
 */
export function hintFor(name: string, known: Known, spelled?: (key: string) => string): string {
  const spell = spelled ?? ((key: string) => key);
  const plain = plainName(name);
  const keys = Array.isArray(known) ? (known as readonly string[]) : Object.keys(known);
  const called = (kebabName: string) => keys.find((key) => plainName(key) === kebabName);
  const twins = namedIn(kTwins, plain);
  const meant =
    called(plain) ??
    (Array.isArray(known) ? null : optionCalled(plain, known as OptionTable)) ??
    twins.find((key) => keys.includes(key));
  if (meant !== undefined) return didYouMean(spell(meant));
  const [advice] = namedIn(kAdvice, plain);
  if (advice !== undefined) return `; ${advice}`;
  for (const key of spelled ? [] : [camel(plain), ...twins]) {
    const [home] = namedIn(kHomes, kebab(key));
    if (home !== undefined) return `; ${key} belongs to ${home}`;
  }
  const near = nearest(plain, keys.map(plainName));
  if (near !== null) return didYouMean(spell(called(near) as string));
  if (spelled !== undefined) return '';
  const more = keys.length > kMostKnown ? ` and ${keys.length - kMostKnown} more` : '';
  return `; known: ${keys.slice(0, kMostKnown).map(spell).join(', ') || 'none'}${more}`;
}

/** A name in kebab case, whatever its own. */
const plainName = (name: string): string =>
  name
    .replace(/([a-z0-9])([A-Z])/g, '$1-$2')
    .replace(/[_\s]+/g, '-')
    .toLowerCase();

/** Checks an argument of a call. @param name the function and the argument: `data: rows`. @throws as checkCall() does */
export function checkArgument(name: string, kind: CallKind, value: unknown): void {
  if (kind.schema.safeParse(value).success) return;
  const what = kind.isSecret ? `must be ${kind.wanted}` : complaint(kind, value);
  throw new ArgumentError(`${name} ${what}${kind.note?.(value) ?? ''}`);
}

/** Whether a class of an object, or one that it extends, has this name. */
function isNamed(value: unknown, name: string): boolean {
  for (let at = value; isObject(at); at = Object.getPrototypeOf(at)) {
    if ((at as object).constructor?.name === name) return true;
  }
  return false;
}

function isIterable(value: unknown): boolean {
  if (typeof value !== 'object' || value === null) return false;
  return Symbol.asyncIterator in value || Symbol.iterator in value;
}

/** Whether a value works as an AbortSignal, which may be of another realm or library. */
function isSignal(value: unknown): boolean {
  if (!isObject(value)) return false;
  const { aborted, throwIfAborted, addEventListener } = value as Partial<AbortSignal>;
  return (
    typeof aborted === 'boolean' &&
    typeof throwIfAborted === 'function' &&
    typeof addEventListener === 'function'
  );
}
