/**
 * The micro-batches of an encoder's row: SST-2's training rows in file order, or random ids and labels with the lengths of its
 * first rows.
 */
import { type LabelledBatch, LabelledBatches } from '../../lib/data/labelled_batches.ts';
import { openRows } from '../../lib/data/open_rows.ts';
import type { RowSource } from '../../lib/data/rows.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import type { BatchSource } from '../../lib/train/types.ts';
import type { Workload } from './types.ts';
import { listSource, randomIds } from './workload_batches.ts';

/** Tokens of SST-2's first 400 training rows by all-MiniLM-L6-v2's tokenizer, [CLS] and [SEP] included. */
const kSst2Lengths = `
   20 16 45 22 25 21 21 17 28 7 22 24 29 16 18 20 22 27 11 19 22 11 23 44 35 24 27 4 25 11 36 5 11
   14 12 10 23 26 25 13 9 17 20 34 31 12 12 30 34 6 14 45 18 10 21 8 39 15 40 29 27 14 20 54 28 31
   18 27 25 26 17 9 35 27 26 11 26 38 34 15 6 34 16 17 8 19 37 16 12 10 31 14 18 20 23 7 26 42 11
   12 14 22 17 28 4 11 21 29 43 10 17 39 13 12 28 24 14 25 26 27 13 16 32 43 22 17 28 21 24 31 11
   10 8 12 16 30 22 29 18 6 10 7 25 26 36 26 45 12 13 21 28 13 23 20 31 30 22 26 19 39 16 24 29 14
   47 24 26 14 30 7 22 20 11 26 26 16 14 16 18 22 31 15 42 26 17 26 28 29 24 21 16 28 22 35 19 15
   24 31 24 12 28 16 39 10 24 11 24 33 35 28 23 24 37 25 8 18 34 33 17 36 35 26 34 34 17 44 27 15
   46 11 35 27 25 25 45 28 39 30 25 13 27 23 38 23 10 17 16 50 10 26 44 22 32 14 13 26 7 8 40 36
   29 30 26 12 9 9 28 40 30 21 29 42 13 26 33 21 25 20 14 11 26 22 29 20 21 31 15 11 49 29 20 36 4
   17 34 7 11 24 37 10 22 30 10 34 33 18 9 36 26 19 34 35 24 18 29 17 54 14 23 14 24 16 14 14 13
   32 20 19 18 23 27 35 28 26 13 3 36 14 7 13 17 30 17 35 27 23 26 13 14 20 47 28 34 21 28 12 21
   28 52 28 21 19 36 26 27 11 30 24 13 28 24 49 28 21 9 34 6 30 11 25 15 19 24 24 22 25 24 9 30 33
   39 31 12 37 34 50 23 15 15 40
`
  .trim()
  .split(/\s+/)
  .map(Number);

interface EncoderData {
  readonly source: BatchSource<LabelledBatch>;
  readonly notes: readonly string[];
}

/**
 * @param count micro-batches of an epoch
 * @param files the encoder's folder, with its tokenizer, and SST-2's train.tsv (label, sentence); both or neither
 */
export async function encoderData(
  { batch, length: maxLength }: Workload,
  { vocabulary, count, files }: { vocabulary: number; count: number; files: EncoderFiles | null },
): Promise<EncoderData> {
  if (files === null) {
    const note = "synthetic rows with the lengths of SST-2's first 400 training rows";
    return { source: listSource(randomBatches(batch, count, vocabulary)), notes: [note] };
  }
  const tokenizer = await Tokenizer.fromPretrained(files.model);
  const rows = await openRows(files.data, { columns: ['label', 'sentence'] });
  const first: RowSource = {
    length: Math.min(rows.length, count * batch),
    row: (index) => rows.row(index),
    where: (index) => rows.where(index),
    close: () => rows.close(),
  };
  const options = { batchSize: batch, maxLength, numLabels: 2, shuffle: false };
  try {
    return { source: await LabelledBatches.create(first, tokenizer, options), notes: [] };
  } finally {
    await rows.close();
  }
}

/** Files of a real encoder and its data, instead of random numbers. */
export interface EncoderFiles {
  readonly model: string;
  readonly data: string;
}

function randomBatches(batch: number, count: number, vocabulary: number): LabelledBatch[] {
  const next = randomIds(vocabulary);
  return Array.from({ length: count }, (_, index) => {
    const lengths = Array.from(
      { length: batch },
      (_, b) => kSst2Lengths[(index * batch + b) % kSst2Lengths.length] as number,
    );
    const cuSeqlens = new Int32Array(batch + 1);
    lengths.forEach((length, b) => {
      cuSeqlens[b + 1] = (cuSeqlens[b] as number) + length;
    });
    const tokens = cuSeqlens[batch] as number;
    return {
      inputIds: Int32Array.from({ length: tokens }, next),
      positions: Int32Array.from(lengths.flatMap((length) => [...Array(length).keys()])),
      cuSeqlens,
      tokenTypeIds: new Int32Array(tokens),
      labels: Int32Array.from({ length: batch }, () => next() % 2),
      indices: Int32Array.from({ length: batch }, (_, b) => index * batch + b),
    };
  });
}
