// Adds the files that the how-tos show to a copy of the library as the pages describe. They pass the type
// check and their own tests.
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { cp, mkdir, readFile, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { addedFile, blocksOf, kPages } from '../support/pages.ts';

const kRoot = fileURLToPath(new URL('../..', import.meta.url));
const kAdded = kPages.flatMap(blocksOf).flatMap((block) => {
  const path = addedFile(block);
  return path === undefined ? [] : [{ path, text: block.text }];
});

/** The lines that the pages add to lists: a name at the end of an array, and its import. */
const kLines = [
  {
    path: 'lib/adapters/methods/registry.ts',
    array: 'kMethods',
    name: 'lq',
    from: './lq.ts',
  },
  {
    path: 'lib/losses/terms/list.ts',
    array: 'kLanguageModelTerms',
    name: 'labelSmoothing',
    from: './label_smoothing.ts',
  },
];

let copy = '';
beforeAll(async () => {
  copy = mkdtempSync(join(tmpdir(), 'balora-how-to-'));
  for (const folder of ['lib', 'test/support']) {
    await cp(join(kRoot, folder), join(copy, folder), { recursive: true });
  }
  for (const name of ['build', 'node_modules', 'package.json', 'examples', 'test/fixtures']) {
    await symlink(join(kRoot, name), join(copy, name));
  }
  await writeFile(join(copy, 'vitest.config.mjs'), "export default { test: { pool: 'forks' } };\n");
  const base = { extends: join(kRoot, 'tsconfig.json'), include: kAdded.map(({ path }) => path) };
  await writeFile(join(copy, 'tsconfig.json'), JSON.stringify(base));
  for (const { path, text } of kAdded) {
    await mkdir(dirname(join(copy, path)), { recursive: true });
    await writeFile(join(copy, path), text);
  }
  for (const { path, array, name, from } of kLines) {
    const text = await readFile(join(copy, path), 'utf8');
    const list = new RegExp(`(${array}: readonly \\[[^\\]]*?),?\\s*\\] = \\[([^\\]]*?),?\\s*\\]`);
    const longer = text.replace(list, `$1, typeof ${name}] = [$2, ${name}]`);
    expect(longer, path).not.toBe(text);
    await writeFile(join(copy, path), `import { ${name} } from '${from}';\n${longer}`);
  }
});
afterAll(() => rmSync(copy, { recursive: true, force: true }));

const kTests = kAdded.filter(({ path }) => path.endsWith('.test.ts'));

it('the pages add files of the library and their tests', () => {
  for (const { name } of kLines) {
    expect(kAdded.filter(({ text }) => text.includes(name)).length).toBeGreaterThan(1);
  }
  expect(kTests.length).toBe(kLines.length);
});

it('the files pass the type check', () => {
  const tsc = join(kRoot, 'node_modules', 'typescript', 'bin', 'tsc');
  const { stdout } = spawnSync(process.execPath, [tsc, '-p', copy], { encoding: 'utf8' });
  expect(stdout).toBe('');
});

it('the files pass their own tests', () => {
  const vitest = join(kRoot, 'node_modules', 'vitest', 'vitest.mjs');
  const args = [vitest, 'run', '--root', copy, ...kTests.map(({ path }) => path)];
  const env = { PATH: process.env.PATH, HOME: process.env.HOME, NO_COLOR: '1' };
  const text = execFileSync(process.execPath, args, { cwd: copy, env, encoding: 'utf8' });
  expect(text).toMatch(new RegExp(`Test Files +${kTests.length} passed`));
});
