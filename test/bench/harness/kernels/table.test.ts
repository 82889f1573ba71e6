// Every kernel has a benchmark row or a reason for none, and each row times the kernel that it names.
import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { disposeOperands, type MicroContext, opOf } from '../../../../bench/harness/kernels/kit.ts';
import {
  kLargeMicroTable,
  kMicroTable,
  kNotTimed,
} from '../../../../bench/harness/kernels/table.ts';
import { shapeNamed, sizesOf } from '../../../../bench/harness/shapes.ts';
import { timeOps } from '../../../../bench/harness/timing.ts';

const native = new URL('../../../../native/', import.meta.url);
const sourceOf = (path: string): string => readFileSync(new URL(path, native), 'utf8');
const kKernels = readdirSync(new URL('kernels/operands/', native))
  .flatMap((file) => [...sourceOf(`kernels/operands/${file}`).matchAll(/\bKERNEL\((\w+)/g)])
  .map(([, name]) => name as string);
const kOpSources = ['ops/', 'tape/'].flatMap((folder) =>
  readdirSync(new URL(folder, native), { recursive: true })
    .filter((name) => String(name).endsWith('.cc'))
    .map((name) => sourceOf(folder + name)),
);
const kRows = [...kMicroTable, ...kLargeMicroTable];

const kTiny: MicroContext = {
  ...{ sizes: sizesOf(shapeNamed('tiny')), dtype: 'bf16', rank: 4 },
  ...{ rows: 64, sequences: 4, lossRows: 32, large: { rows: 32, v: 512 } },
};

describe('kernel rows', () => {
  it('together with the reasons for none name every kernel, and no kernel that does not exist', () => {
    const named = new Set([...kRows.map(({ kernel }) => kernel), ...Object.keys(kNotTimed)]);
    expect(kKernels.length).toBeGreaterThan(50);
    expect([...named].sort()).toEqual([...kKernels].sort());
    const reasons = Object.keys(kNotTimed);
    expect(kRows.filter(({ kernel }) => reasons.includes(kernel))).toEqual([]);
  });

  it.each(kRows)('$name times $kernel', async (row) => {
    // Elementwise ops share a kernel, so that the op's name alone does not determine it.
    const call = new RegExp(`(&KernelTable::|kernels->)${row.kernel},`);
    const calls = kOpSources.filter((text) => call.test(text));
    expect(calls.some((text) => text.includes(`"${opOf(row)}"`))).toBe(true);
    try {
      const { run, prepare, work } = row.make(kTiny);
      expect(work).toBeGreaterThan(0);
      const options = { prepare, ops: [opOf(row)], least: 1, most: 1, seconds: 0 };
      expect((await timeOps(run, options))[0]).toBeGreaterThan(0);
    } finally {
      disposeOperands();
    }
  });
});
