// A base that is larger than the memory of the process: the budget is kept by the kernel's count, in a control group that gives no more,
// and nothing that is computed depends on it. Two processes use the same file.
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  rmdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { runProgram } from '../support/child.ts';
import { kHangLimitMs } from '../support/limits.ts';

const kMiB = 2 ** 20;
const kBudget = 300 * kMiB;
/** A budget with more room for a share. */
const kRoomyBudget = 450 * kMiB;
const kShape = {
  ...{ vocab_size: 1024, hidden_size: 1024, intermediate_size: 2816, num_hidden_layers: 44 },
  ...{ num_attention_heads: 16, num_key_value_heads: 4, max_position_embeddings: 256 },
};
const kLimits = { hangMs: 300_000 };

interface Report {
  losses: number[];
  tokens: number[];
  digest: string;
  peak: number;
  stats: { totalBytes: number; residentBytes: number; readBytes: number } | null;
}

/** A control group with the budget as its limit, pages of files that are in the cache included; null where this process makes none. */
function limitedGroup(): string | null {
  const version2 = existsSync('/sys/fs/cgroup/cgroup.controllers');
  const root = version2 ? '/sys/fs/cgroup' : '/sys/fs/cgroup/memory';
  const file = version2 ? 'memory.max' : 'memory.limit_in_bytes';
  const group = join(root, `balora-offload-${process.pid}`);
  try {
    mkdirSync(group);
    writeFileSync(join(group, file), String(kBudget));
    return group;
  } catch {
    if (existsSync(group)) rmdirSync(group);
    return null;
  }
}

const isLinux = process.platform === 'linux';
const group = isLinux ? limitedGroup() : null;
const folder = mkdtempSync(join(tmpdir(), 'balora-offload-'));
afterAll(() => {
  if (group !== null) rmdirSync(group);
  rmSync(folder, { recursive: true, force: true });
});

async function run(given: { budget: number | null; group?: string | null }): Promise<Report> {
  const input = { model: folder, dtype: 'bf16', rows: 48, steps: 2, group: null, ...given };
  const result = await runProgram('test/lifetime/programs/base_offload.mjs', {
    ...{ args: [JSON.stringify(input)], ...kLimits },
  });
  expect(result, result.stderr).toMatchObject({ code: 0, signal: null, stopped: null });
  return JSON.parse(result.stdout) as Report;
}

/** The part of a report that does not depend on where the base is. */
const computed = ({ losses, tokens, digest }: Report) => ({ losses, tokens, digest });

describe.runIf(isLinux)('a base three times the budget', () => {
  let inMemory: Report;
  beforeAll(async () => {
    const made = await runProgram('bench/random_checkpoint.mjs', {
      ...{ args: [folder, '--shape', JSON.stringify(kShape), '--form', 'bf16'], ...kLimits },
    });
    expect(made, made.stderr).toMatchObject({ code: 0 });
    expect(statSync(join(folder, 'model.safetensors')).size).toBeGreaterThan(3 * kBudget);
    inMemory = await run({ budget: null });
  });

  it(
    'is trained and generates as in memory, in two processes at a time',
    async () => {
      const budget = kRoomyBudget;
      const reports = await Promise.all([run({ budget }), run({ budget })]);
      for (const report of reports) {
        expect(computed(report)).toEqual(computed(inMemory));
        expect(report.peak).toBeLessThanOrEqual(kRoomyBudget);
        const { residentBytes, totalBytes } = report.stats as NonNullable<Report['stats']>;
        expect(residentBytes).toBeLessThan(totalBytes / 2);
      }
      expect(inMemory.peak).toBeGreaterThan(2 * kBudget);
    },
    2 * kHangLimitMs,
  );

  it.skipIf(group === null)(
    'trains in a control group with the budget as its limit (needs root)',
    async () => {
      const report = await run({ budget: kBudget, group });
      expect(computed(report)).toEqual(computed(inMemory));
      expect(report.peak).toBeLessThanOrEqual(kBudget);
    },
  );
});
