/** Option tables on commander's commands: flags in, checked values out. */
import { type Command, Option } from 'commander';
import { readConfigFile } from './config_file.ts';
import {
  checkConfig,
  checkFlags,
  kebab,
  type OptionTable,
  type OptionValues,
  requireAll,
} from './option_table.ts';

interface TableOptions {
  /** What holds where nothing is given, for the help: the library's own defaults. */
  defaults?: Readonly<Record<string, unknown>>;
  /** Offer --config FILE. */
  config?: boolean;
}

/** Adds a flag for every row; a switch can also be switched off (`--no-packing`), over a configuration file. */
export function addOptions(command: Command, table: OptionTable, options: TableOptions = {}): void {
  const { defaults = {}, config = false } = options;
  if (config) {
    command.option('--config <file>', 'options from a YAML or JSON file; flags win over it');
  }
  for (const [key, { type, help, helpOff, group, required }] of Object.entries(table)) {
    const name = kebab(key);
    const standard = defaults[key];
    const hint = required ? ' (required)' : isShown(standard) ? ` (default: ${standard})` : '';
    const choices = type.choices ? `: ${type.choices.join(', ')}` : '';
    if (type.placeholder !== null) {
      command.addOption(
        new Option(`--${name} <${type.placeholder}>`, `${help}${choices}${hint}`).helpGroup(
          `${group}:`,
        ),
      );
    } else {
      const on = standard === true;
      const yes = new Option(`--${name}`, help).helpGroup(`${group}:`).hideHelp(on);
      const no = new Option(`--no-${name}`, helpOff ?? `not: ${help}`)
        .helpGroup(`${group}:`)
        .hideHelp(!on);
      command.addOption(yes).addOption(no);
    }
  }
}

/**
 * The values of a parsed command: flags over the configuration file.
 * @throws ArgumentError naming the flag or key that is wrong or missing
 */
export async function readOptions<T extends OptionTable>(
  command: Command,
  table: T,
): Promise<OptionValues<T>> {
  const flags: Record<string, string | boolean> = {};
  for (const key of Object.keys(table)) {
    if (command.getOptionValueSource(key) === 'cli') flags[key] = command.getOptionValue(key);
  }
  const given = checkFlags(table, flags);
  const path = command.getOptionValue('config') as string | undefined;
  const file = path === undefined ? {} : checkConfig(table, await readConfigFile(path), path);
  const values = { ...file, ...given } as OptionValues<T>;
  requireAll(table, values);
  return values;
}

function isShown(value: unknown): boolean {
  return typeof value === 'number' || (typeof value === 'string' && value !== '');
}
