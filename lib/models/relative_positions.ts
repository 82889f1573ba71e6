/**
 * Buckets of relative positions, for each of which T5 and DeBERTa-v2 learn a vector: one for every short distance, and one for a
 * range of long distances by their logarithm. They are computed in float32 and in the order of the original code, because the
 * last bit may decide the bucket at an edge.
 */

const f = Math.fround;

export interface T5Buckets {
  readonly numBuckets: number;
  readonly maxDistance: number;
  /** Whether half of the buckets are for keys after the query; otherwise all are for keys before it. */
  readonly bidirectional: boolean;
}

/** The bucket of a relative position in T5. @param relative key minus query */
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

/**
 * The bucket of a relative position in DeBERTa-v2, an odd function; it may exceed half of the table, so the caller clamps it.
 * @param relative query minus key
 */
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
