// Files with the records of scored items: what was changed in them is scored again, or refused.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { ItemRecords } from '../../lib/cli/item_records.ts';
import { ArgumentError } from '../../lib/errors.ts';

let folder: string;
let path: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-records-'));
  path = join(folder, 'task.jsonl');
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const identity = { task: 'task', version: 1, dtype: null };
const open = () => ItemRecords.open(folder, 'task', identity);
const record = { index: 0, isCut: false, metrics: { acc: 1 }, gold: [1], prediction: 1 };
const choices = [{ text: 'a', loglikelihood: -1.5, isGreedy: true }];

async function write(...values: unknown[]): Promise<void> {
  const lines = [{ scored: identity }, ...values].map((value) => JSON.stringify(value));
  writeFileSync(path, `${lines.join('\n')}\n`);
}

it('are read again', async () => {
  await write(record, { ...record, index: 1, choices });
  const records = await open();
  expect([...records.done.values()]).toEqual([record, { ...record, index: 1, choices }]);
  await records.close();
});

it.each([
  ['an index that is none', { ...record, index: '1' }],
  ['no index', { isCut: false, metrics: {} }],
  ['numbers that are none', { ...record, index: 1, metrics: { acc: { toString: 1 } } }],
  [
    'a likelihood that is a text',
    { ...record, index: 1, choices: [{ ...choices[0], loglikelihood: '-Infinity' }] },
  ],
  ['no object', [record]],
])('are left out with %s', async (_, changed) => {
  await write(record, changed);
  const records = await open();
  expect([...records.done.values()]).toEqual([record]);
  await records.close();
  expect(readFileSync(path, 'utf8').trim().split('\n')).toHaveLength(2);
});

it.each([null, 5, { task: { toString: 1 } }])('of %j are refused', async (scored) => {
  writeFileSync(path, `${JSON.stringify({ scored })}\n`);
  await expect(open()).rejects.toThrow(ArgumentError);
  await expect(open()).rejects.toThrow(
    /task\.jsonl (is no file of records|has records of another)/,
  );
});
