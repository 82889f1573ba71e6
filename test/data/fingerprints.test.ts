// Fingerprints of data as checkpoints of earlier versions contain them. Such a run can be resumed only while the fingerprints stay
// the same, and is resumed correctly only while the micro-batches do. A change here needs a line in CHANGELOG.md.
import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { Batches, type BatchOptions } from '../../lib/data/batches.ts';
import { LabelledBatches, type LabelledOptions } from '../../lib/data/labelled_batches.ts';
import { arrayRows, type Row } from '../../lib/data/rows.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';
import { tinyWordPiece } from '../support/tiny_wordpiece.ts';

/** The fingerprint, and 16 digits of a digest of all arrays in the micro-batches of two epochs. */
type Stored = readonly [fingerprint: string, batches: string];

/** A digest of all arrays in the micro-batches of two epochs, in their order. */
async function digest(data: Batches | LabelledBatches): Promise<string> {
  const hash = createHash('sha256');
  for (const epoch of [0, 1]) {
    for await (const batch of data.batches(epoch, 0)) {
      for (const [key, values] of Object.entries(batch).sort(([a], [b]) => (a < b ? -1 : 1))) {
        if (values !== undefined) hash.update(`${key} ${values.length};`).update(values);
      }
    }
  }
  return hash.digest('hex').slice(0, 16);
}

const kPairs = Array.from({ length: 9 }, (_, i) => ({
  question: `the ab ${i}`,
  answer: 'xyzvw'.slice(0, 1 + (i % 5)),
}));
const kTurns = [
  {
    messages: [
      { role: 'user', content: 'the ab' },
      { role: 'assistant', content: 'a' },
    ],
  },
  {
    messages: [
      { role: 'user', content: 'b' },
      { role: 'assistant', content: 'the' },
    ],
  },
];
const kPlain = { promptTemplate: 'none' };

const ofPairs: [string, Row[], BatchOptions, Stored][] = [
  [
    'defaults',
    kPairs,
    {},
    ['cb236ce3e0b54f4fc133015c042abd0138addd913d269f6cfea51c0da1ef0a2f', '996cce82626df21e'],
  ],
  [
    'no template',
    kPairs,
    kPlain,
    ['976d109ad4ffbd04faea9ba4cbc00b10254aa9f3cd951ea2dc6f43867ec25a92', 'e8d19c9d9a943383'],
  ],
  [
    'no shuffle',
    kPairs,
    { ...kPlain, shuffle: false, batchSize: 4 },
    ['0704d5354b7b93d6bd750cd402a244a5262d18b3e9a4ab189e518a273abcdfab', '9ba54374553b93a9'],
  ],
  [
    'packed',
    kPairs,
    { ...kPlain, packing: true, maxLength: 32, seed: 7 },
    ['68702a142ad42b4b173472e389d17b9bebe46e2b0fc14f9c5f962bf715d48c57', 'f4f2c5c4b74da6b4'],
  ],
  [
    'padded, some left out',
    kPairs,
    { ...kPlain, padding: 'longest', maxLength: 9 },
    ['0b1183863b342c8fa81eaa8b8055474b8fecc7b45714f13ff69756a6a8b2947e', '8e1c9d3651eaa312'],
  ],
  [
    'conversations',
    kTurns,
    { batchSize: 2 },
    ['c615e09e9ae75acf04fb79df23170dd8e15c51915e72bf174cd67787f07522db', 'c34df98eb489da9f'],
  ],
];

const kTexts = Array.from({ length: 7 }, (_, i) => ({
  sentence1: 'a b c'.slice(0, 1 + 2 * (i % 3)),
  sentence2: 'c b a'.slice(0, 1 + 2 * (i % 2)),
  label: i % 3,
}));
const labelled = (label: (i: number) => unknown): Row[] =>
  kTexts.map(({ sentence1: text }, i) => ({ text, label: label(i) }));

const ofLabels: [string, Row[], LabelledOptions, Stored][] = [
  [
    'pairs of texts',
    kTexts,
    {},
    ['1b560d46df299abe5cb030b1a91c43a896aaaca9cf9b9324608a62132ed57918', 'dfca67dece180ac1'],
  ],
  [
    'cut',
    kTexts,
    { maxLength: 6, batchSize: 3, seed: 9 },
    ['6e1745b90c3e2eefe2b09510ce551597d2fbcf3a1d17059fb36cd28a070646fc', '97aa027118c8ce48'],
  ],
  [
    'by length',
    kTexts,
    { groupByLength: true, batchSize: 2, shuffle: false },
    ['02172b0442159513eafe02731bcde00e922b7af9c0b11a0f0e3032182e9617b5', '8eb2dc6ac620a235'],
  ],
  [
    'by length, shuffled',
    kTexts,
    { groupByLength: true, batchSize: 2 },
    ['23f4b3b2bf0112161473d39e0351f2553a01652b466094b18fab7c609d402c1e', 'c67465cf36e1716c'],
  ],
  [
    'names',
    labelled((i) => ['yes', 'no'][i % 2]),
    {},
    ['5249726c96d0f96ac570e56a5162bce739a16f0e050178448c63d71f968b38d3', '52ec47976fa724ee'],
  ],
  [
    'numbers',
    labelled((i) => i / 4),
    { problemType: 'regression' },
    ['f9f4ee0c09a9403b9566fe36f1335ad202a4c121175cce1e8e41e2643754633b', 'dd65e7603cefa69c'],
  ],
];

describe('fingerprints', () => {
  it.each(ofPairs)('of prompts and responses: %s', async (_, rows, options, stored) => {
    for (const cacheBytes of [undefined, 0]) {
      const given = cacheBytes === undefined ? options : { ...options, cacheBytes };
      const data = await Batches.create(arrayRows(rows), tinyTokenizer(), given);
      expect([data.fingerprint, await digest(data)]).toEqual(stored);
    }
  });

  it.each(ofLabels)('of labelled texts: %s', async (_, rows, options, stored) => {
    const tokenizer = tinyWordPiece(['a', 'b', 'c']);
    const data = await LabelledBatches.create(arrayRows(rows), tokenizer, options);
    expect([data.fingerprint, await digest(data)]).toEqual(stored);
  });
});
