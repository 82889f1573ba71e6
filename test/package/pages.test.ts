// The pages: links lead somewhere, blocks of JavaScript name what the library has, and those of docs/tensors.md and
// docs/errors.md, which need no model, run as they stand.
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { anchoredLinksOf, pageText } from '../support/pages.ts';

const kRoot = fileURLToPath(new URL('../..', import.meta.url));

const kPages = [
  ...['README.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'examples/demo/README.md'],
  ...['docs', 'docs/decisions'].flatMap((folder) =>
    readdirSync(join(kRoot, folder))
      .filter((name) => name.endsWith('.md'))
      .map((name) => `${folder}/${name}`),
  ),
];

/** Anchors as GitHub makes them of headings. */
function anchorsOf(page: string): string[] {
  return [...pageText(page).matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N} _-]/gu, '')
      .replaceAll(' ', '-'),
  );
}

/** Blocks of JavaScript that are programs: they import what they use. */
function programsOf(page: string): string[] {
  return [...pageText(page).matchAll(/^```js\n([\s\S]*?)^```/gm)]
    .map(([, block]) => block ?? '')
    .filter((block) => block.startsWith('import '));
}

describe('links', () => {
  it.each(kPages)('of %s lead to files and headings', (page) => {
    const broken = anchoredLinksOf(page).filter(
      ([path, anchor]) =>
        !existsSync(join(kRoot, path)) || (anchor !== '' && !anchorsOf(path).includes(anchor)),
    );
    expect(broken).toEqual([]);
  });
});

describe('programs', () => {
  let folder = '';
  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), 'balora-pages-'));
    await mkdir(join(folder, 'node_modules'));
    symlinkSync(kRoot, join(folder, 'node_modules', 'balora'));
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  /** Writes the programs of a page into the folder; returns their names. */
  async function write(page: string, extension: string): Promise<string[]> {
    const named = programsOf(page).map((text, i) => {
      return [`${page.replace(/\W/g, '_')}_${i}.${extension}`, text] as const;
    });
    for (const [name, text] of named) await writeFile(join(folder, name), text);
    return named.map(([name]) => join(folder, name));
  }

  // Of JavaScript, so null is nobody's business; a name or an option that the library lacks is found.
  it('use the library as its types say', async () => {
    const files = (await Promise.all(kPages.map((page) => write(page, 'mts')))).flat();
    expect(files.length).toBeGreaterThan(8);
    const tsc = join(kRoot, 'node_modules', 'typescript', 'bin', 'tsc');
    const target = ['--module', 'nodenext', '--lib', 'es2022,esnext.disposable'];
    const types = ['--types', 'node', '--typeRoots', join(kRoot, 'node_modules', '@types')];
    const args = [tsc, '--noEmit', '--skipLibCheck', ...target, ...types, ...files];
    const { status, stdout } = spawnSync(process.execPath, args, { encoding: 'utf8' });
    expect({ status, stdout }).toEqual({ status: 0, stdout: '' });
  }, 120_000);

  it.each(['docs/tensors.md', 'docs/errors.md'])(
    'of %s run',
    async (page) => {
      for (const file of await write(page, 'mjs')) {
        expect(execFileSync(process.execPath, [file], { cwd: folder, encoding: 'utf8' })).toMatch(
          /\d/,
        );
      }
    },
    120_000,
  );
});
