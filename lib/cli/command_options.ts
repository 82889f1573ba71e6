/** Option tables on commander's commands: each option becomes a flag, and the flags' values are checked. */
import { type Command, Option as Flag } from 'commander';
import { METHODS } from '../adapters/methods/registry.ts';
import { ArgumentError } from '../errors.ts';
import {
  complaint,
  defaultOf,
  helpOf,
  kebab,
  type Option,
  type OptionTable,
  type ValuesOf,
} from '../options/option.ts';
import { TASK_NAMES } from '../tasks/list.ts';
import { readConfigFile } from './config_file.ts';
import { checkConfig, checkFlags, flagOf, requireAll } from './option_table.ts';
import type { RunAction } from './program.ts';

interface TableOptions {
  /** Whether the command has --config FILE. */
  config?: boolean;
}

/** Adds a flag for every option; a switch also gets one that switches it off (`--no-packing`), to override a file. */
export function addOptions(
  command: Command,
  table: OptionTable,
  { config = false }: TableOptions = {},
): void {
  if (config) {
    command.option('--config <file>', 'options from a YAML or JSON file; flags win over it');
  }
  for (const [key, option] of Object.entries(table)) {
    for (const flag of flagsOf(key, option)) command.addOption(flag);
  }
}

/** Gives a command its flags, and runs `action` with what they are set to. */
export function runWithOptions<T extends OptionTable>(
  command: Command,
  table: T,
  run: RunAction,
  action: (settings: ValuesOf<T>) => Promise<number>,
): void {
  addOptions(command, table);
  command.action(
    run(table, async (_: unknown, self: Command) => action(await readOptions(self, table))),
  );
}

function flagsOf(key: string, option: Option): Flag[] {
  const { helpOff, group, placeholder, choices } = option;
  const help = helpOf(option, flagOf);
  const name = kebab(key);
  const heading = `${group}:`;
  if (placeholder === null) {
    const on = defaultOf(option) === true;
    return [
      new Flag(`--${name}`, help).helpGroup(heading).hideHelp(on),
      new Flag(`--no-${name}`, helpOff ?? `not: ${option.help}`).helpGroup(heading).hideHelp(!on),
    ];
  }
  const among = choices ? `; one of ${choices.join(', ')}` : '';
  const text = `${help}${among}${hint(key, option)}`;
  const flag = new Flag(`--${name} <${placeholder}>`, text).helpGroup(heading);
  return [
    option.fromTexts === undefined
      ? flag
      : flag.argParser<string[]>((given, before = []) => [...before, given]),
  ];
}

/** The default for the help page, `(default: ...)`: that of language models, followed by those of tasks where it differs. */
function hint(key: string, option: Option): string {
  if (option.required) return ' (required)';
  const standard = shownDefault(key, option);
  if (!isShown(standard)) return '';
  const others = TASK_NAMES.filter((task) => defaultOf(option, { task }) !== standard).map(
    (task) => `; of ${task} ${defaultOf(option, { task })}`,
  );
  return ` (default: ${standard}${others.join('')})`;
}

/** Options whose default depends on the preset of the chosen method. */
const kPresetOptions = new Set(
  Object.values(METHODS).flatMap(({ adapter, optimization = {}, regularizers = {} }) => [
    ...Object.keys(adapter ?? {}),
    ...Object.keys(optimization),
    ...Object.values(regularizers).flatMap((weights) => Object.keys(weights)),
  ]),
);

/** The default of an option if it is the same for every method, else undefined. */
function shownDefault(key: string, option: Option): unknown {
  return kPresetOptions.has(key) ? undefined : (defaultOf(option) ?? undefined);
}

/** The defaults of all options of a table, by name; undefined for those that depend on the method. */
export function shownDefaults(table: OptionTable): Record<string, unknown> {
  return Object.fromEntries(
    Object.entries(table).map(([key, option]) => [key, shownDefault(key, option)]),
  );
}

/**
 * The values of a parsed command, where a flag takes precedence over the configuration file.
 * @throws ArgumentError naming the flag or key that is wrong or missing
 */
export async function readOptions<T extends OptionTable>(
  command: Command,
  table: T,
): Promise<ValuesOf<T>> {
  const flags: Record<string, string | boolean | string[]> = {};
  for (const key of Object.keys(table)) {
    if (command.getOptionValueSource(key) === 'cli') flags[key] = command.getOptionValue(key);
  }
  const given = checkFlags(table, flags);
  const path = command.getOptionValue('config') as string | undefined;
  if (path === '') throw new ArgumentError(`--config ${complaint({ wanted: 'a path' }, path)}`);
  const reading = { table, flags: given };
  const file =
    path === undefined ? {} : checkConfig(table, await readConfigFile(path, reading), path);
  const values = { ...file, ...given } as ValuesOf<T>;
  requireAll(table, values);
  return values;
}

/** The options of a parsed command that its configuration file gives. */
export function keysOfFile(command: Command, values: object): ReadonlySet<string> {
  return new Set(Object.keys(values).filter((key) => command.getOptionValueSource(key) !== 'cli'));
}

function isShown(value: unknown): boolean {
  return typeof value === 'number' || (typeof value === 'string' && value !== '');
}
