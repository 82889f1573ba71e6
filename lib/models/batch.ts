/** A batch as a model takes it: unpadded rows of several segments. */

/** Segments one after the other: N rows, B segments. See `collate`. */
export interface ModelBatch {
  readonly inputIds: Int32Array; // (N)
  readonly positions: Int32Array; // (N)
  readonly cuSeqlens: Int32Array; // (B+1)
  /** Valid rows of each segment, where segments are padded on the right; hidden states of the rest mean nothing. */
  readonly lengths?: Int32Array; // (B)
  /** Which text of a pair each row belongs to, for models that tell them apart (BERT); left out: 0. */
  readonly tokenTypeIds?: Int32Array; // (N)
}
