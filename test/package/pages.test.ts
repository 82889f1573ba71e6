// The pages of the documentation: links have a target, and blocks of JavaScript pass the type check. code_blocks.test.ts runs them.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { anchoredLinksOf, anchorsOf, kPages, programsOf } from '../support/pages.ts';

const kRoot = fileURLToPath(new URL('../..', import.meta.url));

describe('links', () => {
  it.each(kPages)('of %s lead to existing files and headings', (page) => {
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
    symlinkSync(join(kRoot, 'node_modules', 'openai'), join(folder, 'node_modules', 'openai'));
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  /** Writes the programs of a page into the folder; returns their names. */
  async function write(page: string, extension: string): Promise<string[]> {
    const named = programsOf(page).map(({ line, text }) => {
      return [`${page.replace(/\W/g, '_')}_${line}.${extension}`, text] as const;
    });
    for (const [name, text] of named) await writeFile(join(folder, name), text);
    return named.map(([name]) => join(folder, name));
  }

  // The programs are JavaScript, so that the check is not strict about null; it finds names and options that do not exist.
  it('pass the type check', async () => {
    const files = (await Promise.all(kPages.map((page) => write(page, 'mts')))).flat();
    expect(files.length).toBeGreaterThan(8);
    const tsc = join(kRoot, 'node_modules', 'typescript', 'bin', 'tsc');
    const target = ['--module', 'nodenext', '--lib', 'es2022,esnext.disposable'];
    const types = ['--types', 'node', '--typeRoots', join(kRoot, 'node_modules', '@types')];
    const args = [tsc, '--noEmit', '--skipLibCheck', ...target, ...types, ...files];
    const { status, stdout } = spawnSync(process.execPath, args, { encoding: 'utf8' });
    expect({ status, stdout }).toEqual({ status: 0, stdout: '' });
  });
});
