/** The list of export targets, and the table of docs/exporting.md, which says the same. */
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { checkNewOutput } from '../../lib/export/output.ts';
import { EXPORT_TARGETS, OUT_TYPES, outtypeOf } from '../../lib/export/registry.ts';
import { pageText } from '../support/pages.ts';

it('is the table of the page, with what has read each export', () => {
  const rows = EXPORT_TARGETS.map(({ name, title, readers }) => {
    const read = readers.map(
      ({ program, read: version }) => `${program} (${version ?? 'not run'})`,
    );
    return `| \`${name}\` | ${title} | ${read.join(', ')} |`;
  });
  expect(pageText('docs/exporting.md')).toContain(`| --- | --- | --- |\n${rows.join('\n')}\n\n`);
});

it('has types for each target, of which the first is the default', () => {
  for (const target of EXPORT_TARGETS) {
    expect(outtypeOf(target, undefined)).toBe(target.types[0]);
    for (const type of OUT_TYPES) {
      if (target.types.includes(type)) expect(outtypeOf(target, type)).toBe(type);
      else
        expect(() => outtypeOf(target, type)).toThrow(`export to ${target.name}: outtype ${type}`);
    }
  }
});

it('writes over nothing, and removes what killed exports left', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'balora-targets-'));
  const path = join(folder, 'a.gguf');
  // Process ids end far below this one.
  await writeFile(join(folder, 'a.gguf.2147483646-0.tmp'), 'half');
  await writeFile(join(folder, 'b.gguf.2147483646-0.tmp'), 'of another output');
  for (const target of EXPORT_TARGETS) {
    await expect(checkNewOutput('', target.output)).rejects.toThrow(/output must be the path of a/);
    const output = target.output === 'file' ? path : join(folder, 'new');
    await checkNewOutput(output, target.output);
  }
  expect(await readdir(folder)).toEqual(['b.gguf.2147483646-0.tmp']);
  await writeFile(path, 'mine');
  for (const target of EXPORT_TARGETS) {
    const output = target.output === 'file' ? path : folder;
    await expect(checkNewOutput(output, target.output)).rejects.toThrow(/exists|is not empty/);
  }
  await rm(folder, { recursive: true });
});
