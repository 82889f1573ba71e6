import { describe, expect, it } from 'vitest';
import { Batches } from '../../lib/data/batches.ts';
import { type CorruptedColumns, CorruptedRows, corruptRows } from '../../lib/data/corruption.ts';
import type { CorruptionOptions } from '../../lib/data/corruption_options.ts';
import { LabelledBatches } from '../../lib/data/labelled_batches.ts';
import { mixRows } from '../../lib/data/mixed_rows.ts';
import { openRows } from '../../lib/data/open_rows.ts';
import { arrayRows, type Row, type RowSource } from '../../lib/data/rows.ts';
import { Seq2SeqBatches } from '../../lib/data/seq2seq_batches.ts';
import { describeShared, sharedPath } from '../support/shared.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';
import { tinyWordPiece } from '../support/tiny_wordpiece.ts';

const kText = 'the quick brown fox jumps over the lazy dog';
/** 40 rows of the class 0 and 20 of the class 1. */
const kRows: Row[] = Array.from({ length: 60 }, (_, i) => ({
  text: `${i} ${kText}`,
  label: Number(i % 3 === 0),
}));
const kColumns: CorruptedColumns[] = [{ texts: ['text'], label: 'label' }];

async function all(rows: RowSource): Promise<Row[]> {
  const found: Row[] = [];
  for (let i = 0; i < rows.length; i++) found.push(await rows.row(i));
  return found;
}

const countsOf = (rows: RowSource) => (rows instanceof CorruptedRows ? rows.counts : undefined);

async function corrupted(corruption: CorruptionOptions, rows = kRows, seed = 1) {
  const made = await corruptRows(arrayRows(rows), kColumns, { corruption, seed });
  return { rows: await all(made), counts: countsOf(made), source: made };
}

const differing = (rows: readonly Row[], field: string): number =>
  rows.filter((row, i) => row[field] !== kRows[i]?.[field]).length;

describe('corrupted rows', () => {
  it('have the asked share of labels replaced, each by another one', async () => {
    const { rows, counts } = await corrupted({ labelNoise: 0.25 });
    expect(differing(rows, 'label')).toBe(15);
    expect(counts).toEqual({
      ...{ seed: 1, rows: 60, removedRows: 0, replacedLabels: 15, duplicatedRows: 0 },
      changedWords: 0,
    });
    const every = await corrupted({ labelNoise: 1 });
    expect(every.rows.every(({ label }, i) => label === 1 - (kRows[i]?.label as number))).toBe(
      true,
    );
  });

  it('replace a label by all others alike, in the spelling of the data', async () => {
    const many = Array.from({ length: 3000 }, (_, i) => ({ text: 'a', label: 'xyz'[i % 3] }));
    const { rows } = await corrupted({ labelNoise: 1 }, many);
    const ofX = rows.filter((_, i) => i % 3 === 0).map(({ label }) => label);
    const y = ofX.filter((label) => label === 'y').length;
    expect(y + ofX.filter((label) => label === 'z').length).toBe(1000);
    // 500, with a standard deviation of 16.
    expect(Math.abs(y - 500)).toBeLessThan(80);
  });

  it('have a rare class of the asked ratio, of which the seed chooses the rows', async () => {
    const { rows, counts } = await corrupted({ classImbalance: 8 });
    expect(rows.filter(({ label }) => label === 1)).toHaveLength(5);
    expect(rows.filter(({ label }) => label === 0)).toHaveLength(40);
    expect(counts?.removedRows).toBe(15);
    const other = await corrupted({ classImbalance: 8, rareClass: '0' });
    expect(other.rows.filter(({ label }) => label === 0)).toHaveLength(3);
    const seed2 = await corrupted({ classImbalance: 8 }, kRows, 2);
    expect(seed2.rows).not.toEqual(rows);
  });

  it('come twice, exactly alike, with the noise of their texts', async () => {
    const { rows, counts } = await corrupted({ duplicateRows: 0.1, textNoise: 0.5 });
    expect(rows).toHaveLength(66);
    expect(counts?.duplicatedRows).toBe(6);
    expect(new Set(rows.map((row) => JSON.stringify(row))).size).toBe(60);
    expect(counts?.changedWords).toBeGreaterThan(200);
  });

  it('are the same for the same seed, in any order of reading, and others for another one', async () => {
    const options = { labelNoise: 0.3, classImbalance: 4, textNoise: 0.2, duplicateRows: 0.2 };
    const first = await corrupted(options);
    expect((await corrupted(options)).rows).toEqual(first.rows);
    expect((await corrupted({ ...options, corruptionSeed: 1 }, kRows, 9)).rows).toEqual(first.rows);
    expect((await corrupted({ ...options, corruptionSeed: 2 })).rows).not.toEqual(first.rows);
    const rows = await corruptRows(arrayRows(kRows), kColumns, {
      corruption: options,
      seed: 1,
    });
    for (let i = rows.length - 1; i >= 0; i--) expect(await rows.row(i)).toEqual(first.rows[i]);
    expect(await rows.where(rows.length - 1)).toBe('row 59');
  });

  it('have noise in messages and prompts, never in roles', async () => {
    const messages = [
      { role: 'user', content: kText },
      { role: 'assistant', content: [{ type: 'text', text: kText }] },
    ];
    const rows = await corruptRows(
      arrayRows([{ messages, history: [[kText, kText]], other: kText }]),
      [{ texts: ['messages', 'history'] }],
      { corruption: { textNoise: 1, textNoiseKinds: ['shuffle'] }, seed: 3 },
    );
    const row = await rows.row(0);
    const text = JSON.stringify(row);
    expect(text).toContain('"role":"user"');
    expect(row.other).toBe(kText);
    expect(text.split(kText)).toHaveLength(2);
    expect(text.match(/lazy/g)).toHaveLength(5);
  });

  it('keep the files that they come from', async () => {
    const source = mixRows([arrayRows(kRows), arrayRows(kRows.slice(0, 6))], [1, 1]);
    const rows = await corruptRows(source, [...kColumns, ...kColumns], {
      corruption: { classImbalance: 8, duplicateRows: 0.5 },
      seed: 1,
    });
    const [first, second] = rows.files ?? [];
    expect([first?.start, second?.start]).toEqual([0, first?.length]);
    expect((first?.length ?? 0) + (second?.length ?? 0)).toBe(rows.length);
    expect([first?.weight, second?.weight]).toEqual([1, 1]);
  });

  it.each<[CorruptionOptions, RegExp]>([
    [{ labelNoise: 1.5 }, /labelNoise must be a number >= 0 and <= 1, got 1\.5/],
    [{ rareClass: '1' }, /rareClass needs classImbalance/],
    [{ textNoiseKinds: ['drop'] }, /textNoiseKinds needs textNoise/],
    [{ textNoise: 0.1, textNoiseKinds: ['swap'] }, /textNoiseKinds must be among typos, drop, shu/],
    [{ corruptionSeed: 3 }, /corruptionSeed needs a corruption/],
    [
      { classImbalance: 2 },
      /classImbalance 2 leaves 20 rows of the class 1, and there are only 20/,
    ],
    [{ classImbalance: 9, rareClass: 'x' }, /rareClass must be one of .* \(0, 1\), got "x"/],
    [{ label_noise: 1 } as never, /there is no option label_noise; there are labelNoise, /],
  ])('are refused: %j', async (options, refusal) => {
    await expect(corrupted(options)).rejects.toThrow(refusal);
  });

  it('are refused where a label is no class', async () => {
    await expect(corrupted({ labelNoise: 0.1 }, [{ text: 'a', label: 0.5 }])).rejects.toThrow(
      /^row 0: field 'label': labelNoise and classImbalance are for rows with one class each/,
    );
    await expect(corrupted({ labelNoise: 0.1 }, [{ text: 'a', label: 1 }])).rejects.toThrow(
      'labelNoise needs rows of two classes or more, and all have the label 1',
    );
  });
});

describe('corruptions of the data of a task', () => {
  it('are counted, told and in the fingerprint', async () => {
    const warnings: string[] = [];
    const options = { onWarning: ({ message }: { message: string }) => warnings.push(message) };
    const create = (corruption: CorruptionOptions | undefined) =>
      LabelledBatches.create(arrayRows(kRows), tinyWordPiece(['the']), {
        ...options,
        ...(corruption && { corruption }),
      });
    const plain = await create(undefined);
    const data = await create({ labelNoise: 0.1, classImbalance: 8 });
    expect(data.statistics.examples).toBe(45);
    expect(data.statistics.corruption).toMatchObject({ removedRows: 15, replacedLabels: 5 });
    expect(warnings).toEqual([
      'corrupted on purpose, with seed 42: 15 of 60 rows left out, 5 labels replaced, 0 rows doubled, 0 words changed',
    ]);
    expect(data.fingerprint).toBe(
      (await create({ labelNoise: 0.1, classImbalance: 8 })).fingerprint,
    );
    expect(data.fingerprint).not.toBe(plain.fingerprint);
    // Settings are a part of it even where they change nothing.
    const idle = await create({ labelNoise: 0.001 });
    expect(idle.statistics.corruption?.replacedLabels).toBe(0);
    expect(idle.fingerprint).not.toBe(plain.fingerprint);
    expect((await create({ labelNoise: 0 })).fingerprint).toBe(plain.fingerprint);
    expect(plain.statistics.corruption).toBeUndefined();
  });

  it('concern prompts and responses, and labels of labelled rows alone', async () => {
    const pairs = arrayRows(kRows.map(({ text }) => ({ prompt: text, completion: kText })));
    const options = { corruption: { textNoise: 0.3, duplicateRows: 0.5 } };
    const batches = await Batches.create(pairs, tinyTokenizer(), options);
    expect(batches.statistics).toMatchObject({ examples: 90, corruption: { duplicatedRows: 30 } });
    const seq2seq = await Seq2SeqBatches.create(pairs, tinyTokenizer(), {
      ...options,
      decoderStartTokenId: 0,
    });
    expect(seq2seq.statistics.corruption).toEqual(batches.statistics.corruption);
    await expect(
      Batches.create(pairs, tinyTokenizer(), { corruption: { labelNoise: 0.5 } }),
    ).rejects.toThrow(/labelNoise and classImbalance are for labelled rows; leave them out/);
  });
});

describeShared('corruptions of SST-2', ['data/sst2'], () => {
  it('have the asked shares in 6,920 rows', async () => {
    const rows = await openRows(sharedPath('data/sst2/train.tsv'), {
      columns: ['label', 'sentence'],
    });
    const made = await corruptRows(rows, [{ texts: ['sentence'], label: 'label' }], {
      corruption: { labelNoise: 0.2, classImbalance: 10, textNoise: 0.1, rareClass: '0' },
    });
    const found = await all(made);
    const counts = countsOf(made);
    expect(found.length).toBe(rows.length - (counts?.removedRows ?? 0));
    expect(counts?.replacedLabels).toBe(Math.round(0.2 * found.length));
    const words = found.reduce((sum, { sentence }) => sum + `${sentence}`.split(' ').length, 0);
    expect((counts?.changedWords ?? 0) / words).toBeGreaterThan(0.09);
    expect((counts?.changedWords ?? 0) / words).toBeLessThan(0.11);
  });
});
