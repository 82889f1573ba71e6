/**
 * Options of loss terms, each declared once: its default, its check and its help. The TypeScript type of the options, the
 * check of a run's settings and the flags of the command line are all read out of these declarations.
 */
import { ArgumentError } from '../errors.ts';

interface Described<T> {
  readonly default: T;
  /** The line in the help of the command line. */
  readonly help: string;
}

/** A number with a lower bound; null as the default means that something else decides where none is given. */
export interface NumberOption<T extends number | null = number | null> extends Described<T> {
  readonly least: number;
  /** Whether the bound itself is refused. */
  readonly above?: boolean;
  readonly whole?: boolean;
}

/** One of several words. */
export interface ChoiceOption<C extends string = string> extends Described<C> {
  readonly choices: readonly C[];
}

/** Declarations by the option's name. */
export type OptionSpecs = Readonly<Record<string, NumberOption | ChoiceOption>>;

type ValueOf<S> =
  S extends ChoiceOption<infer C> ? C : S extends NumberOption<infer T> ? Widened<T> : never;
type Widened<T> = T extends null ? number | null : number;

/** The options as a caller gives them: each may be left out. */
export type OptionsOf<S extends OptionSpecs> = { -readonly [K in keyof S]?: ValueOf<S[K]> };
/** The options with every default filled in. */
export type ResolvedOf<S extends OptionSpecs> = { -readonly [K in keyof S]: ValueOf<S[K]> };

/** Declares a number of at least `least`; with `above` it must be more. */
export function number<const T extends number | null>(option: NumberOption<T>): NumberOption<T> {
  return option;
}

/** Declares a whole number of at least `least`. */
export function whole(option: NumberOption<number>): NumberOption<number> {
  return { ...option, whole: true };
}

/** Declares a word out of `choices`. */
export function choice<const C extends string>(option: {
  readonly choices: readonly C[];
  readonly default: NoInfer<C>;
  readonly help: string;
}): ChoiceOption<C> {
  return option;
}

/** The defaults of all declared options. */
export function defaultsOf<S extends OptionSpecs>(specs: S): ResolvedOf<S> {
  return Object.fromEntries(
    Object.entries(specs).map(([key, spec]) => [key, spec.default]),
  ) as ResolvedOf<S>;
}

/** Words for what a value must be: `a whole number >= 1`, `one of constant, cosine`. */
export function wanted(spec: NumberOption | ChoiceOption): string {
  if ('choices' in spec) return `one of ${spec.choices.join(', ')}`;
  return `a ${spec.whole ? 'whole ' : ''}number ${spec.above ? '>' : '>='} ${spec.least}`;
}

/** Refuses a value that its declaration does not allow. @throws ArgumentError naming the option and the value */
export function checkOption(key: string, spec: NumberOption | ChoiceOption, value: unknown): void {
  if (value === null && spec.default === null) return;
  if (allows(spec, value)) return;
  const shown = typeof value === 'number' ? String(value) : JSON.stringify(value);
  throw new ArgumentError(`${key} must be ${wanted(spec)}, got ${shown}`);
}

function allows(spec: NumberOption | ChoiceOption, value: unknown): boolean {
  if ('choices' in spec) return spec.choices.includes(value as string);
  if (typeof value !== 'number' || !Number.isFinite(value)) return false;
  if (spec.whole && !Number.isInteger(value)) return false;
  return spec.above ? value > spec.least : value >= spec.least;
}
