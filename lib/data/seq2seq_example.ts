/**
 * Examples of an encoder-decoder, which are the ids that the encoder reads and those that the decoder is to write, each with its
 * end, and their collation into a micro-batch with a text for either side.
 */
import { ArgumentError } from '../errors.ts';
import { checkKeys } from '../options/call.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { concatenate, type Segments } from './collate.ts';

/** A source and its target, both with the tokenizer's special tokens. */
export interface Seq2SeqExample {
  readonly source: Int32Array; // (M)
  /** Ids of the target, without the decoder's start token. */
  readonly target: Int32Array; // (N)
}

/** A micro-batch: segment b of the decoder reads segment b of the encoder. The encoder's rows are in the object itself. */
export interface Seq2SeqExamples extends Segments {
  readonly decoder: Segments & {
    /** The id that each row of the decoder must predict. */
    readonly targets: Int32Array; // (N)
  };
  /** Index of each segment's row in the data. */
  readonly indices: Int32Array; // (B)
}

/** Largest number of tokens on either side, special ones included. */
export interface Seq2SeqLengths {
  readonly maxSourceLength: number;
  readonly maxTargetLength: number;
}

/**
 * Encodes both texts as ids. A text that is too long is cut before its special tokens, as with transformers' `truncation=True`, so
 * that it still ends in `</s>`. Where the tokenizer appends no EOS token, one is appended, as transformers' T5 tokenizer does.
 * @returns the example, and for each side whether it was cut
 * @throws ArgumentError if the tokenizer names no EOS token, or a length leaves no room for a text
 */
export function encodeSeq2Seq(
  tokenizer: Tokenizer,
  [source, target]: readonly [source: string, target: string],
  lengths: Seq2SeqLengths,
): { example: Seq2SeqExample; cut: readonly [source: boolean, target: boolean] } {
  checkKeys('encodeSeq2Seq', lengths, 'maxSourceLength maxTargetLength');
  const { maxSourceLength, maxTargetLength } = lengths;
  const [from, to] = [
    withEnd(tokenizer, source, maxSourceLength),
    withEnd(tokenizer, target, maxTargetLength),
  ];
  return { example: { source: from.ids, target: to.ids }, cut: [from.cut, to.cut] };
}

function withEnd(
  tokenizer: Tokenizer,
  text: string,
  maxLength: number,
): { ids: Int32Array; cut: boolean } {
  const { eosId } = tokenizer;
  if (eosId === null) {
    throw new ArgumentError(
      'tokenizer: without an end-of-sequence token, targets could not end; name the eos_token in tokenizer_config.json',
    );
  }
  const { ids, cut } = tokenizer.encodePair(text, null, { maxLength });
  if (ids.at(-1) === eosId) return { ids: Int32Array.from(ids), cut: cut > 0 };
  // The tokenizer appends no EOS token, so one token less of the text has room.
  const kept = ids.slice(0, maxLength - 1);
  return { ids: Int32Array.from([...kept, eosId]), cut: cut > 0 || kept.length < ids.length };
}

/**
 * Concatenates examples, unpadded. The decoder reads its start token and the target without its last token, and row t of it must
 * predict token t: the shift happens here and nowhere else.
 * @param options decoderStartTokenId: see `Seq2SeqLM.decoderStartTokenId`; indices: index of each example's row in the data
 * @throws ArgumentError for no example, or a side without tokens
 */
export function collateSeq2Seq(
  examples: readonly Seq2SeqExample[],
  options: { decoderStartTokenId: number; indices: ArrayLike<number> },
): Seq2SeqExamples {
  checkKeys('collateSeq2Seq', options, 'decoderStartTokenId indices');
  const { decoderStartTokenId, indices } = options;
  const source = concatenate(examples.map((example) => example.source));
  const { inputIds: targets, ...places } = concatenate(examples.map(({ target }) => target));
  const inputIds = new Int32Array(targets.length);
  inputIds.set(targets.subarray(0, -1), 1);
  for (const start of places.cuSeqlens.subarray(0, -1)) inputIds[start] = decoderStartTokenId;
  return {
    ...source,
    decoder: { inputIds, ...places, targets },
    indices: Int32Array.from(indices),
  };
}
