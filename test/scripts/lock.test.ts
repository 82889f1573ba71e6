// The lock of the set-up: one process at a time has it, a waiting one prints a line, and that of a dead process does not count.
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { eventually } from '../support/eventually.ts';

interface Module {
  withLock<T>(path: string, work: () => T | Promise<T>, options?: { pollMs?: number }): Promise<T>;
}
// The script has no types.
const kScript = new URL('../../scripts/support/lock.mjs', import.meta.url).href;
const { withLock } = (await import(kScript)) as Module;

let folder = '';
const children: ChildProcess[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-lock-'));
});
afterEach(() => {
  vi.restoreAllMocks();
  for (const child of children.splice(0)) child.kill('SIGKILL');
  rmSync(folder, { recursive: true, force: true });
});

/** A process that takes the lock, writes "in", keeps the lock for some milliseconds, and writes "out". */
function holder(ms: number): ChildProcess {
  const source = `import { withLock } from ${JSON.stringify(kScript)};
    import { appendFileSync } from 'node:fs';
    await withLock(${JSON.stringify(join(folder, 'lock'))}, async () => {
      appendFileSync(${JSON.stringify(join(folder, 'log'))}, 'in\\n');
      await new Promise((resolve) => setTimeout(resolve, ${ms}));
      appendFileSync(${JSON.stringify(join(folder, 'log'))}, 'out\\n');
    }, { pollMs: 10 });`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', source], { stdio: 'ignore' });
  children.push(child);
  return child;
}
const ended = (child: ChildProcess): Promise<unknown> =>
  new Promise((resolve) => child.once('close', resolve));
const log = (): string[] => {
  const file = join(folder, 'log');
  return existsSync(file) ? readFileSync(file, 'utf8').trim().split('\n') : [];
};

it('lets one process in at a time, and leaves no files behind', async () => {
  await Promise.all([holder(50), holder(50), holder(50), holder(50)].map(ended));
  expect(log()).toEqual(['in', 'out', 'in', 'out', 'in', 'out', 'in', 'out']);
  expect(readdirSync(folder)).toEqual(['log']);
});

it('prints once which process it waits for', async () => {
  const child = holder(3000); // long enough to wait even on a busy machine
  await eventually(() => expect(log()).toEqual(['in']));
  const write = vi.spyOn(process.stdout, 'write').mockReturnValue(true);
  await withLock(join(folder, 'lock'), () => undefined, { pollMs: 20 });
  const said = write.mock.calls.map(([text]) => String(text));
  expect(said).toEqual([
    `Another set-up (process ${child.pid}) works in this folder: waiting for it.\n`,
  ]);
  expect(log()).toEqual(['in', 'out']);
});

it('takes the lock of a process that was killed, also where another one has its number', async () => {
  const child = holder(60_000);
  await eventually(() => expect(log()).toEqual(['in']));
  child.kill('SIGKILL');
  await ended(child);
  const path = join(folder, 'lock');
  expect(existsSync(path)).toBe(true);
  expect(await withLock(path, () => 'ours')).toBe('ours');
  writeFileSync(path, `${process.ppid} 1\n`); // the process is alive, but was started at another time
  expect(await withLock(path, () => 'ours')).toBe('ours');
  writeFileSync(path, ''); // a full disk left the file empty
  expect(await withLock(path, () => 'ours')).toBe('ours');
  expect(readdirSync(folder)).toEqual(['log']);
});

it('releases the lock where the work fails', async () => {
  const path = join(folder, 'lock');
  const failing = withLock(path, () => Promise.reject(new Error('no')));
  await expect(failing).rejects.toThrow('no');
  expect(existsSync(path)).toBe(false);
});
