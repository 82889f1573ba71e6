/** A batch as a model takes it: unpadded rows of several segments. */

/** A batch of B segments one after the other, N rows in all. See `collate`. */
export interface ModelBatch {
  readonly inputIds: Int32Array; // (N)
  readonly positions: Int32Array; // (N)
  readonly cuSeqlens: Int32Array; // (B+1)
  /** Valid rows of each segment, where segments are padded on the right; the hidden states of padding are meaningless. */
  readonly lengths?: Int32Array; // (B)
  /** The text of a pair that each row belongs to, for models with token types (BERT). Default 0. */
  readonly tokenTypeIds?: Int32Array; // (N)
}
