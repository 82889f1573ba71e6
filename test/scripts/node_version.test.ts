// The check that runs before the scripts: an old Node is reported before it has to parse them.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';

const kFile = fileURLToPath(new URL('../../scripts/support/node_version.cjs', import.meta.url));
interface Module {
  tooOld(version: string): string | null;
}
const { tooOld } = createRequire(import.meta.url)(kFile) as Module;
const kNeeds = 'balora needs Node 20.17 or newer of Node 20, or Node >= 22.2';
const kAdvice = ' Install a newer one from https://nodejs.org and run this again.';

it.each([
  ['18.20.4', `${kNeeds}; this is Node 18.20.4.${kAdvice}`],
  ['20.16.0', `${kNeeds}; this is Node 20.16.0.${kAdvice}`],
  ['20.17.0', null],
  ['21.7.3', `${kNeeds}; this is Node 21.7.3.${kAdvice}`],
  ['22.1.0', `${kNeeds}; this is Node 22.1.0.${kAdvice}`],
  ['22.2.0', null],
  ['23.0.0', null],
  ['26.10.0', null],
])('Node %s: %s', (version, message) => {
  expect(tooOld(version)).toBe(message);
});

it('runs before every script that sets up, in syntax that an old Node can parse', () => {
  const { scripts } = JSON.parse(readFileSync('package.json', 'utf8')) as {
    scripts: Record<string, string>;
  };
  for (const name of ['setup', 'demo', 'bench', 'test']) {
    expect(scripts[name], name).toBe(
      `node -r ./scripts/support/node_version.cjs scripts/${name}.mjs`,
    );
  }
  const code = readFileSync(kFile, 'utf8').replace(/\/\/.*$|\/\*.*?\*\//gm, '');
  expect(code).not.toMatch(/\b(const|let|import|await|async|class)\b|=>|`|\?\.|\?\?/);
});
