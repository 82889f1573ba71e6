/**
 * Buckets of relative positions, as T5 and DeBERTa-v2 learn one vector for each: near ones singly, far ones by the
 * logarithm of their distance. Computed in float32, step by step as the checkpoints' own code does, since a bucket's edge
 * may hang on the last bit.
 */

const f = Math.fround;

export interface T5Buckets {
  readonly numBuckets: number;
  readonly maxDistance: number;
  /** Half of the buckets for keys behind the query, half for keys before it; else all for those before. */
  readonly bidirectional: boolean;
}

/** @param relative key minus query */
export function t5Bucket(
  relative: number,
  { numBuckets, maxDistance, bidirectional }: T5Buckets,
): number {
  const buckets = bidirectional ? Math.floor(numBuckets / 2) : numBuckets;
  const first = bidirectional && relative > 0 ? buckets : 0;
  const distance = bidirectional ? Math.abs(relative) : Math.max(-relative, 0);
  const exact = Math.floor(buckets / 2);
  if (distance < exact) return first + distance;
  const share = f(f(Math.log(f(distance / exact))) / f(Math.log(maxDistance / exact)));
  const far = exact + Math.trunc(f(share * (buckets - exact)));
  return first + Math.min(far, buckets - 1);
}

export interface DebertaBuckets {
  /** position_buckets; 0: every distance has a row of its own. */
  readonly buckets: number;
  readonly maxPosition: number;
}

/** @param relative query minus key. @returns odd in `relative`; may exceed the table's half, which clamps it */
export function debertaBucket(relative: number, { buckets, maxPosition }: DebertaBuckets): number {
  const middle = Math.floor(buckets / 2);
  const distance = Math.abs(relative);
  if (buckets <= 0 || distance <= middle) return relative;
  const share = f(f(Math.log(f(distance / middle))) / f(Math.log(f((maxPosition - 1) / middle))));
  const far = Math.ceil(f(share * (middle - 1))) + middle;
  return Math.sign(relative) * far;
}

/**
 * Tabulates a function of the relative position for the longest sequence of a batch: one entry for each key - query
 * from -(length - 1) to length - 1.
 */
export function byRelativePosition(
  length: number,
  value: (keyMinusQuery: number) => number,
): Int32Array {
  return Int32Array.from({ length: 2 * length - 1 }, (_, r) => value(r - (length - 1)));
}
