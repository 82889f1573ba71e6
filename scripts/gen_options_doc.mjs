// Writes the tables of options into docs/command-line.md, from the commands of the built library (dist), and those of
// `npm run bench` into docs/benchmarking.md. `--check` only compares, and fails when they are stale.
import { readFileSync, writeFileSync } from 'node:fs';
import { Command } from 'commander';
import { ensureBench } from './support/bench_build.mjs';
import { inRoot, main, SetupError } from './support/shell.mjs';

const kBegin = '<!-- options: written by npm run gen:options -->';
const kEnd = '<!-- /options -->';

const cell = (text) => text.replaceAll('|', '\\|').replaceAll('<', '\\<').replaceAll('*', '\\*');

/** One command's options as its help shows them, a table for each group. */
function section(program, command) {
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
  return [`### ${program.name()} ${command.name()}`, ...tables].join('\n\n');
}

/** Writes, or compares, the sections of a page's commands. */
function fill(page, commands, check) {
  const program = new Command('balora');
  for (const addCommand of commands) addCommand(program, process, (action) => action);
  const target = inRoot(page);
  const before = readFileSync(target, 'utf8');
  const [begin, end] = [before.indexOf(kBegin), before.indexOf(kEnd)];
  if (begin < 0 || end < begin) {
    throw new SetupError(
      `${target} lacks ${kBegin} and ${kEnd}: put these lines around the tables`,
    );
  }
  const head = before.slice(0, begin + kBegin.length);
  const sections = program.commands
    .filter(({ options }) => options.length > 0)
    .map((command) => section(program, command));
  const text = `${head}\n\n${sections.join('\n\n')}\n\n${before.slice(end)}`;
  if (!check) {
    writeFileSync(target, text);
  } else if (text !== before) {
    throw new SetupError(`the options in ${page} are stale: run npm run gen:options`);
  }
}

await main(async ([flag]) => {
  await ensureBench();
  const { kCommands } = await import('../dist/cli/commands.js');
  const { addBench } = await import('../build/harness/command.js');
  const check = flag === '--check';
  fill('docs/command-line.md', kCommands, check);
  fill('docs/benchmarking.md', [addBench], check);
});
