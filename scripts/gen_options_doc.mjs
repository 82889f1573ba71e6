// Writes the tables of options into docs/command-line.md, from the commands of the built library (dist). `--check` only
// compares, and fails when they are stale.
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';
import { Command } from 'commander';
import { inRoot, main, SetupError } from './support/shell.mjs';

const kBegin = '<!-- options: written by npm run gen:options -->';
const kEnd = '<!-- /options -->';

const cell = (text) => text.replaceAll('|', '\\|').replaceAll('<', '\\<').replaceAll('*', '\\*');

/** One command's options as its help shows them, a table for each group. */
function section(command) {
  const groups = new Map();
  for (const { flags, description, hidden, helpGroupHeading } of command.options) {
    if (hidden) continue;
    const group = (helpGroupHeading ?? '').replace(/:$/, '');
    const row = `| \`${flags.replaceAll('|', '\\|')}\` | ${cell(description)} |`;
    groups.set(group, [...(groups.get(group) ?? []), row]);
  }
  const tables = [...groups].map(([group, rows]) =>
    [`| ${group || 'Every run'} | |`, '| --- | --- |', ...rows].join('\n'),
  );
  return [`### balora ${command.name()}`, ...tables].join('\n\n');
}

await main(async ([flag]) => {
  const built = inRoot('dist', 'cli', 'commands.js');
  if (!existsSync(built)) throw new SetupError('dist is not built: run npm run build');
  const { kCommands } = await import(pathToFileURL(built).href);
  const program = new Command('balora');
  for (const addCommand of kCommands) addCommand(program, process, (action) => action);
  const target = inRoot('docs', 'command-line.md');
  const before = readFileSync(target, 'utf8');
  const [begin, end] = [before.indexOf(kBegin), before.indexOf(kEnd)];
  if (begin < 0 || end < begin) throw new SetupError(`${target} lacks ${kBegin} and ${kEnd}`);
  const head = before.slice(0, begin + kBegin.length);
  const text = `${head}\n\n${program.commands.map(section).join('\n\n')}\n\n${before.slice(end)}`;
  if (flag !== '--check') {
    writeFileSync(target, text);
  } else if (text !== before) {
    throw new SetupError('the options in docs/command-line.md are stale: run npm run gen:options');
  }
});
