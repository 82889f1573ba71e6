/** The options that others need to have an effect, each declared in the entry of the option that needs it. */
import { isDeepStrictEqual } from 'node:util';
import { shown } from '../shown.ts';
import {
  type Check,
  type DefaultContext,
  defaultOf,
  type OptionTable,
  type Requirement,
  type Values,
} from './option.ts';

/** The option `key` has one of these values. */
export function is(key: string, ...wanted: readonly [string, ...string[]]): Requirement {
  const words = wanted.join(', ').replace(/, ([^,]*)$/, ' or $1');
  return {
    holds: (values) => wanted.includes(`${values[key]}`),
    needs: (name) => `${name(key)} ${words}`,
  };
}

/** The option `key` has a value. */
export function given(key: string): Requirement {
  return { holds: (values) => (values[key] ?? null) !== null, needs: (name) => name(key) };
}

/** One of these options is above 0. */
export function anyAbove0(...keys: readonly string[]): Requirement {
  return {
    holds: (values) => keys.some((key) => (values[key] as number) > 0),
    needs: (name) => `${keys.map(name).join(' or ')} above 0`,
  };
}

/**
 * A message for each option of a table that differs from its default and lacks what it needs.
 * @param ofAll what every option of the table needs
 * @param values the values of all options of the run, and of what options may need beside them
 */
export function unmet(
  table: OptionTable,
  values: Values,
  context?: DefaultContext,
  ...ofAll: readonly Requirement[]
): string[] {
  return Object.entries(table).flatMap(([key, option]) => {
    const value = values[key];
    const idle = [undefined, defaultOf(option, context), option.off];
    if (idle.some((one) => isDeepStrictEqual(value, one))) return [];
    const missing = [...ofAll, ...(option.requires ?? [])].find(({ holds }) => !holds(values));
    if (missing === undefined) return [];
    return [`${key} ${shown(value)} has no effect: it needs ${missing.needs(String)}`];
  });
}

/**
 * A check that refuses an option without what it needs, where a run that goes on would not be the one that was asked for.
 * @param why the end of the message: `, the folder of the run`
 */
export function needing(key: string, { holds, needs }: Requirement, why = ''): Check<object> {
  return {
    when: (values) =>
      ![undefined, null, false].includes((values as Values)[key] as null) &&
      !holds(values as Values),
    message: (_, name) => `${name(key)} needs ${needs(name)}${why}`,
  };
}
