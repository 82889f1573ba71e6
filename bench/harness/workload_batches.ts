/**
 * The micro-batches of a workload: random ids of one length, GSM8K's rows in file order, or, without the file, synthetic rows of
 * the same lengths.
 */
import { Batches } from '../../lib/data/batches.ts';
import { type Batch, collate } from '../../lib/data/collate.ts';
import type { Example } from '../../lib/data/example.ts';
import { JsonlFile } from '../../lib/data/jsonl.ts';
import type { RowSource } from '../../lib/data/rows.ts';
import { ArgumentError } from '../../lib/errors.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import type { BatchSource } from '../../lib/train/types.ts';
import type { Workload } from './types.ts';

/** Unsupervised + supervised tokens of GSM8K's first 64 training rows, by SmolLM2's tokenizer in the recipe's prompt. */
const kGsm8kLengths = `
   68+62 63+67 90+104 85+131 56+78 94+169 91+91 136+118 141+141 97+369 105+149 124+154
   70+93 100+91 60+80 99+219 85+131 109+236 93+145 93+121 102+90 79+130 92+91 86+155
   110+67 123+152 82+96 116+227 79+71 84+210 88+143 93+146 145+91 97+132 72+85 79+86
   77+90 113+186 100+58 108+121 74+201 100+109 95+163 83+124 98+143 116+134 73+178 84+108
   77+44 87+48 100+124 92+163 78+84 89+82 99+134 64+107 91+139 91+164 104+200 118+120
   89+161 126+183 69+124 119+109`
  .trim()
  .split(/\s+/)
  .map((pair): Lengths => {
    const [prompt, response] = pair.split('+').map(Number) as [number, number];
    return [prompt, response];
  });

/** Number of ids that all rows of GSM8K share at their beginning: the recipe's words before the question. */
const kGsm8kBeginning = 24;

const kMaxLength = 512; // the recipe's cut

interface BatchInputs {
  readonly vocabulary: number;
  /** Largest number of micro-batches per epoch; a file may have fewer. */
  readonly count: number;
  /** Model folder or file with the tokenizer, and the JSON Lines file; both are needed for GSM8K's own rows. */
  readonly model?: string | undefined;
  readonly dataFile?: string | undefined;
}

interface WorkloadData {
  readonly source: BatchSource;
  /** Remarks for the reader of the report. */
  readonly notes: readonly string[];
  readonly close: () => Promise<void>;
}

/** The micro-batches of a workload. @throws ArgumentError for a data file without a model */
export async function workloadData(
  { data, batch, length }: Workload,
  { vocabulary, count, model, dataFile }: BatchInputs,
): Promise<WorkloadData> {
  const close = async (): Promise<void> => {};
  const random = (lengths: Lengths[], alike: number, notes: string[]): WorkloadData => {
    const batches = randomBatches(lengths, { batch, vocabulary, alike });
    return { source: listSource(batches), notes, close };
  };
  if (data === 'random') {
    const half = length >> 1;
    return random(Array<Lengths>(count * batch).fill([half, length - half]), 0, []);
  }
  if (dataFile !== undefined) {
    if (model !== undefined) return fileData(dataFile, { model, batch, count });
    throw new ArgumentError('--data needs --model: the rows are encoded by its tokenizer');
  }
  const lengths = Array.from({ length: count * batch }, (_, i) => at(kGsm8kLengths, i));
  return random(lengths, kGsm8kBeginning, [
    "synthetic rows with the lengths of GSM8K's first 64 training rows, beginning alike as these do",
  ]);
}

type Lengths = readonly [prompt: number, response: number];

function at<T>(list: readonly T[], index: number): T {
  return list[index % list.length] as T;
}

async function fileData(
  path: string,
  { model, batch, count }: { model: string; batch: number; count: number },
): Promise<WorkloadData> {
  const tokenizer = await Tokenizer.fromPretrained(model);
  const rows = await JsonlFile.open(path);
  const first: RowSource = {
    length: Math.min(rows.length, count * batch),
    row: (index) => rows.row(index),
    where: (index) => rows.where(index),
    close: () => rows.close(),
  };
  const options = { batchSize: batch, maxLength: kMaxLength, shuffle: false };
  try {
    return {
      source: await Batches.create(first, tokenizer, options),
      notes: [],
      close: () => rows.close(),
    };
  } catch (error) {
    await rows.close();
    throw error;
  }
}

/** Examples of given lengths with ids from a fixed sequence, which all begin with the same ids. */
function randomBatches(
  lengths: readonly Lengths[],
  { batch, vocabulary, alike }: { batch: number; vocabulary: number; alike: number },
): Batch[] {
  const next = randomIds(vocabulary);
  const beginning = Int32Array.from({ length: alike }, next);
  const examples = lengths.map(([prompt, response]): Example => {
    const ids = Int32Array.from({ length: prompt + response }, (_, t) => beginning[t] ?? next());
    const supervised = Uint8Array.from(ids, (_, t) => (t >= prompt ? 1 : 0));
    return { ids, supervised };
  });
  const batches: Batch[] = [];
  for (let i = 0; i < examples.length; i += batch) {
    batches.push(collate(examples.slice(i, i + batch)));
  }
  return batches;
}

/** A linear congruential generator (Numerical Recipes' constants), which gives the same ids on every machine. */
export function randomIds(vocabulary: number): () => number {
  let state = 1;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * vocabulary);
  };
}

export function listSource<B>(batches: readonly B[]): BatchSource<B> {
  return {
    fingerprint: 'bench',
    batchCount: () => batches.length,
    *batches(_, start) {
      yield* batches.slice(start);
    },
  };
}

/** A source that adds up the seconds spent waiting for its micro-batches. */
export class TimedSource<B = Batch> implements BatchSource<B> {
  /** Sum of the seconds so far. */
  seconds = 0;

  constructor(private readonly inner: BatchSource<B>) {}

  get fingerprint(): string {
    return this.inner.fingerprint;
  }

  batchCount(epoch: number): number | Promise<number> {
    return this.inner.batchCount(epoch);
  }

  async *batches(epoch: number, start: number): AsyncGenerator<B> {
    const inner = this.inner.batches(epoch, start);
    let begun = performance.now();
    for await (const batch of inner) {
      this.seconds += (performance.now() - begun) / 1000;
      yield batch;
      begun = performance.now();
    }
  }
}
