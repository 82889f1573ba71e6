/** Arguments that the command line does not have: other commands, flags and values, and the advice about each. */
import type { Command } from 'commander';
import { ArgumentError } from '../errors.ts';
import { hintFor } from '../options/call.ts';
import { camel, kebab, type OptionTable } from '../options/option.ts';
import { oneLine, printable, shown } from '../shown.ts';

/** Commands, with their names in other programs. */
const kCommandsElsewhere: Readonly<Record<string, readonly string[]>> = {
  train: ['finetune', 'fine-tune', 'lora', 'sft', 'fit'],
  generate: ['run', 'infer', 'inference', 'predict', 'complete'],
  evaluate: ['eval', 'test', 'validate'],
  score: ['lm-eval', 'benchmark'],
  merge: ['fuse', 'merge-and-unload'],
  serve: ['server', 'api'],
  push: ['upload'],
};

/** Refuses a command that there is not, with the one that is meant. */
export function refuseCommand(name: string | undefined, { commands }: Command): void {
  if (name === undefined || name.startsWith('-') || name === 'help') return;
  const known = commands.map((command) => command.name());
  if (known.includes(name)) return;
  const table = known.map((one) => [one, { aliases: kCommandsElsewhere[one] }]);
  const hint = hintFor(name, Object.fromEntries(table), (one) => one);
  throw new ArgumentError(
    `unknown command ${shown(name)}${hint || '; balora --help lists the commands'}`,
  );
}

/**
 * Refuses what a command does not take, flags and values, with what is meant.
 * @param command one that was parsed with unknown options and excess arguments allowed
 * @param args of the program
 */
export function refuseOthers(command: Command, table: OptionTable, args: readonly string[]): void {
  const end = args.indexOf('--');
  const before = end < 0 ? args : args.slice(0, end);
  const unknown = command.args.find((arg) => /^--?[a-z]/i.test(arg) && before.includes(arg));
  if (unknown !== undefined) {
    const [, no = '', name = ''] = /^-+(no[-_])?([^=]*)/s.exec(unknown) ?? [];
    const hint = hintFor(name, table, (key) => `--${no && 'no-'}${kebab(key)}`);
    const flag = oneLine(unknown.replace(/=.*/s, ''));
    throw new ArgumentError(`unknown option ${flag}${hint || '; --help lists the options'}`);
  }
  const { registeredArguments: places } = command;
  const extra = command.args[places.length];
  if (extra === undefined || places.at(-1)?.variadic === true) return;
  throw new ArgumentError(`unexpected argument ${shown(extra)}; ${placeOf(extra, table, args)}`);
}

/** Advice about a value that no flag takes. */
function placeOf(extra: string, table: OptionTable, args: readonly string[]): string {
  const at = args.indexOf(extra);
  const start = args.slice(0, at).findLastIndex((arg) => arg.startsWith('--'));
  const flag = args[start] ?? '';
  const option = table[camel(flag.slice(2))];
  const next = args.findIndex((arg, i) => i > at && arg.startsWith('-'));
  const values = args.slice(start + 1, next < 0 ? args.length : next);
  if (option?.placeholder === null) return `${flag} takes no value; write ${flag} alone`;
  if (option?.placeholder?.includes(',')) return `write ${flag} ${values.join(',')}`;
  if (option?.fromTexts !== undefined) {
    return `write ${values.map((value) => `${flag} ${value}`).join(' ')}`;
  }
  const example = ['prompt', 'data', 'model'].find((key) => Object.hasOwn(table, key));
  const such = example === undefined ? '' : `, such as --${example} "${printable(extra)}"`;
  return `every value has a flag before it, and one of several words is in quotes${such}`;
}
