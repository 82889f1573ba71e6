/**
 * Tables of options: one row an option, the single source of its flag, its key in a configuration file, its type, its check and
 * its line in the help. Values are layered: command line over configuration file; what neither gives stays undefined, and the
 * library's own default holds.
 */
import type { z } from 'zod';
import { ArgumentError } from '../errors.ts';
import { nearest } from './nearest.ts';

/** A kind of value, see option_types.ts. */
export interface OptionType<T = unknown> {
  readonly schema: z.ZodType<T>;
  /** What the value must be, for messages: `a whole number >= 1`. */
  readonly wanted: string;
  /** Shown in the help after the flag; null for a switch. */
  readonly placeholder: string | null;
  /** The values there are, where the placeholder is too short to say so. */
  readonly choices?: readonly string[];
  /** The flag's text as a value for the schema; a text that is none is passed on, for the schema to refuse. */
  parse(text: string): unknown;
}

export interface OptionRow<T = unknown> {
  readonly type: OptionType<T>;
  readonly help: string;
  readonly group: string;
  /** What `--no-...` does, for a switch that is on by default. */
  readonly helpOff?: string;
  readonly required?: boolean;
  /** Only on the command line: an act, not a setting. */
  readonly commandLineOnly?: boolean;
}

/** Rows by camel-case key. */
export type OptionTable = Readonly<Record<string, OptionRow>>;

export type OptionValues<T extends OptionTable> = {
  -readonly [K in keyof T]?: T[K] extends OptionRow<infer V> ? V : never;
};

/** `loraAlpha` -> `lora-alpha`. */
export function kebab(key: string): string {
  return key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
}

/** `loraAlpha` -> `lora_alpha`. */
export function snake(key: string): string {
  return kebab(key).replaceAll('-', '_');
}

/** `lora-alpha`, `lora_alpha` -> `loraAlpha`. */
export function camel(name: string): string {
  return name.replace(/[-_](.)/g, (_, letter: string) => letter.toUpperCase());
}

/**
 * Checks the values of a configuration file. Keys are the flags' names without dashes in front; transformers' and PEFT's
 * spelling with underscores is the same key.
 * @throws ArgumentError naming file, key and, for a key that does not exist, the one most like it
 */
export function checkConfig<T extends OptionTable>(
  table: T,
  config: Readonly<Record<string, unknown>>,
  path: string,
): OptionValues<T> {
  const values: Record<string, unknown> = {};
  const allowed = Object.keys(table).filter((key) => !table[key]?.commandLineOnly);
  for (const [name, value] of Object.entries(config)) {
    const key = camel(name);
    if (!allowed.includes(key)) {
      throw new ArgumentError(
        `${path}: unknown option "${name}"${nearest(name, allowed.map(kebab))}`,
      );
    }
    if (Object.hasOwn(values, key)) {
      throw new ArgumentError(`${path}: "${kebab(key)}" is given in two spellings`);
    }
    if (value === null) continue; // "key:" without a value in YAML
    values[key] = check(table, key, value, `${path}: ${name}`);
  }
  return values as OptionValues<T>;
}

/**
 * Checks the command line's values: text of each flag (true for a switch), by camel-case key.
 * @throws ArgumentError naming the flag
 */
export function checkFlags<T extends OptionTable>(
  table: T,
  flags: Readonly<Record<string, string | boolean>>,
): OptionValues<T> {
  const values: Record<string, unknown> = {};
  for (const [key, given] of Object.entries(flags)) {
    const value = typeof given === 'string' ? table[key]?.type.parse(given) : given;
    values[key] = check(table, key, value, `--${kebab(key)}`);
  }
  return values as OptionValues<T>;
}

/** @throws ArgumentError naming the first required option that is missing */
export function requireAll(table: OptionTable, values: Readonly<Record<string, unknown>>): void {
  for (const [key, row] of Object.entries(table)) {
    if (row.required && values[key] === undefined) {
      throw new ArgumentError(`--${kebab(key)} is required (${row.help})`);
    }
  }
}

/** Values by kebab-case key, as a configuration file would hold them. */
export function toConfig(values: Readonly<Record<string, unknown>>): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(values)
      .filter(([, value]) => value !== undefined)
      .map(([key, value]) => [kebab(key), value]),
  );
}

function check(table: OptionTable, key: string, value: unknown, where: string): unknown {
  const { type } = table[key] as OptionRow;
  const result = type.schema.safeParse(value);
  if (result.success) return result.data;
  throw new ArgumentError(`${where} must be ${type.wanted}, got ${JSON.stringify(value)}`);
}
