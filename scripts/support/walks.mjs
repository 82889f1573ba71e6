// The check that docs/walks.md lists each file in which an op of it executes a line: test/walks/walk.mjs runs the op by an addon that
// counts lines, and gcov reads the counts.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, relative, resolve } from 'node:path';
import { inRoot, root } from './shell.mjs';

/** Folders in which a walk passes by others' files: one of them belongs to no family. */
const kPassages = ['native/binding', 'native/kernels/operands'];

/**
 * The walks of docs/walks.md.
 * @param text the page, whose headings name an op and the implementation that the walk follows: ## TITLE: `op` by `implementation`
 * @returns for each `op`, `by`, the files of its table in order, and the header of another family at which it ends, the last of them
 */
export function readWalks(text = readFileSync(inRoot('docs', 'walks.md'), 'utf8')) {
  return text
    .split(/^## /m)
    .slice(1)
    .map((section) => {
      const [, op, by] = /`(\w+)` by `([\w/]+)`/.exec(section.split('\n')[0]);
      const files = Array.from(section.matchAll(/^\| `([\w./]+)` \|/gm), ([, file]) => file);
      return { op, by, files, end: files.at(-1) };
    });
}

/** The folders whose files a walk has to name: those of the files that it names, but for passages and the header at its end. */
export function familiesOf({ files, end }) {
  const own = files.filter((file) => file.startsWith('native/') && file !== end);
  return [...new Set(own.map((file) => dirname(file)))].filter((at) => !kPassages.includes(at));
}

const kBuild = inRoot('build', 'coverage');

/** The files of build/coverage that end so. */
const builtFiles = (ending) =>
  readdirSync(kBuild, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith(ending))
    .map((name) => join(kBuild, name));

/**
 * Runs a walk of test/walks/walk.mjs by the addon of build/coverage.
 * @param gcov the program that reads its counts
 * @returns the implementations that ran, and how often each line below native/ did, by `FILE:LINE`
 */
function countsOf(walk, gcov) {
  for (const path of builtFiles('.gcda')) rmSync(path);
  const env = { ...process.env, BALORA_BINARY: join(kBuild, 'balora.node') };
  const rows = run(process.execPath, [inRoot('test', 'walks', 'walk.mjs'), walk], { env });
  const cwd = mkdtempSync(join(tmpdir(), 'balora-walks-'));
  try {
    const text = run(gcov, ['--json-format', '--stdout', ...builtFiles('.gcda')], { cwd });
    const counts = new Map();
    for (const unit of text.split('\n').filter(Boolean)) {
      const { current_working_directory: at, files } = JSON.parse(unit);
      for (const { file, lines } of files) {
        const name = relative(root, resolve(at, file));
        if (!name.startsWith('native/')) continue;
        for (const { line_number: line, count } of lines) {
          counts.set(`${name}:${line}`, (counts.get(`${name}:${line}`) ?? 0) + count);
        }
      }
    }
    return { ran: JSON.parse(rows).map(({ implementation }) => implementation), counts };
  } finally {
    rmSync(cwd, { recursive: true });
  }
}

/**
 * Runs ops by the addon of build/coverage. Lines that a process without them executes as often, at its start, are left out.
 * @returns for each op { ran: the implementations that ran, executed: the files below native/ in which it executed a line }
 */
export function executedBy(ops, gcov) {
  const start = countsOf('nothing', gcov).counts;
  return ops.map((op) => {
    const { ran, counts } = countsOf(op, gcov);
    const lines = [...counts].filter(([line, count]) => count > (start.get(line) ?? 0));
    const files = new Set(lines.map(([line]) => line.slice(0, line.lastIndexOf(':'))));
    return { ran, executed: [...files].sort() };
  });
}

/** Files in which a walk's op executed a line, that are of its families and not in its list. */
export function missingFrom(walk, executed) {
  const families = familiesOf(walk);
  return executed.filter((file) => families.includes(dirname(file)) && !walk.files.includes(file));
}

/** The lines that a walk has to read: of all its files but the last, which is another family's. */
export const linesOf = ({ files, end }) =>
  files
    .filter((file) => file !== end)
    .reduce((sum, file) => sum + readFileSync(inRoot(file), 'utf8').split('\n').length - 1, 0);

function run(program, args, options) {
  const { status, stdout, stderr } = spawnSync(program, args, {
    ...{ encoding: 'utf8', maxBuffer: 1 << 28 },
    ...options,
  });
  if (status !== 0) throw new Error(`${program} ${args[0]} failed: ${stderr}`);
  return stdout;
}
