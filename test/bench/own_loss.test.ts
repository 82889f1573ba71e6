// bench/own_loss.mjs computes the same losses in all three forms, on the small model.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { runProgram } from '../support/child.ts';

let folder = '';
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-own-loss-'));
  const rows = [
    { prompt: 'Call me', response: 'Ishmael.' },
    { prompt: 'There she', response: 'blows!' },
  ];
  writeFileSync(join(folder, 'rows.jsonl'), rows.map((row) => JSON.stringify(row)).join('\n'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

it('measures losses that agree', async () => {
  const losses: number[][] = [];
  for (const loss of ['built-in', 'fused', 'plain']) {
    const paths = ['--model', 'examples/demo/checkpoint', '--data', join(folder, 'rows.jsonl')];
    const args = [...paths, '--dtype', 'f32', '--steps', '2', '--loss', loss];
    const result = await runProgram('bench/own_loss.mjs', { args, hangMs: 30_000 });
    expect(result, result.stderr).toMatchObject({ code: 0, stopped: null });
    losses.push([...result.stdout.matchAll(/: loss ([\d.]+),/g)].map(([, value]) => Number(value)));
  }
  const [builtIn = [], fused = [], plain = []] = losses;
  expect(builtIn).toHaveLength(2);
  for (const [i, value] of builtIn.entries()) {
    expect(fused[i]).toBeCloseTo(value, 3);
    expect(plain[i]).toBeCloseTo(value, 3);
  }
});
