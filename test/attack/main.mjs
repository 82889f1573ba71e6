// The attack: random and damaged inputs for everything that reads a file, a name, an option or a number, in processes of their own.
// test/README.md says how to run it.
//
//   node test/attack/main.mjs [--seed N] [--minutes M] [--target NAME,...] [--first N] [--count N] [--lanes N] [--report FILE] [--list]
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { textTable } from '../../dist/cli/text_table.js';
import { attackAll } from './runner.mjs';
import { kTargets, loadTarget } from './targets.mjs';

const kReport = fileURLToPath(new URL('../../build/attack/report.json', import.meta.url));
const kMinutes = 4;

const { values } = parseArgs({
  options: {
    ...{ seed: { type: 'string' }, minutes: { type: 'string' }, target: { type: 'string' }, first: { type: 'string' } },
    ...{ count: { type: 'string' }, lanes: { type: 'string' }, report: { type: 'string' }, list: { type: 'boolean' } },
  },
});

/** A number among the arguments. */
function numberOf(name, otherwise) {
  if (values[name] === undefined) return otherwise;
  const value = Number(values[name]);
  if (values[name].trim() === '' || !(value >= 0)) throw new Error(`--${name} must be a number >= 0, got ${values[name]}`);
  return value;
}

const say = (line) => process.stdout.write(`${line}\n`);

function sayResults(results) {
  const rows = results
    .filter(({ missing }) => missing === null)
    .map(({ name, inputs, accepted, refused, findings, seconds }) => [
      ...[name, `${inputs} inputs`, `${accepted} accepted`, `${refused} refused`],
      ...[`${findings.length} findings`, `${seconds.toFixed(0)} s`],
    ]);
  if (rows.length > 0) say(`\n${textTable(rows, 'lrrrrr')}`);
  for (const { name, missing } of results) if (missing !== null) say(`left out: ${name}: ${missing}`);
  for (const { name, findings } of results) {
    for (const { kind, message, times, repeat, saved, stack } of findings) {
      const where = stack ? `\n${stack.split('\n').slice(1, 5).join('\n')}` : '';
      say(`\n${name}: ${kind}, ${times} times: ${message}${where}\n  repeat: ${repeat}\n  input: ${saved}`);
    }
  }
}

if (values.list) {
  for (const name of kTargets) say(`${name}: ${(await loadTarget(name)).what}`);
} else {
  const targets = values.target?.split(',') ?? kTargets;
  const unknown = targets.filter((name) => !kTargets.includes(name) && !name.endsWith('.mjs'));
  if (unknown.length > 0) throw new Error(`no target is called ${unknown.join(', ')}; there are ${kTargets.join(', ')}`);
  const seed = numberOf('seed', Date.now() % 1_000_000);
  const minutes = numberOf('minutes', values.count === undefined ? kMinutes : 600);
  say(`seed ${seed}, ${minutes} minutes, ${targets.length} targets`);
  const limits = { first: numberOf('first', 0), count: numberOf('count', Number.POSITIVE_INFINITY), lanes: numberOf('lanes') };
  const results = await attackAll({ targets, seed, minutes, say, ...limits });
  const { report = kReport } = values;
  mkdirSync(dirname(report), { recursive: true });
  writeFileSync(report, `${JSON.stringify({ seed, minutes, results }, null, 2)}\n`);
  sayResults(results);
  process.exitCode = results.some(({ findings }) => findings.length > 0) ? 1 : 0;
}
