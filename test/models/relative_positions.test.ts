// Buckets of relative positions against transformers', for distances up to 600.
import { expect, it } from 'vitest';
import { debertaBucket, t5Bucket } from '../../lib/models/relative_positions.ts';
import { goldenArray, goldenArrays } from '../support/golden.ts';
import { architecture } from '../support/golden_checkpoints.ts';

const arrays = goldenArrays(architecture('relative_buckets.safetensors'));
const numbers = (name: string) => Array.from(goldenArray(arrays, name).data, Number);
const relative = numbers('relative');

it.each([true, false])('gives the buckets of T5, bidirectional %s', (bidirectional) => {
  const buckets = { numBuckets: 32, maxDistance: 128, bidirectional };
  const name = `t5.${bidirectional ? 'bidirectional' : 'causal'}.32.128`;
  expect(relative.map((r) => t5Bucket(r, buckets))).toEqual(numbers(name));
});

it('gives the buckets of DeBERTa', () => {
  const buckets = { buckets: 256, maxPosition: 512 };
  // Beyond the largest position the bucket is clamped, and the golden table has 0.
  const inside = (_: number, i: number) => Math.abs(relative[i] as number) < 512;
  const got = relative.filter(inside).map((r) => debertaBucket(r, buckets));
  expect(got).toEqual(numbers('deberta.256.512').filter(inside));
});
