/**
 * The teacher on a part of the sequences: it runs on whole sequences (attention needs all of a sequence's rows), each of which is in the
 * part with probability f, and their divergence counts 1/f. So the expected gradient is that of the teacher on all of them.
 */
import { randomWords } from '../data/philox.ts';
import type { SelectedRows } from '../data/select_rows.ts';

/** Counter word that separates these draws from other uses of a seed ("tchr"). */
const kStream = 0x74636872;
const kTwo32 = 2 ** 32;

/** The place of a draw in a run, and the run's seed. */
export interface PartDraw {
  readonly seed: number;
  readonly step: number;
  /** The micro-batch within its step. */
  readonly microBatch: number;
}

/**
 * The sequences on which the teacher runs, ascending: floor or ceil of `fraction` * `count` of them (systematic sampling), each with
 * probability `fraction`.
 */
export function drawnSequences(count: number, fraction: number, draw: PartDraw): number[] {
  const { seed, step, microBatch } = draw;
  const next = randomWords({ seed, stream: (kStream + microBatch) >>> 0, index: step });
  const start = next() / kTwo32;
  const at = (i: number): number => Math.floor(i * fraction + start);
  return Array.from({ length: count }, (_, b) => b).filter((b) => at(b + 1) > at(b));
}

/** Concatenated segments; fields without a value are left out. */
interface Segmented {
  readonly cuSeqlens: Int32Array; // (B+1)
}

/** Fields with a number for each row, and those with one for each sequence. */
const kOfRows = ['inputIds', 'positions', 'targets', 'labels'];
const kOfSequences = ['lengths', 'indices'];

/** Some of the sequences of concatenated segments, as such segments. Other fields stay as they are. */
export function takeSequences<S extends Segmented>(segments: S, chosen: readonly number[]): S {
  const { cuSeqlens } = segments;
  const ranges = chosen.map((b) => [cuSeqlens[b] as number, cuSeqlens[b + 1] as number] as const);
  const ends = [0];
  for (const [begin, end] of ranges) ends.push((ends.at(-1) as number) + end - begin);
  const taken = Object.entries(segments).map(([key, value]) => {
    if (key === 'cuSeqlens') return [key, Int32Array.from(ends)];
    if (!(value instanceof Int32Array)) return [key, value];
    if (kOfSequences.includes(key))
      return [key, Int32Array.from(chosen, (b) => value[b] as number)];
    if (!kOfRows.includes(key)) return [key, value];
    return [
      key,
      Int32Array.from(ranges.flatMap(([begin, end]) => [...value.subarray(begin, end)])),
    ];
  });
  return Object.fromEntries(taken) as S;
}

/** Places of a part among the selected rows of its micro-batch. */
export interface PartRows {
  /** Indices into the selected rows, ascending, of the rows of the chosen sequences. */
  readonly rows: Int32Array;
  /** The other indices, ascending. */
  readonly others: Int32Array;
}

/** Finds the selected rows of chosen sequences (ascending). */
export function partRows(
  { rows }: SelectedRows,
  cuSeqlens: Int32Array,
  chosen: readonly number[],
): PartRows {
  const inPart = (n: number): boolean =>
    chosen.some((b) => n >= (cuSeqlens[b] as number) && n < (cuSeqlens[b + 1] as number));
  const indices = Array.from(rows, (_, i) => i);
  const [chosenRows, others] = [true, false].map((wanted) =>
    Int32Array.from(indices.filter((i) => inPart(rows[i] as number) === wanted)),
  ) as [Int32Array, Int32Array];
  return { rows: chosenRows, others };
}
