import { expect, it } from 'vitest';
import type { Batch } from '../../lib/data/collate.ts';
import { realRows, rowSets, selectedRows, supervisedRows } from '../../lib/data/row_selection.ts';

/** Two segments, the first padded: rows 0..4 (4 real) and 5..9. */
const batch: Batch = {
  inputIds: Int32Array.of(1, 2, 3, 4, 0, 5, 6, 7, 8, 9),
  positions: Int32Array.of(0, 1, 2, 3, 4, 0, 1, 2, 3, 4),
  cuSeqlens: Int32Array.of(0, 5, 10),
  lengths: Int32Array.of(4, 5),
  targets: Int32Array.of(-100, 3, 4, -100, -100, -100, -100, 8, 9, -100),
};

it('selects rows by kind, never across segments or into padding', () => {
  expect([...supervisedRows(batch)]).toEqual([1, 2, 7, 8]);
  expect([...selectedRows(batch, 'supervised')]).toEqual([1, 2, 7, 8]);
  expect([...selectedRows(batch, 'non_padding')]).toEqual([0, 1, 2, 3, 5, 6, 7, 8, 9]);
  expect([...selectedRows(batch, 'label_aligned')]).toEqual([2, 3, 8, 9]);
  expect(realRows(batch, 0)).toEqual({ begin: 0, end: 4, tokens: 4 });
});

it('puts task and regularizer rows together once', () => {
  const same = rowSets(batch, 'supervised');
  expect(same.regularized).toBeNull();
  expect([...same.targets]).toEqual([3, 4, 8, 9]);
  const aligned = rowSets(batch, 'label_aligned');
  expect([...aligned.rows]).toEqual([1, 2, 3, 7, 8, 9]);
  expect([...aligned.targets]).toEqual([3, 4, -100, 8, 9, -100]);
  expect([...(aligned.regularized as Uint8Array)]).toEqual([0, 1, 1, 0, 1, 1]);
  expect([...(aligned.regularizedPlaces as Int32Array)]).toEqual([1, 2, 4, 5]);
  expect([...rowSets(batch, null).rows]).toEqual([1, 2, 7, 8]);
});
