// Limits of time are for what hangs, never for a machine that is busy: no test has a shorter one than kHangLimitMs.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { kHangLimitMs } from './support/limits.ts';

const kTests = fileURLToPath(new URL('.', import.meta.url));

/** A program that a test waits for may end a little before the test would, so that the test can say what the program said. */
const kLeastMs = 0.9 * kHangLimitMs;

/** The value of a product of numbers and constants, such as `0.9 * kHangLimitMs`; null: it has another form. */
function millisecondsOf(product: string, constants: ReadonlyMap<string, number>): number | null {
  let value = 1;
  for (const [, sign = '*', factor = ''] of product.matchAll(/([*/])?\s*([\w.]+)/g)) {
    const number = constants.get(factor) ?? Number(factor.replaceAll('_', ''));
    if (Number.isNaN(number)) return null;
    value = sign === '*' ? value * number : value / number;
  }
  return value;
}

/**
 * The limits in a test's source that are shorter, as they are written: numbers, and products of numbers, of kHangLimitMs and of the file's
 * own constants, as an option or behind a test's function. What is computed otherwise is not seen, and neither are hangMs and limitMs,
 * by which a test stops a program on purpose.
 */
function shortLimits(source: string): string[] {
  const constants = new Map([['kHangLimitMs', kHangLimitMs]]);
  for (const [, name = '', product = ''] of source.matchAll(/^const (k\w+) = ([\w. */]+);$/gm)) {
    const value = millisecondsOf(product, constants);
    if (value !== null) constants.set(name, value);
  }
  const written = [
    ...source.matchAll(/\b(?:timeout|testTimeout|hookTimeout): ([\w. */]+)/g), // of a test, a group, a program
    ...source.matchAll(/^\s*\}, ([\w. */]+)\);$/gm), // after a test's function
    ...source.matchAll(/^\s*\},\n\s*([\w. */]+),\n\s*\);$/gm),
  ];
  const short = written.filter(([, product = '']) => {
    const value = millisecondsOf(product, constants);
    return value !== null && value >= 1000 && value < kLeastMs; // less is an interval, or no time
  });
  // Its own limit is a second. Use eventually() instead.
  return [...short.map(([all]) => all.trim()), ...(source.match(/\bvi\.waitFor\(/g) ?? [])];
}

it('finds short limits', () => {
  const source = `const kLimitMs = 2 * 60_000;
it('a', { timeout: 30_000 }, () => {});
it('b', { timeout: 1_200_000 }, () => {
}, 60_000);
it('c', { timeout: kLimitMs }, () => {
  run({ timeout: kHangLimitMs / 2 });
  run({ timeout: 0.9 * kHangLimitMs, other: kElsewhere });
}, 2 * kHangLimitMs);
it(
  'd',
  () => {
  },
  10 * kLimitMs,
);
it(
  'e',
  () => {
  },
  300_000,
);
await vi.waitFor(done);`;
  expect(shortLimits(source)).toEqual([
    ...['timeout: 30_000', 'timeout: kLimitMs', 'timeout: kHangLimitMs / 2'],
    ...['}, 60_000);', '},\n  300_000,\n);', 'vi.waitFor('],
  ]);
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
