// Inputs on the disk. An input is an object of plain values; `files` has the files that it consists of, by their paths.
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

/** Writes the files of an input into a folder. */
export function writeFiles(folder, { files = {} }) {
  for (const [name, contents] of Object.entries(files)) {
    const path = join(folder, name);
    mkdirSync(dirname(path), { recursive: true });
    writeFileSync(path, contents);
  }
}

/** Saves an input for a person: its files, and everything else as JSON. */
export function saveInput(folder, input) {
  mkdirSync(folder, { recursive: true });
  writeFiles(folder, input);
  const { files: _, ...rest } = input;
  const plain = (_key, value) => (typeof value === 'bigint' ? `${value}n` : typeof value === 'function' ? String(value) : value);
  writeFileSync(join(folder, 'input.json'), `${JSON.stringify(rest, plain, 2)}\n`);
}
