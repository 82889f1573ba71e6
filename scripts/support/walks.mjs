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
 * @returns for each its op (the name in the heading's code), the files of its table in order, and the header of another family at which
 *   it ends, which is the last of them
 */
export function readWalks(text) {
  return text
    .split(/^## /m)
    .slice(1)
    .map((section) => {
      const op = /`(\w+)`/.exec(section.split('\n')[0])[1];
      const files = Array.from(section.matchAll(/^\| `([\w./]+)` \|/gm), ([, file]) => file);
      return { op, files, end: files.at(-1) };
    });
}

/** The folders whose files a walk has to name: those of the files that it names, but for passages and the header at its end. */
export function familiesOf({ files, end }) {
  const own = files.filter((file) => file.startsWith('native/') && file !== end);
  return [...new Set(own.map((file) => dirname(file)))].filter((at) => !kPassages.includes(at));
}

/** The files below native/ in which an op executed a line, by the addon of build/coverage. */
export function filesOf(op) {
  const build = inRoot('build', 'coverage');
  const below = (ending) =>
    readdirSync(build, { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith(ending))
      .map((name) => join(build, name));
  for (const path of below('.gcda')) rmSync(path);
  const env = { ...process.env, BALORA_BINARY: join(build, 'balora.node') };
  run(process.execPath, [inRoot('test', 'walks', 'walk.mjs'), op], { env });
  const cwd = mkdtempSync(join(tmpdir(), 'balora-walks-'));
  try {
    const counts = run('gcov', ['--json-format', '--stdout', ...below('.gcda')], { cwd });
    const files = counts
      .split('\n')
      .filter(Boolean)
      .map((line) => JSON.parse(line))
      .flatMap(({ current_working_directory: at, files: some }) =>
        some
          .filter(({ lines }) => lines.some(({ count }) => count > 0))
          .map(({ file }) => relative(root, resolve(at, file))),
      );
    return [...new Set(files)].filter((file) => /^native\/.*\.(cc|h)$/.test(file)).sort();
  } finally {
    rmSync(cwd, { recursive: true });
  }
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
