// Where the files of test/fixtures come from: programs of tools/fixtures, texts written by hand, or copies of ../shared/golden.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { fixturePath } from '../support/fixtures.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

const files = readdirSync(fixturePath(''), { recursive: true, withFileTypes: true })
  .filter((entry) => entry.isFile() && entry.name !== 'README.md')
  .map((entry) => join(entry.parentPath, entry.name).slice(fixturePath('').length));
const isOwn = (file: string) => file.startsWith('data/');
const isByHand = (file: string) => file.startsWith('scoring/');
const isOfVersion = (file: string) => file.startsWith('checkpoints/');

describe('own fixtures', () => {
  it.each(files.filter(isOwn))('%s is written by a program of tools/fixtures', (file) => {
    const readme = readFileSync('tools/fixtures/README.md', 'utf8');
    const program = new RegExp(`\`(\\w+\\.mjs)\` \\| \`${file.replaceAll('.', '\\.')}\``).exec(
      readme,
    );
    const path = `tools/fixtures/${program?.[1]}`;
    expect(existsSync(path), path).toBe(true);
    expect(readFileSync(path, 'utf8')).toContain(`test/fixtures/${file}`);
  });
});

describe('fixtures that were written by hand', () => {
  it('are listed in the README', () => {
    const readme = readFileSync(fixturePath('README.md'), 'utf8');
    const names = files.filter(isByHand).map((file) => file.replace('scoring/', ''));
    expect(names.length).toBeGreaterThan(5);
    expect(names.filter((name) => !readme.includes(`\`${name}\``))).toEqual([]);
  });
});

describeShared('copied fixtures', ['golden'], () => {
  it('have the bytes of ../shared/golden', () => {
    const copied = files.filter((file) => !isOwn(file) && !isByHand(file) && !isOfVersion(file));
    expect(copied.length).toBeGreaterThan(300);
    const different = copied.filter((file) => {
      const original = sharedPath(`golden/${file}`);
      return (
        !existsSync(original) || !readFileSync(fixturePath(file)).equals(readFileSync(original))
      );
    });
    expect(different).toEqual([]);
  });
});
