/**
 * Values of options from the command line and from a configuration file, the command line first. An option that neither of them
 * gives stays undefined, and its declared default applies.
 */
import { ArgumentError } from '../errors.ts';
import { hintFor } from '../options/call.ts';
import { text } from '../options/kinds.ts';
import {
  camel,
  checkFileValue,
  checkValue,
  kebab,
  type Option,
  type OptionTable,
  optionCalled,
  spellings,
  type ValuesOf,
} from '../options/option.ts';
import type { Spelling } from '../phrase.ts';

/** The key of a configuration file that names a JSON schema for editors. */
const kSchemaKey = '$schema';
const kSchemaOption = text({ default: null, help: 'the JSON schema of the file' });

/** The options of a table that have a flag; those marked as only for programs have none. */
export function withFlags<T extends OptionTable>(table: T): T {
  const entries = Object.entries(table).filter(([, { only }]) => only !== 'library');
  return Object.fromEntries(entries) as T;
}

/** The options that may stand in a configuration file. */
export function fileOptions(table: OptionTable): Record<string, Option> {
  return Object.fromEntries(Object.entries(table).filter(([, { only }]) => only === undefined));
}

/**
 * Checks the values of a configuration file. Keys are the flags' names without the leading dashes; the spelling with
 * underscores, as in transformers and PEFT, and that of the library are accepted as well. The JSON schema of `balora schema` accepts
 * the same files, but for a key in two spellings, which only this check refuses.
 * @throws ArgumentError naming file and key; for an unknown key it suggests the option that goes by that name elsewhere, or the
 *   most similar one
 */
export function checkConfig<T extends OptionTable>(
  table: T,
  config: Readonly<Record<string, unknown>>,
  path: string,
): ValuesOf<T> {
  const values: Record<string, unknown> = {};
  const allowed = fileOptions(table);
  for (const [name, given] of Object.entries(config)) {
    if (name === kSchemaKey) {
      checkValue(`${path}: ${name}`, kSchemaOption, given);
      continue;
    }
    const key = camel(name);
    const option = Object.hasOwn(allowed, key) ? allowed[key] : undefined;
    if (option === undefined || !spellings(key).includes(name)) {
      const hint = hintFor(name, allowed, kebab) || '; balora train --help lists the options';
      throw new ArgumentError(`${path}: unknown option "${name}"${hint}`);
    }
    if (Object.hasOwn(values, key)) {
      throw new ArgumentError(
        `${path}: "${kebab(key)}" is given in two spellings; keep one of them`,
      );
    }
    if (given === null) continue; // In YAML, "key:" without a value reads as null and counts as not given.
    values[key] = checkFileValue(`${path}: ${name}`, option, given);
  }
  return values as ValuesOf<T>;
}

/**
 * Checks the values of the command line, by camel-case key: the text of each flag, true for a switch, and a list for a flag that may
 * be repeated.
 * @throws ArgumentError naming the flag
 */
export function checkFlags<T extends OptionTable>(
  table: T,
  flags: Readonly<Record<string, string | boolean | readonly string[]>>,
): ValuesOf<T> {
  const values = Object.entries(flags).map(([key, given]) => {
    const option = table[key] as Option;
    return [key, checkValue(flagOf(key), option, fromFlag(option, given))];
  });
  return Object.fromEntries(values) as ValuesOf<T>;
}

/** The value that the text of a flag stands for, or the texts of one that was repeated. */
function fromFlag(option: Option, given: string | boolean | readonly string[]): unknown {
  if (typeof given === 'boolean') return given;
  return typeof given === 'string' ? option.fromText(given) : option.fromTexts?.(given);
}

/** The flag of an option's key: `learningRate` becomes `--learning-rate`. */
export function flagOf(key: string): string {
  return `--${kebab(key)}`;
}

/**
 * The spelling of a command's options: by their flags. Other options, and names that the caller has written himself, stay as they are.
 * An option that goes by another name in the library has that of the command.
 */
export function flagsIn(table: OptionTable): Spelling {
  return ({ option: name, text, value }) => {
    const key = Object.hasOwn(table, name) ? name : optionCalled(name, table);
    if (key === null || (value === undefined && text !== name)) return text;
    const flag = flagOf(key);
    const isSwitch = typeof value === 'boolean';
    if (value === undefined || isSwitch !== (table[key]?.placeholder === null))
      return text.replace(name, flag);
    if (isSwitch) return value ? flag : flagOf(`no-${key}`);
    return `${flag} ${Array.isArray(value) ? value.join(',') : value}`;
  };
}

/**
 * Checks that every required option has a value.
 * @throws ArgumentError naming the first required option that is missing
 */
export function requireAll(table: OptionTable, values: Readonly<Record<string, unknown>>): void {
  for (const [key, { required, help }] of Object.entries(table)) {
    if (required && values[key] === undefined) {
      throw new ArgumentError(`${flagOf(key)} is required (${help})`);
    }
  }
}

/** A list of names, where a single text becomes a list of one. */
export function listOf(value: string | string[] | undefined): string[] | undefined {
  return typeof value === 'string' ? [value] : value;
}

/** A copy of the object with those of the given keys that have a value. */
export function pick<T extends object, const K extends keyof T>(
  from: T,
  keys: readonly K[],
): Pick<T, K> {
  return Object.fromEntries(
    keys.filter((key) => from[key] !== undefined).map((key) => [key, from[key]]),
  ) as Pick<T, K>;
}
