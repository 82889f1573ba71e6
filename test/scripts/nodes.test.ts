// The Node that runs the suite `unit`: the installed one, or in continuous integration one of all supported lines in turn.
import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';

interface Module {
  kNodes: string[];
  nodeNow(options: { env: Record<string, string>; number: number | null }): string;
  ensureNode(version: string): Promise<string>;
}
// The script has no types.
const path = '../../scripts/support/nodes.mjs';
const { ensureNode, kNodes, nodeNow } = (await import(path)) as Module;

it('is the installed one outside of continuous integration, which is there already', async () => {
  const version = nodeNow({ env: {}, number: 3 });
  expect(version).toBe(process.versions.node);
  expect(await ensureNode(version)).toBe(process.execPath);
});

it('is each of the supported lines in turn in continuous integration', () => {
  const env = { CI: 'true' };
  const turns = [4, 5, 6, 7, 8].map((number) => nodeNow({ env, number }));
  expect(turns).toEqual([...kNodes, kNodes[0]]);
});

it('is of the even lines from the oldest that package.json allows', () => {
  const { engines } = JSON.parse(readFileSync('package.json', 'utf8')) as {
    engines: { node: string };
  };
  const lines = kNodes.map((version) => Number.parseInt(version, 10));
  expect(engines.node).toMatch(new RegExp(`^\\^${lines[0]}\\.`));
  expect(lines).toEqual(lines.map((_, i) => (lines[0] as number) + 2 * i));
});
