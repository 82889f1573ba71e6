// Files that are checked as they are read: whatever happens to them in between, what is used are the bytes that were checked.
import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { CHECKSUMS, CheckedFolder, writeChecksums } from '../../lib/io/checksums.ts';
import { saveSafetensors } from '../../lib/io/safetensors.ts';
import { synchronize } from '../../lib/runtime.ts';
import { tensor } from '../../lib/tensor.ts';

const kTensors = 'state.safetensors';
let folder: string;
const at = (name: string): string => join(folder, name);

beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'balora-checksums-'));
  writeFileSync(at('note.json'), '{"a":1}');
  await saveSafetensors(at(kTensors), { x: tensor([1, 2, 3]) });
  await writeChecksums(folder, ['note.json', kTensors]);
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** The file with other values, of the same size. */
const others = (): Buffer => {
  const bytes = readFileSync(at(kTensors));
  bytes.writeFloatLE(9, bytes.length - 4);
  return bytes;
};

describe('a checked folder', () => {
  it('gives the contents of its files', async () => {
    const checked = await CheckedFolder.open(folder);
    expect(await checked.text('note.json')).toBe('{"a":1}');
    const { x } = await checked.tensors(kTensors);
    expect([...((await x?.data()) ?? [])]).toEqual([1, 2, 3]);
    x?.dispose();
  });

  it('refuses files that are others, missing or without a checksum', async () => {
    const checked = await CheckedFolder.open(folder);
    writeFileSync(at('note.json'), '{"a":2}');
    await expect(checked.text('note.json')).rejects.toThrow(/note\.json: its checksum is not the/);
    await expect(checked.verify('note.json')).rejects.toThrow(/its checksum is not the one in/);
    rmSync(at('note.json'));
    await expect(checked.text('note.json')).rejects.toThrow(/note\.json: is missing/);
    await expect(checked.text('more')).rejects.toThrow(/SHA256SUMS has no checksum of more/);
    writeFileSync(at(kTensors), others());
    await expect(checked.tensors(kTensors)).rejects.toThrow(/its checksum is not the one in/);
    writeFileSync(at(kTensors), 'no header');
    await expect(checked.tensors(kTensors)).rejects.toThrow(/its checksum is not the one in/);
    rmSync(at(CHECKSUMS));
    await expect(CheckedFolder.open(folder)).rejects.toThrow(/SHA256SUMS: is missing/);
  });

  it('notices that a file is written to after it was checked and before it is read', async () => {
    const file = await (await CheckedFolder.open(folder)).openTensors(kTensors);
    writeFileSync(at(kTensors), others());
    const read = file.read('x');
    await expect(synchronize()).rejects.toMatchObject({ code: 'ERR_FILE_CHANGED' });
    read.dispose();
    file.close();
  });

  it('reads the file that it checked where another gets its name', async () => {
    const file = await (await CheckedFolder.open(folder)).openTensors(kTensors);
    writeFileSync(at('new'), others());
    renameSync(at('new'), at(kTensors));
    const read = file.read('x');
    expect([...(await read.data())]).toEqual([1, 2, 3]);
    read.dispose();
    file.close();
  });

  it('does not take the checksum of another file for that of the open one', async () => {
    const checked = await CheckedFolder.open(folder);
    const identity = { size: 1n, mtimeNs: 1n, ino: 1n };
    await expect(checked.verify(kTensors, identity)).rejects.toThrow(
      /state\.safetensors: was changed or replaced while it was read; try again/,
    );
  });
});
