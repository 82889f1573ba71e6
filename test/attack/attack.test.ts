// The attack's own machinery: planted faults are found, saved and repeated, and inputs depend on the seed alone.
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, it } from 'vitest';
import { runProgram } from '../support/child.ts';

const kPlanted = fileURLToPath(new URL('planted.mjs', import.meta.url));
/** The kind of finding that each planted fault gives, by the number of its input. */
const kExpected: Record<number, string> = {
  2: 'not a BaloraError',
  3: 'wrong result',
  4: 'does not name its subject',
  5: 'unclear message',
  6: 'open files',
  7: 'memory',
  8: 'unhandled rejection',
  9: 'crash',
  10: 'hang',
  11: 'unprintable message',
};

interface Result {
  inputs: number;
  findings: { index: number; kind: string; message: string; repeat: string; saved: string }[];
}

const folder = mkdtempSync(join(tmpdir(), 'balora-planted-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function attack(...args: string[]): Promise<{ code: number | null; result: Result }> {
  const report = join(folder, 'report.json');
  const all = ['--target', kPlanted, '--report', report, ...args];
  const { code, stderr } = await runProgram('test/attack/main.mjs', {
    args: all,
    hangMs: 120_000,
  });
  expect(stderr).toBe('');
  const { results } = JSON.parse(readFileSync(report, 'utf8')) as { results: [Result] };
  return { code, result: results[0] };
}

it('finds every planted fault and nothing else, and goes on behind it', async () => {
  const { code, result } = await attack('--seed', '7', '--count', '13');
  const kinds = Object.fromEntries(result.findings.map(({ index, kind }) => [index, kind]));
  expect(kinds).toEqual(kExpected);
  expect(result.inputs).toBe(13);
  expect(code).toBe(1);
  const [first] = result.findings as [Result['findings'][0]];
  expect(existsSync(join(first.saved, 'input.json'))).toBe(true);
  expect(first.repeat).toContain('--seed 7 --first 2 --count 1');
  for (const { saved } of result.findings) rmSync(saved, { recursive: true, force: true });
});

it('repeats an input by its seed and number', async () => {
  const input = async (seed: string): Promise<string> => {
    const { result } = await attack('--seed', seed, '--first', '3', '--count', '1');
    const [{ saved }] = result.findings as [Result['findings'][0]];
    const text = readFileSync(join(saved, 'input.json'), 'utf8');
    rmSync(saved, { recursive: true, force: true });
    return text;
  };
  const [first, again, other] = [await input('1'), await input('1'), await input('2')];
  expect(again).toBe(first);
  expect(other).not.toBe(first);
});

it('exits with 0 where there is no finding', async () => {
  const { code, result } = await attack('--seed', '1', '--first', '0', '--count', '2');
  expect({ code, findings: result.findings }).toEqual({ code: 0, findings: [] });
});
