// The tables of platforms: each check of a platform has a row that says when it last ran, and the README promises nothing else.
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';

interface Suite {
  name: string;
  platform?: string;
}
// The script has no types.
const path = '../../scripts/support/suites.mjs';
const { kSuites } = (await import(path)) as { kSuites: Suite[] };

const kDay = /\b20\d\d-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])\b/;

/** The rows of the first table below a text of a page, as cells. */
function tableAfter(page: string, text: string): string[][] {
  const from = page.indexOf(text);
  expect(from, text).toBeGreaterThanOrEqual(0);
  const [table] = /^(?:\|.*(?:\n|$))+/m.exec(page.slice(from)) ?? [''];
  const [, , ...rows] = table.trimEnd().split('\n');
  return rows.map((line) =>
    line
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim()),
  );
}

const page = readFileSync('docs/platforms.md', 'utf8');
const proved = tableAfter(page, '## What a check proves');
const byHand = tableAfter(page, '## What was tried by hand');
const namedBy = (name: string) => proved.filter(([, check]) => check?.includes(`\`${name}\``));

describe('docs/platforms.md', () => {
  const platforms = kSuites.filter(({ platform }) => platform !== undefined);

  it.each(platforms)('has a row of $name, with the day and commit of its last run', (suite) => {
    const rows = namedBy(suite.name);
    expect(rows).toHaveLength(1);
    const [platform, , last] = rows[0] as [string, string, string];
    expect(platform.startsWith(suite.platform as string)).toBe(true);
    expect(last).toMatch(kDay);
    expect(last).toMatch(/`[0-9a-f]{8,40}`/);
  });

  it('names no check that does not exist', () => {
    const names = proved.flatMap(([, check]) =>
      Array.from((check ?? '').matchAll(/`([^`]+)`/g), ([, name]) => name as string),
    );
    const known = [...kSuites.map(({ name }) => name), 'npm test'];
    expect(names.length).toBeGreaterThan(1);
    expect(names.filter((name) => !known.includes(name))).toEqual([]);
  });

  it('dates what was tried by hand', () => {
    expect(byHand.length).toBeGreaterThan(2);
    for (const [platform, , when] of byHand) expect(when, platform).toMatch(kDay);
  });
});

describe('the README', () => {
  const readme = readFileSync('README.md', 'utf8');
  const rows = tableAfter(readme, '## Install');

  it('says that a platform works where a check proves it, and dates the others', () => {
    expect(readme).not.toContain('works, tested');
    const platforms = proved.map(([platform]) => platform as string);
    const working = rows.filter((row) => row.slice(1).some((cell) => /\bworks\b/.test(cell)));
    expect(working.length).toBeGreaterThan(0);
    for (const [platform, , clone] of working) {
      expect(platforms).toContain(platform);
      expect(clone).toContain('](docs/platforms.md)');
    }
    const worked = rows.filter((row) => row.some((cell) => /\bworked\b/.test(cell)));
    for (const row of worked) expect(row[2]).toMatch(kDay);
    expect(worked.map(([platform]) => platform)).toContain('Ubuntu 24.04 on x64');
  });
});
