// Programs in namespaces of their own. Where none can be made (in some containers), the tests of isolation are skipped.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openCodeRunner } from '../../lib/eval/run_code.ts';
import { runPrograms, samplesOf } from '../../lib/eval/run_programs.ts';
import type { ItemRecord } from '../../lib/eval/scoring.ts';
import { readItems } from '../../lib/eval/task_data.ts';
import { scoringTask } from '../../lib/eval/tasks/registry.ts';
import type { CodeTask } from '../../lib/eval/tasks/task.ts';
import { fixturePath } from '../support/fixtures.ts';

const kPython = spawnSync('python3', ['--version']).status === 0;
const kNamespaces =
  kPython &&
  spawnSync('unshare', ['--user', '--map-root-user', '--mount', '--net', '--pid', '--fork', 'true'])
    .status === 0;

describe.skipIf(!kPython)('a program', () => {
  const open = (seconds = 10) => openCodeRunner({ unsafe: true, seconds });

  it('passes by its end alone', async () => {
    const { run } = await open();
    expect(await run('x = 1\nassert x == 1')).toBe('passed');
    expect(await run('assert False')).toBe('failed');
    expect(await run('def broken(:')).toBe('failed');
    for (const exit of ['raise SystemExit(0)', 'import os; os._exit(0)', 'exit()']) {
      expect(await run(exit), exit).toBe('failed');
    }
    expect(await run('print("ready")\nprint("x" * 10**6)')).toBe('passed');
    expect(await run('if __name__ == "__main__":\n    raise ValueError')).toBe('passed');
  });

  it('is ended when its time is over', async () => {
    const { run } = await open(1);
    const begun = performance.now();
    expect(await run('while True: pass')).toBe('timed out');
    expect(await run('import time; time.sleep(60)')).toBe('timed out');
    expect(performance.now() - begun).toBeLessThan(10_000);
  });

  it('has no more memory than it may', async () => {
    const { run } = await open();
    expect(await run('x = bytearray(2 * 2**30)')).toBe('failed');
    expect(await run('x = bytearray(2**27)')).toBe('passed');
  });

  it('writes no large file, and sees no environment', async () => {
    const { run } = await open();
    process.env.BALORA_TEST_SECRET = 'secret';
    try {
      expect(await run('import os; assert "BALORA_TEST_SECRET" not in os.environ')).toBe('passed');
    } finally {
      delete process.env.BALORA_TEST_SECRET;
    }
    expect(await run('open("small", "w").write("x" * 1000)')).toBe('passed');
    expect(
      await run('f = open("large", "wb")\nfor _ in range(40): f.write(b"x" * 2**20)\nf.flush()'),
    ).toBe('failed');
  });

  it('ends with the signal of the caller', async () => {
    const { run } = await open();
    const abort = new AbortController();
    setTimeout(() => abort.abort(new Error('stop')), 300);
    await expect(run('import time; time.sleep(9)', abort.signal)).rejects.toThrow('stop');
    await expect(run('', AbortSignal.abort(new Error('before')))).rejects.toThrow('before');
  });
});

describe.skipIf(!kNamespaces)('namespaces', () => {
  it('have no network, no other process, and nothing to write to but the own folder', async () => {
    const runner = await openCodeRunner();
    expect(runner.isIsolated).toBe(true);
    const connect = 'import socket\nsocket.create_connection(("127.0.0.1", 9), 1)';
    const error = (program: string, kind: string) =>
      runner.run(
        `try:\n    exec(${JSON.stringify(program)})\nexcept OSError as e:\n    assert e.errno == ${kind}, e\nelse:\n    raise ValueError`,
      );
    expect(await error(connect.replace('127.0.0.1', '192.0.2.1'), '101')).toBe('passed');
    const folder = await mkdtemp(join(tmpdir(), 'not-mine-'));
    try {
      for (const path of [join(folder, 'x'), join(tmpdir(), 'balora-test-x')]) {
        expect(await error(`open(${JSON.stringify(path)}, "w")`, '30'), path).toBe('passed');
        expect(existsSync(path)).toBe(false);
      }
      expect(await error(`import os; os.rmdir(${JSON.stringify(folder)})`, '30')).toBe('passed');
      expect(existsSync(folder)).toBe(true);
    } finally {
      await rm(folder, { recursive: true });
    }
    expect(await runner.run('import os; assert os.getpid() == 1')).toBe('passed');
    expect(await error(`import os; os.kill(${process.pid}, 9)`, '3')).toBe('passed');
    expect(await runner.run('open("x", "w").write("y"); assert open("x").read() == "y"')).toBe(
      'passed',
    );
  });

  it('cannot be changed by the program', async () => {
    const { run } = await openCodeRunner();
    const remount = [
      'import ctypes',
      'libc = ctypes.CDLL(None, use_errno=True)',
      'assert libc.mount(None, b"/", None, 32 | 0x1000, None) == -1',
      'assert ctypes.get_errno() == 1',
      'status = open("/proc/self/status").read()',
      'assert "CapEff:\\t0000000000000000" in status and "NoNewPrivs:\\t1" in status',
    ].join('\n');
    expect(await run(remount)).toBe('passed');
  });
});

describe.skipIf(!kPython)('where no namespaces can be made', () => {
  it('programs are refused, unless that is allowed', async () => {
    const { PATH } = process.env;
    const folder = await mkdtemp(join(tmpdir(), 'no-unshare-'));
    try {
      // A PATH that has Python but no unshare.
      const python = spawnSync('python3', ['-c', 'import sys; print(sys.executable)'], {
        encoding: 'utf8',
      }).stdout.trim();
      spawnSync('ln', ['-s', python, join(folder, 'python3')]);
      process.env.PATH = folder;
      await expect(openCodeRunner()).rejects.toThrow(
        /no namespaces can be made for python3 \(.*unshare.*\); so programs cannot be kept from the network .*--unsafe/,
      );
      const runner = await openCodeRunner({ unsafe: true });
      expect(runner.isIsolated).toBe(false);
      expect(await runner.run('assert 1 + 1 == 2')).toBe('passed');
    } finally {
      process.env.PATH = PATH;
      await rm(folder, { recursive: true });
    }
  });
});

describe.skipIf(!kPython)('answers that are programs', () => {
  it.each(['humaneval', 'mbpp'])('of %s pass with the solutions of the file', async (name) => {
    const task = scoringTask(name) as CodeTask;
    const items = await readItems(fixturePath(`scoring/${name}.jsonl`), task);
    const records: ItemRecord[] = items.map(({ answer }, index) => ({
      ...{ index, metrics: {}, isCut: false },
      output: index === 2 ? '    return None\n' : answer,
    }));
    expect(task.summarize?.(records)).toEqual({ 'pass@1': null });
    const runner = await openCodeRunner({ unsafe: true });
    const found: ItemRecord[] = [];
    for await (const one of runPrograms(task, items, records, { runner })) found.push(one);
    expect(found.map(({ outcome }) => outcome)).toEqual([
      ...['passed', 'passed', 'failed', 'passed', 'passed'],
    ]);
    expect(task.summarize?.(found)).toEqual({ 'pass@1': 0.8 });
    // Those that have been run are not run again.
    for await (const _ of runPrograms(task, items, found, { runner })) expect.unreachable();
    const [sample] = samplesOf(task, items, found);
    expect(sample?.task_id).toBe(name === 'mbpp' ? 'Mbpp/11' : 'Own/0');
    expect(sample?.completion).toBe(items[0]?.answer);
  });
});
