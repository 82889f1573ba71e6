/**
 * Examples -> one micro-batch. Targets are shifted here and nowhere else: `targets[n]` is the id that row n must predict, so a
 * segment's first id is nobody's target and its last row predicts nothing. Segments are never seen by each other: positions
 * start again and cuSeqlens bounds attention, whether the segments are padded, packed or simply put one after the other.
 */
import { ArgumentError } from '../errors.ts';
import type { Example } from './example.ts';

/** Target of a row that is not supervised. */
export const kNotSupervised = -100;

/** A micro-batch: segments one after the other, N rows in all. */
export interface Batch {
  readonly inputIds: Int32Array; // (N)
  /** Place of each row in its own segment. */
  readonly positions: Int32Array; // (N)
  /** First row of each segment, and N. */
  readonly cuSeqlens: Int32Array; // (B+1)
  /** The id that each row must predict, or -100. */
  readonly targets: Int32Array; // (N)
  /** Valid rows of each segment, only where the segments are padded on the right. */
  readonly lengths?: Int32Array; // (B)
  /** Index of each segment's row in the data. */
  readonly indices?: Int32Array; // (B)
}

/** Options of {@link collate}. */
export interface CollateOptions {
  /** `none`: segments of their own lengths; `longest`: all as long as the longest, with `lengths`. Default none. */
  padding?: 'none' | 'longest';
  /** The id in padded places; lengths decide what is padding, never this id. Default 0. */
  padId?: number;
  indices?: ArrayLike<number>;
}

/** Puts examples one after the other. */
export function collate(examples: readonly Example[], options: CollateOptions = {}): Batch {
  const { padding = 'none', padId = 0, indices } = options;
  if (examples.length === 0 || examples.some(({ ids }) => ids.length === 0)) {
    throw new ArgumentError('collate: needs at least one example, and none without tokens');
  }
  const longest = Math.max(...examples.map(({ ids }) => ids.length));
  const rowsOf = (example: Example) => (padding === 'longest' ? longest : example.ids.length);
  const cuSeqlens = new Int32Array(examples.length + 1);
  examples.forEach((example, b) => {
    cuSeqlens[b + 1] = (cuSeqlens[b] as number) + rowsOf(example);
  });
  const rows = cuSeqlens[examples.length] as number;
  const inputIds = new Int32Array(rows).fill(padId);
  const targets = new Int32Array(rows).fill(kNotSupervised);
  const positions = new Int32Array(rows);
  examples.forEach((example, b) => {
    const start = cuSeqlens[b] as number;
    inputIds.set(example.ids, start);
    for (let t = 0; t < rowsOf(example); t++) positions[start + t] = t;
    for (let t = 1; t < example.ids.length; t++) {
      if (example.supervised[t]) targets[start + t - 1] = example.ids[t] as number;
    }
  });
  return {
    inputIds,
    positions,
    cuSeqlens,
    targets,
    ...(padding === 'longest'
      ? { lengths: Int32Array.from(examples, ({ ids }) => ids.length) }
      : {}),
    ...(indices ? { indices: Int32Array.from(indices) } : {}),
  };
}
