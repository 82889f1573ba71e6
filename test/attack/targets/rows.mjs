// Data files of every format: valid ones, whose rows must be read exactly, and damaged ones.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { openRows } from 'balora';
import { Finding, require } from '../finding.mjs';
import { kFixtures } from '../models.mjs';
import { anyJson, mutateBytes, mutateText } from '../mutations.mjs';

const kEnds = { jsonl: '.jsonl', array: '.json', csv: '.csv', tsv: '.tsv', parquet: '.parquet', text: '.txt' };

const wellFormed = (text) => text.replace(/[\ud800-\udfff]/g, '');
const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

/** Rows and the text of a file that has them. */
const kWriters = {
  jsonl: (random) => {
    const rows = random.several(1, 6, () => ({ prompt: wellFormed(random.text()), n: random.number(), more: anyJson(random) }));
    const texts = rows.map((row) => JSON.stringify(row));
    const gap = () => random.pick(['\n', '\n', '\r\n', '\n\n', '\n \t\n']);
    return { rows: texts.map((text) => JSON.parse(text)), text: texts.reduce((all, text) => all + text + gap(), random.pick(['', '\n', '\ufeff'])) };
  },
  csv: (random) => {
    const cells = random.several(1, 6, () => [0, 1, 2].map(() => wellFormed(random.text())));
    const rows = cells.map(([a, b, c]) => ({ a, b: `x${b}`, c }));
    const lines = cells.map(([a, b, c]) => [quoted(a), quoted(`x${b}`), quoted(c)].join(','));
    return { rows, text: ['a,b,c', ...lines, ''].join(random.pick(['\n', '\r\n'])) };
  },
  tsv: (random) => {
    const clean = () => wellFormed(random.text()).replace(/[\t\r\n]/g, ' ');
    const cells = random.several(1, 6, () => [0, 1].map(() => `${clean()}x`));
    return { rows: cells.map(([a, b]) => ({ a, b })), text: ['a\tb', ...cells.map((row) => row.join('\t')), ''].join(random.pick(['\n', '\r\n'])) };
  },
  array: (random) => ({ rows: null, text: JSON.stringify(anyJson(random)) }),
  text: (random) => ({ rows: null, text: random.several(0, 8, () => random.text()).join('\n') }),
};

function input(random, { parquet }) {
  const format = random.pick(['jsonl', 'jsonl', 'csv', 'csv', 'tsv', 'array', 'text', 'parquet', 'parquet', 'parquet']);
  const name = `rows${kEnds[format]}`;
  if (format === 'parquet') {
    // The footer, which has the structure, is at the end.
    const head = parquet.length - 8 - parquet.readUInt32LE(parquet.length - 8);
    const bytes = random.chance(0.7)
      ? Buffer.concat([parquet.subarray(0, head), mutateBytes(random, parquet.subarray(head))])
      : mutateBytes(random, parquet);
    return { rows: null, files: { [name]: bytes } };
  }
  const { rows, text } = kWriters[format](random);
  if (random.chance(0.35)) return { rows, files: { [name]: text } };
  const bytes = random.chance(0.5) ? mutateText(random, text) : mutateBytes(random, Buffer.from(text));
  return { rows: null, files: { [name]: bytes } };
}

async function run({ rows, files }, _state, folder) {
  const [name] = Object.keys(files);
  let source;
  try {
    source = await openRows(join(folder, name));
  } catch (error) {
    if (rows !== null) throw new Finding(`a valid file was refused: ${error.message}`);
    throw error;
  }
  try {
    require(rows === null || source.length === rows.length, () => `${source.length} rows instead of ${rows.length}`);
    for (let i = 0; i < Math.min(source.length, 200); ++i) {
      const row = await source.row(i);
      require(row !== null && typeof row === 'object', 'a row is no object');
      await source.where(i);
      if (rows === null) continue;
      const [found, expected] = [JSON.stringify(row), JSON.stringify(rows[i])];
      require(found === expected, `row ${i} is ${found} instead of ${expected}`);
    }
  } finally {
    await source.close();
  }
}

export default {
  what: 'data files: JSON Lines, JSON, CSV, TSV, Parquet, text',
  share: 1.5,
  open: async () => {
    const path = join(kFixtures, 'data/rows.parquet');
    // The first process that Node starts leaves it a descriptor of /dev/null for those to come.
    await (await openRows(path)).close();
    return { parquet: readFileSync(path) };
  },
  input,
  run,
  mentions: ({ files }) => Object.keys(files),
  quotes: /rows\.parquet: /,
};
