/**
 * Configuration files: YAML or JSON, a flat object of options, or the run/config.json of an earlier run, whose settings are those of
 * the new one.
 */
import { isDeepStrictEqual } from 'node:util';
import { METHODS } from '../adapters/methods/registry.ts';
import { FormatError } from '../errors.ts';
import { readYamlFile } from '../io/yaml_file.ts';
import { camel, isObject, type OptionTable, type Values } from '../options/option.ts';
import { shown } from '../shown.ts';
import { TASKS } from '../tasks/list.ts';
import { RUN_CONFIG_FORMAT, type RunConfig, runConfigOf } from '../train/run_config.ts';

/** The options of the command that reads a file, and the values of its flags. */
interface Reading {
  readonly table: OptionTable;
  readonly flags: Values;
}

/**
 * Reads a configuration file.
 * @throws FormatError naming file, line and column, or as readText does
 */
export async function readConfigFile(path: string, reading: Reading): Promise<Values> {
  const { values } = await readYamlFile(path, {
    noun: 'configuration',
    example: 'learning-rate: 2e-5',
  });
  const isRecord = isObject(values.identity);
  if (isRecord && values.format === undefined) return settingsOfFirst(path, values);
  return isRecord ? settingsOf(runConfigIn(path, values), reading) : values;
}

/** The settings in a run/config.json of version 0.2.0, whose command is a configuration file. */
function settingsOfFirst(path: string, { command }: Values): Values {
  if (isObject(command)) return command;
  throw new FormatError(
    `${path} is of a run that a program made, and has no settings of a command`,
    {
      path,
      advice: 'write the options into a configuration file',
    },
  );
}

/** The record of a run in its run/config.json. @throws FormatError for another format */
function runConfigIn(path: string, file: Values): RunConfig {
  const { format, task, method, values, source } = file;
  if (format !== RUN_CONFIG_FORMAT) {
    throw new FormatError(
      `${path}: format ${shown(format)} is not known, only those up to ${RUN_CONFIG_FORMAT}`,
      { path, advice: 'use the version of balora that wrote it' },
    );
  }
  const isKnown = (list: object, name: unknown) =>
    typeof name === 'string' && Object.hasOwn(list, name);
  const isWhole = isObject(values) && isObject(source) && isKnown(TASKS, task);
  if (isWhole && (method === null || isKnown(METHODS, method))) return file as never;
  throw new FormatError(`${path}: its task, method, values and source are not those of a run`, {
    path,
    advice: 'take the file as the run wrote it',
  });
}

/** How a command began, which is no setting of its run. */
const kOfCommand = ['overwrite', 'resume'];

/**
 * The settings of a recorded run for another one: those that were given, and the defaults of then where they are others now. The
 * defaults are those of now where a flag gives another task, method or model.
 */
function settingsOf(
  { task, method, values, source }: RunConfig,
  { table, flags }: Reading,
): Values {
  const recorded = Object.entries(values).filter(([name]) => !kOfCommand.includes(name));
  const isGiven = (name: string) => source[name] === 'given' || source[name] === 'file';
  const given = recorded.filter(([name]) => isGiven(name));
  const then: Values = { task, method, model: values.model };
  const isOther = (key: string) => flags[key] !== undefined && flags[key] !== then[key];
  if (Object.keys(then).some(isOther)) return Object.fromEntries(given);
  const named = Object.fromEntries(given.map(([name, value]) => [camel(name), value]));
  const now = runConfigOf(table, named, { task, method }).values;
  const changed = recorded.filter(
    ([name, value]) =>
      !isGiven(name) && source[name] !== 'data' && !isDeepStrictEqual(value, now[name]),
  );
  return Object.fromEntries([...given, ...changed]);
}
