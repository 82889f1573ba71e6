// Work in a process of its own: its answers and errors, its ends by time, memory, a signal and with its parent.
import { spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { afterEach, describe, expect, it } from 'vitest';
import { FormatError } from '../../lib/errors.ts';
import { isRunning } from '../../lib/io/files.ts';
import { SideProcess } from '../../lib/io/side_process.ts';
import { runProgram } from '../support/child.ts';
import { kHangLimitMs } from '../support/limits.ts';

interface Echo {
  setup: unknown;
  pid: number;
  echo: unknown;
}

const kModule = '../test/io/programs/side_process.mjs';
const side = new SideProcess<{ do: string; value?: unknown }, Echo>({
  ...{ module: kModule, setup: { of: 'this test' }, heapMiB: 64 },
});
afterEach(() => side.end());

const onEnd = (why: string) => new Error(`ended for ${why}`);
const echo = (value: unknown) => side.ask({ do: 'echo', value }, { onEnd });

/** Whether a process runs: one that has ended, and whose end nobody has asked for yet, does not. */
function isAlive(pid: number): boolean {
  if (!isRunning(pid)) return false;
  try {
    return !/^State:\s*Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return process.platform !== 'linux';
  }
}

async function hasEnded(pid: number): Promise<boolean> {
  for (let i = 0; i < 100 && isAlive(pid); i++) await sleep(100);
  return !isAlive(pid);
}

describe('a side process', () => {
  it('answers requests one after the other, with values that JSON does not have', async () => {
    const values = ['a\ud800b', 2n ** 70n, new Int32Array([1, 2]), undefined, new Map([[1, 'x']])];
    const answers = await Promise.all(values.map(echo));
    expect(answers.map((answer) => answer.echo)).toEqual(values);
    expect(new Set(answers.map(({ pid }) => pid)).size).toBe(1);
    expect(answers[0]?.pid).not.toBe(process.pid);
    expect(answers[0]?.setup).toEqual({ of: 'this test' });
  });

  it('reports errors, those of the library with code and path, and goes on', async () => {
    const { pid } = await echo(1);
    const error = await side.ask({ do: 'format' }, { onEnd }).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(FormatError);
    expect(error).toMatchObject({ path: 'file', message: 'file: damaged; mend it' });
    await expect(side.ask({ do: 'fail' }, { onEnd })).rejects.toThrow(/^no good$/);
    expect((await echo(2)).pid).toBe(pid);
  });

  it.each([
    ['spin', 'time'],
    ['fill', 'memory'],
  ])('that would %s is ended for %s, and the next request has a new one', async (what, why) => {
    const { pid } = await echo(1);
    const limit = what === 'spin' ? { limitMs: 500 } : {};
    await expect(side.ask({ do: what }, { ...limit, onEnd })).rejects.toThrow(`ended for ${why}`);
    expect(await hasEnded(pid)).toBe(true);
    expect((await echo(2)).echo).toBe(2);
  });

  it('is ended by a signal, with its reason', async () => {
    const stop = new AbortController();
    const { pid } = await echo(1);
    const spinning = side.ask({ do: 'spin' }, { signal: stop.signal, onEnd });
    setTimeout(() => stop.abort(new Error('enough')), 100);
    await expect(spinning).rejects.toThrow(/^enough$/);
    expect(await hasEnded(pid)).toBe(true);
    await expect(side.ask({ do: 'spin' }, { signal: stop.signal, onEnd })).rejects.toThrow(
      'enough',
    );
  });

  it('that is ended refuses what it has not answered, and starts for none of it', async () => {
    const { pid } = await echo(1);
    const asked = [side.ask({ do: 'spin' }, { onEnd }), echo(2)].map((one) =>
      one.catch((error: Error) => error.message),
    );
    await sleep(100);
    await side.end();
    expect(await Promise.all(asked)).toEqual(['ended for closed', 'ended for closed']);
    expect(await hasEnded(pid)).toBe(true);
    expect((await echo(3)).echo).toBe(3);
  });

  it('that cannot be started is an error', async () => {
    const none = new SideProcess<object, unknown>({ module: 'none.js', setup: null, heapMiB: 64 });
    await expect(none.ask({}, { onEnd })).rejects.toThrow(
      /cannot be started: it ended with code 1/,
    );
  });

  it.skipIf(process.platform === 'win32')(
    'that the system cannot start is an error, and the next request starts it',
    () => {
      const program = 'test/io/programs/side_without_files.mjs';
      const shell = ['-c', 'ulimit -n 120 && exec "$0" "$1"', process.execPath, program];
      const { stdout, stderr } = spawnSync('sh', shell, {
        encoding: 'utf8',
        timeout: 0.9 * kHangLimitMs,
      });
      expect(stderr).toBe('');
      const failed = 'ERR_NATIVE: a process for reading data cannot be started';
      expect(stdout.split('\n')).toEqual([
        `${failed}: this process has too many files open (EMFILE)`,
        'answered',
        `${failed}: spawn /none/node ENOENT`,
        'answered',
        '',
      ]);
    },
  );

  it('ends while it spins if its parent is killed, and with a parent that has nothing left to do', async () => {
    const killed = await runProgram('test/io/programs/side_parent.mjs', { args: ['kill'] });
    expect(killed.signal).toBe('SIGKILL');
    expect(await hasEnded(Number(killed.stdout))).toBe(true);
    const done = await runProgram('test/io/programs/side_parent.mjs', { args: ['idle'] });
    expect(done).toMatchObject({ code: 0, stderr: '', stopped: null });
    expect(await hasEnded(Number(done.stdout))).toBe(true);
  });

  it('ends while it spins with the worker that started it', async () => {
    const worker = new Worker('./test/io/programs/side_parent.mjs', { argv: ['wait'] });
    const [pid] = (await once(worker, 'message')) as [number];
    await sleep(200);
    expect(isAlive(pid)).toBe(true);
    await worker.terminate();
    expect(await hasEnded(pid)).toBe(true);
  });
});
