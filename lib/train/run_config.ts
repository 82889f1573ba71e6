/**
 * The settings of a run as run/config.json records them: whole, under their names in a configuration file, each with its origin, so
 * that the file can be the configuration of another run.
 */
import { METHODS } from '../adapters/methods/registry.ts';
import { defaultOf, kebab, type OptionTable, type Values } from '../options/option.ts';
import type { TaskName } from '../tasks/list.ts';
import { regularizersOf, withOptimizationOf } from './methods.ts';
import type { MethodName } from './types.ts';

/** The version of run/config.json; that of the files of 0.2.0, which had no number, was 1. */
export const RUN_CONFIG_FORMAT = 2;

/** The origin of a value: the caller, a configuration file, the method, a default of the task, the data, or the default of all. */
export type Origin = 'given' | 'file' | 'method' | 'task' | 'data' | 'default';

/** The settings of a run, by their names in a configuration file, and the origin of each. */
export interface RunConfig {
  readonly task: TaskName;
  readonly method: MethodName | null;
  readonly values: Values;
  readonly source: Readonly<Record<string, Origin>>;
}

/** The circumstances of a run that defaults depend on. */
interface Circumstances extends Pick<RunConfig, 'task' | 'method'> {
  /** Options whose values come from a configuration file. Default: none. */
  readonly fromFile?: ReadonlySet<string>;
}

/** Records the options of a table: those that were given, and the others as the method and their defaults have them. */
export function runConfigOf(
  table: OptionTable,
  given: Values,
  { task, method, fromFile = new Set() }: Circumstances,
): RunConfig {
  const preset: Values = {
    ...(method !== null && METHODS[method].adapter),
    ...withOptimizationOf(method, given),
    ...regularizersOf(method, { task, given: {} }),
  };
  const values: Record<string, unknown> = {};
  const source: Record<string, Origin> = {};
  const record = (key: string, value: unknown, origin: Origin): void => {
    const name = kebab(key);
    values[name] = value === null ? 'none' : value;
    source[name] = origin;
  };
  for (const [key, option] of Object.entries(table)) {
    const standard = defaultOf(option, { task });
    if (given[key] !== undefined) record(key, given[key], fromFile.has(key) ? 'file' : 'given');
    else if (preset[key] !== undefined) record(key, preset[key], 'method');
    else if ((standard ?? null) !== null) {
      record(key, standard, standard === defaultOf(option) ? 'default' : 'task');
    }
  }
  return { task, method, values, source };
}

/** Adds what the data say where the caller did not say it. */
export function withDataValues({ values, source, ...run }: RunConfig, known: Values): RunConfig {
  const found = Object.entries(known)
    .filter(([, value]) => value !== undefined)
    .map(([key, value]) => [kebab(key), value] as const);
  const origins = found.map(([name]) => [name, source[name] ?? 'data'] as const);
  return {
    ...run,
    values: { ...values, ...Object.fromEntries(found) },
    source: { ...source, ...Object.fromEntries(origins) },
  };
}
