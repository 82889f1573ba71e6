/** Files that are sent: a file of another disk that has the same inode number is another file. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import fs from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { pushedFiles } from '../../lib/io/pushed_files.ts';

const { lstat } = fs;
let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-pushed-'));
  writeFileSync(join(folder, 'README.md'), 'text');
});
afterEach(() => {
  fs.lstat = lstat;
  syncBuiltinESMExports();
  rmSync(folder, { recursive: true, force: true });
});

it.each(['dev', 'ino'] as const)('are refused where another %s is at their place', async (key) => {
  // The place as it is when a disk was mounted over the folder, or a file renamed to it, after the file was opened.
  fs.lstat = (async (...args: Parameters<typeof lstat>) => {
    const info = await lstat(...args);
    return Object.assign(info, { [key]: Number(info[key]) + 1 });
  }) as typeof lstat;
  syncBuiltinESMExports();
  await expect(pushedFiles(folder)).rejects.toThrow(/README\.md: was changed or replaced while/);
  fs.lstat = lstat;
  syncBuiltinESMExports();
  expect((await pushedFiles(folder)).map(({ path }) => path)).toEqual(['README.md']);
});
