// run.sh in the pack for a machine with a GPU: how it divides the time, where it looks for cuBLAS, which arguments it passes on. A
// program that records its arguments replaces node.
import { execFileSync, spawnSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';

const kScript = fileURLToPath(new URL('../../scripts/support/run_cuda.sh', import.meta.url));
/** Whether the system lacks a Python, which replaces the one with torch. */
const kNoPython = spawnSync('python3', ['--version']).status !== 0;

describe.skipIf(process.platform !== 'linux')('run.sh', () => {
  let folder = '';
  const program = (name: string, body: string): string => {
    const path = join(folder, name);
    writeFileSync(path, `#!/bin/sh\n${body}\n`);
    chmodSync(path, 0o755);
    return path;
  };
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), 'balora-run-'));
    copyFileSync(kScript, join(folder, 'run.sh'));
    program('node', 'echo "$@" >> calls\necho "$LD_LIBRARY_PATH" >> libraries\nexit $STATUS');
  });
  afterEach(() => rmSync(folder, { recursive: true, force: true }));

  const run = (args: string[], env: Record<string, string> = {}): string[][] => {
    execFileSync('sh', [join(folder, 'run.sh'), ...args], { env: { ...process.env, ...env } });
    const calls = readFileSync(join(folder, 'calls'), 'utf8').trim().split('\n');
    return calls.map((line) => line.split(' '));
  };
  const option = (call: string[] | undefined, name: string): string | undefined =>
    call?.[call.indexOf(name) + 1];

  it('gives the tests two fifths of the time, and the benchmark the rest', () => {
    const [tests, bench] = run(['--output', 'some/where', '--seconds', '100']);
    expect([tests?.[0], bench?.[0]]).toEqual(['scripts/test_cuda.mjs', 'scripts/bench_cuda.mjs']);
    expect(option(tests, '--seconds')).toBe('40');
    expect(Number(option(bench, '--seconds'))).toBeGreaterThan(60);
    expect(Number(option(bench, '--seconds'))).toBeLessThanOrEqual(100);
    for (const call of [tests, bench]) {
      expect(option(call, '--output')).toBe(join(process.cwd(), 'some/where'));
      expect([option(call, '--device'), option(call, '--shapes')]).toEqual(['cuda', 'all']);
      expect(call).not.toContain('--torch');
    }
  });

  it('takes less than eight minutes by default', () => {
    const [, bench] = run([]);
    expect(Number(option(bench, '--seconds'))).toBeLessThan(480);
  });

  it('leaves the benchmark a second where the tests used all of the time', () => {
    program('node', 'echo "$@" >> calls\nsleep 2');
    expect(option(run(['--seconds', '1'])[1], '--seconds')).toBe('1');
  });

  it.skipIf(kNoPython)('finds the libraries that pip installed beside the named torch', () => {
    for (const name of ['cublas', 'cusolver']) {
      mkdirSync(join(folder, 'site', 'nvidia', name, 'lib'), { recursive: true });
    }
    const python = program('python', `PYTHONPATH="${folder}/site" exec python3 "$@"`);
    const [tests, bench] = run(['--torch', python], { LD_LIBRARY_PATH: '/before' });
    expect(option(bench, '--torch')).toBe(python);
    expect(tests).not.toContain('--torch');
    const [libraries] = readFileSync(join(folder, 'libraries'), 'utf8').split('\n');
    const wheels = ['cublas', 'cusolver'].map((name) => join(folder, 'site/nvidia', name, 'lib'));
    expect(libraries?.split(':').slice(0, 2)).toEqual(wheels);
    expect(libraries?.split(':').at(-1)).toBe('/before');
  });

  it('works without a Python, and fails where a test failed', () => {
    expect(run(['--torch', join(folder, 'none')])).toHaveLength(2);
    expect(() => run([], { STATUS: '3' })).toThrow();
  });
});
