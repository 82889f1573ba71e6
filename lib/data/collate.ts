/**
 * Collation of examples into one micro-batch. Targets are shifted here and nowhere else: `targets[n]` is the id that row n must
 * predict, so a segment's first id is never a target and its last row predicts nothing. Segments do not attend to each other:
 * positions restart and cuSeqlens bounds attention, whether the segments are padded, packed or simply concatenated.
 */
import { ArgumentError } from '../errors.ts';
import { kIgnoredTarget } from '../ignored_target.ts';
import { checkKeys } from '../options/call.ts';
import type { Example } from './example.ts';

/** Concatenated segments: N rows, B segments. */
export interface Segments {
  readonly inputIds: Int32Array; // (N)
  /** Position of each row in its own segment. */
  readonly positions: Int32Array; // (N)
  /** First row of each segment, followed by N. */
  readonly cuSeqlens: Int32Array; // (B+1)
}

/** A micro-batch of concatenated segments, N rows in all. */
export interface Batch extends Segments {
  /** The id that each row must predict, or -100. */
  readonly targets: Int32Array; // (N)
  /** Number of valid rows in each segment, only where the segments are padded on the right. */
  readonly lengths?: Int32Array; // (B)
  /** Index of each segment's row in the data. */
  readonly indices?: Int32Array; // (B)
}

/** Options of {@link collate}. */
export interface CollateOptions {
  /**
   * Padding of the segments. `none`: each has its own length; `longest`: all as long as the longest, with `lengths`. Default none.
   */
  padding?: 'none' | 'longest';
  /** The id in padded places; `lengths` decides what is padding, never this id. Default 0. */
  padId?: number;
  indices?: ArrayLike<number>;
}

/** Concatenates examples into one micro-batch. */
export function collate(examples: readonly Example[], options: CollateOptions = {}): Batch {
  checkKeys('collate', options, 'padding padId indices');
  const { padding = 'none', padId = 0, indices } = options;
  const sequences = examples.map(({ ids }) => ids);
  const padTo = padding === 'longest' ? Math.max(...sequences.map(({ length }) => length)) : 0;
  const segments = concatenate(sequences, { padTo, padId });
  const targets = new Int32Array(segments.inputIds.length).fill(kIgnoredTarget);
  examples.forEach(({ ids, supervised }, b) => {
    const start = segments.cuSeqlens[b] as number;
    for (let t = 1; t < ids.length; t++) {
      if (supervised[t]) targets[start + t - 1] = ids[t] as number;
    }
  });
  return {
    ...segments,
    targets,
    lengths: padding === 'longest' ? Int32Array.from(sequences, (ids) => ids.length) : undefined,
    indices: indices && Int32Array.from(indices),
  };
}

/**
 * Concatenates sequences of ids.
 * @param padTo smallest number of rows of a segment; default 0: each has its own length
 * @param padId the id in padded places
 * @throws ArgumentError for no sequence, or one without ids
 */
export function concatenate(
  sequences: readonly Int32Array[],
  { padTo = 0, padId = 0 }: { padTo?: number; padId?: number } = {},
): Segments {
  if (sequences.length === 0 || sequences.some(({ length }) => length === 0)) {
    throw new ArgumentError(
      'collate: there must be at least one example, and at least one token in each',
    );
  }
  const cuSeqlens = new Int32Array(sequences.length + 1);
  sequences.forEach(({ length }, b) => {
    cuSeqlens[b + 1] = (cuSeqlens[b] as number) + Math.max(length, padTo);
  });
  const rows = cuSeqlens[sequences.length] as number;
  const inputIds = new Int32Array(rows).fill(padId);
  const positions = new Int32Array(rows);
  sequences.forEach((ids, b) => {
    const [start, end] = [cuSeqlens[b] as number, cuSeqlens[b + 1] as number];
    inputIds.set(ids, start);
    for (let row = start; row < end; row++) positions[row] = row - start;
  });
  return { inputIds, positions, cuSeqlens };
}
