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
  writeFileSync(join(folder, 'input.json'), `${jsonOf(input)}\n`);
}

/** An input without its files as JSON, with the values that JSON does not have as texts. */
function jsonOf({ files: _, ...rest }) {
  const plain = (_key, value) => {
    if (typeof value === 'bigint') return `${value}n`;
    if (value?.type === 'Buffer') return Buffer.from(value.data).toString('base64');
    return ['function', 'undefined'].includes(typeof value) || Number.isNaN(value) ? String(value) : value;
  };
  return JSON.stringify(rest, plain, 2);
}

/** Everything of an input as one text, to look for words in. */
export const textOf = (input) => [jsonOf(input), ...Object.values(input.files ?? {}).map((contents) => Buffer.from(contents).toString('latin1'))].join('\n');
