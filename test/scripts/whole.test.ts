// Folders that take long to make are complete or do not exist, and no process writes to them after an interruption.
import { type ChildProcess, spawn } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';

interface Module {
  makeWhole(
    folder: string,
    name: string,
    work: (part: string, signal: AbortSignal) => Promise<void>,
  ): Promise<void>;
}
// The script has no types.
const kScript = new URL('../../scripts/support/whole.mjs', import.meta.url).href;
const { makeWhole } = (await import(kScript)) as Module;

let folder = '';
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-whole-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const made = (): string => join(folder, 'made');

async function fill(part: string): Promise<void> {
  mkdirSync(join(part, 'result'));
  writeFileSync(join(part, 'result', 'file'), 'whole');
  writeFileSync(join(part, 'other'), '');
}

it('keeps only the result', async () => {
  await makeWhole(made(), 'result', fill);
  expect(readdirSync(folder)).toEqual(['made']);
  expect(readFileSync(join(made(), 'file'), 'utf8')).toBe('whole');
});

it('leaves no files where the work fails', async () => {
  const work = async (part: string): Promise<void> => {
    await fill(part);
    throw new Error('no compiler');
  };
  await expect(makeWhole(made(), 'result', work)).rejects.toThrow('no compiler');
  expect(readdirSync(folder)).toEqual([]);
});

it('starts again after a process that was killed', async () => {
  mkdirSync(`${made()}.part/result`, { recursive: true });
  writeFileSync(`${made()}.part/result/old`, '');
  await makeWhole(made(), 'result', fill);
  expect(readdirSync(made())).toEqual(['file']);
});

/** A process whose work is a build tool with a compiler as its child, which keeps writing files into the folder. */
function builder(): ChildProcess {
  const compiler =
    'i=0; while :; do i=$((i+1)); mkdir -p "$0/objects" && echo > "$0/objects/$i"; done';
  const source = `import { endGroup, makeWhole } from ${JSON.stringify(kScript)};
    import { spawn } from 'node:child_process';
    await makeWhole(${JSON.stringify(made())}, 'result', (part, signal) => {
      const tool = spawn('sh', ['-c', 'sh -c "$1" "$0" & echo $! > "$2"; wait', part, ${JSON.stringify(compiler)},
        ${JSON.stringify(join(folder, 'compiler'))}], { detached: true, stdio: 'ignore' });
      signal.addEventListener('abort', () => endGroup(tool));
      return new Promise(() => setInterval(() => {}, 1000));
    });`;
  return spawn(process.execPath, ['--input-type=module', '-e', source], { stdio: 'inherit' });
}

async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await new Promise((resolve) => setTimeout(resolve, 20));
}

const lives = (pid: number): boolean => {
  try {
    return !/^\d+ \(.*\) Z/.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return false;
  }
};

it.each(['SIGINT', 'SIGTERM', 'SIGHUP'] as const)(
  'leaves nothing and nobody after %s',
  async (signal) => {
    const child = builder();
    const ended = new Promise((resolve) => child.once('close', resolve));
    await until(() => existsSync(join(`${made()}.part`, 'objects', '3')));
    child.kill(signal);
    expect(await ended).toBe(130);
    const compiler = Number(readFileSync(join(folder, 'compiler'), 'utf8'));
    await until(() => !lives(compiler));
    expect(readdirSync(folder)).toEqual(['compiler']);
  },
);
