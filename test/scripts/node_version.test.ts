// What runs ahead of the scripts: an old Node is named before it has to parse them.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';

const kFile = fileURLToPath(new URL('../../scripts/support/node_version.cjs', import.meta.url));
interface Module {
  tooOld(part: 'build' | 'test', version: string): string | null;
}
const { tooOld } = createRequire(import.meta.url)(kFile) as Module;

it.each([
  ['build', '18.20.4', 'balora needs Node >= 20.0, this is Node 18.20.4.'],
  ['build', '20.0.0', null],
  ['test', '20.16.0', "balora's tests need Node >= 20.17, this is Node 20.16.0."],
  ['test', '20.17.0', null],
  ['test', '26.10.0', null],
] as const)('%s on Node %s: %s', (part, version, message) => {
  expect(tooOld(part, version)).toBe(message);
});

it('is loaded ahead by every script that sets up, and holds nothing that an old Node cannot parse', () => {
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
