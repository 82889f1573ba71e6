// A process in a control group with a limit: a tensor, weights and a budget beyond it are errors with the sizes, and nothing is killed.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { runProgram } from '../support/child.ts';

const kLimitBytes = 700 * 2 ** 20;

/** Makes a control group, of version 2 or 1, with a limit within another with a higher one; null where this process may not. */
function limitedGroup(): string | null {
  const name = `balora-test-${process.pid}`;
  const version2 = existsSync('/sys/fs/cgroup/cgroup.controllers');
  const root = version2 ? '/sys/fs/cgroup' : '/sys/fs/cgroup/memory';
  const file = version2 ? 'memory.max' : 'memory.limit_in_bytes';
  const outer = join(root, name);
  const inner = join(outer, 'inner');
  try {
    mkdirSync(outer);
    writeFileSync(join(outer, file), String(kLimitBytes));
    if (version2) writeFileSync(join(outer, 'cgroup.subtree_control'), '+memory');
    mkdirSync(inner);
    if (!existsSync(join(inner, file))) throw new Error('the group has no memory controller');
    return inner;
  } catch {
    for (const folder of [inner, outer]) if (existsSync(folder)) rmdirSync(folder);
    return null;
  }
}

const group = process.platform === 'linux' ? limitedGroup() : null;
afterAll(() => {
  if (group === null) return;
  rmdirSync(group);
  rmdirSync(join(group, '..'));
});

it.skipIf(group === null)(
  'a limit of a control group is respected, and named with what would fit (needs root)',
  async () => {
    const result = await runProgram('test/lifetime/programs/memory_limit.mjs', {
      ...{ args: [group as string], hangMs: 60_000 },
    });
    expect(result, result.stderr).toMatchObject({ code: 0, signal: null, stopped: null });
    const { total, free, tensor, many, weights, after } = JSON.parse(result.stdout) as {
      total: number;
      free: number;
      tensor: string;
      many: string;
      weights: string;
      after: number[];
    };
    expect(total).toBeGreaterThanOrEqual(kLimitBytes);
    expect(free).toBeLessThan(total);
    const refused =
      /out of memory: \d+ bytes wanted, \d+ in use on cpu, of the \d+ that this process may have with swap \d+ are free/;
    expect(tensor).toMatch(refused);
    expect(many).toMatch(refused);
    expect(weights).toMatch(
      /the weights take .* in f32, and .* are free on cpu; use dtype bf16, in which they take/,
    );
    expect(after).toEqual([1, 1]);
  },
);

/** Whether the limit of a process's addresses can be set. */
const hasPrlimit = (() => {
  try {
    execFileSync('prlimit', ['--version']);
    return true;
  } catch {
    return false;
  }
})();

it.skipIf(!hasPrlimit)('a limit of the addresses is an error, too', async () => {
  const result = await runProgram('test/lifetime/programs/address_limit.mjs', { hangMs: 30_000 });
  expect(result, result.stderr).toMatchObject({ code: 0, signal: null, stopped: null });
  expect(result.stdout).toMatch(/ERR_OUT_OF_MEMORY full: out of memory: 2147483648 bytes wanted/);
  expect(result.stdout).toContain('Float32Array(2) [ 1, 1 ]');
});
