/**
 * The check of the options of a function, at its call. Options of a run, an adapter or a generation, which also have flags, defaults
 * and help, are declared in tables (option.ts); other functions of the library declare here what each of their options must be.
 */
import { z } from 'zod';
import { ArgumentError } from '../errors.ts';
import { shown } from '../shown.ts';
import { type Bounds, numberKind } from './kinds.ts';
import { complaint, type Kind } from './option.ts';

/** A kind of value: its check, and its description to follow "must be". */
export interface CallKind extends Pick<Kind, 'schema' | 'wanted'> {
  /** Whether a value is never shown in a message. */
  readonly isSecret?: boolean;
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
  return { schema: z.enum(words as [string, ...string[]]), wanted: `one of ${words.join(', ')}` };
}

/** An instance of a class. @param what the class with its article: `a Tokenizer` */
export function instanceOf(type: { readonly prototype: object }, what: string): CallKind {
  return kindOf(what, (value) => value instanceof (type as unknown as new () => object));
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

/**
 * Checks the options of a call. One that is undefined counts as not given.
 * @param where the function, for messages: `evaluate`
 * @throws ArgumentError with the function, the option and its value
 */
export function checkCall<T extends object>(where: string, options: T, table: CallTable<T>): void {
  if (!isObject(options)) {
    throw new ArgumentError(`${where}: the options must be an object, got ${shown(options)}`);
  }
  for (const [key, kind] of Object.entries(table) as [keyof T & string, CallKind][]) {
    if (options[key] !== undefined) checkArgument(`${where}: ${key}`, kind, options[key]);
  }
}

/** Checks an argument of a call. @param name the function and the argument: `data: rows`. @throws as checkCall() does */
export function checkArgument(name: string, kind: CallKind, value: unknown): void {
  if (kind.schema.safeParse(value).success) return;
  const what = kind.isSecret ? `must be ${kind.wanted}` : complaint(kind, value);
  throw new ArgumentError(`${name} ${what}`);
}

function isObject(value: unknown): boolean {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
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
