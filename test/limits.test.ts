// Limits of time are for what hangs, never for a machine that is busy: no test has a shorter one than kHangLimitMs.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { kHangLimitMs } from './support/limits.ts';

const kTests = fileURLToPath(new URL('.', import.meta.url));

/** The limits in a test's source that are shorter, as they are written. */
function shortLimits(source: string): string[] {
  const written = [
    ...source.matchAll(/\b(?:timeout|testTimeout|hookTimeout): ([\d_]{4,})/g), // of a test, a group, a program
    ...source.matchAll(/^\s*\}, ([\d_]{4,})\);$/gm), // after a test's function
  ];
  const short = written.filter(([, ms = '']) => Number(ms.replaceAll('_', '')) < kHangLimitMs);
  // Its own limit is a second. Use eventually() instead.
  return [...short.map(([all]) => all.trim()), ...(source.match(/\bvi\.waitFor\(/g) ?? [])];
}

it('finds short limits', () => {
  const source = `it('a', { timeout: 30_000 }, () => {});
it('b', { timeout: 1_200_000 }, () => {
}, 60_000);
await vi.waitFor(done);`;
  expect(shortLimits(source)).toEqual(['timeout: 30_000', '}, 60_000);', 'vi.waitFor(']);
});

it('no test has a shorter limit than what hangs', () => {
  const files = readdirSync(kTests, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts'))
    .filter((name) => !['limits.test.ts', join('support', 'eventually.ts')].includes(name));
  const found = files.flatMap((name) =>
    shortLimits(readFileSync(join(kTests, name), 'utf8')).map((limit) => `${name}: ${limit}`),
  );
  expect(found).toEqual([]);
});
