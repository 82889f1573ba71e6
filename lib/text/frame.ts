/**
 * The frame that a tokenizer puts around one text or a pair ([CLS] a [SEP] b [SEP]), read from tokenizer.json's post-processor,
 * and the cut that makes both fit. Done here, on ids, because a cut must leave the frame whole.
 */
import { FormatError, UnsupportedError } from '../errors.ts';

type Json = Record<string, unknown>;

/** A text's ids between special tokens, and which of the two texts each belongs to. */
export interface Encoding {
  readonly ids: number[]; // (T)
  /** 0 for the first text, 1 for the second where the model tells them apart (BERT's segments). */
  readonly typeIds: number[]; // (T)
  /** Tokens that were cut off. */
  readonly cut: number;
}

/** A piece of a frame: ids as they stand, or the place of a text. */
type Piece = { ids: number[]; typeId: number } | { text: 'a' | 'b'; typeId: number };

export interface Frame {
  readonly single: readonly Piece[];
  readonly pair: readonly Piece[];
}

/** A model without frame: one text after the other. */
const kBare: Frame = {
  single: [{ text: 'a', typeId: 0 }],
  pair: [
    { text: 'a', typeId: 0 },
    { text: 'b', typeId: 0 },
  ],
};

/**
 * Reads a post-processor. ByteLevel ones change offsets only.
 * @throws UnsupportedError for a kind that is not known; FormatError for a special token without an id
 */
export function readFrame(postProcessor: unknown): Frame {
  if (postProcessor === null || postProcessor === undefined) return kBare;
  const config = postProcessor as Json;
  switch (config.type) {
    case 'ByteLevel':
      return kBare;
    case 'Sequence': {
      const frames = (config.processors as unknown[]).map(readFrame);
      return frames.find((frame) => frame !== kBare) ?? kBare;
    }
    case 'TemplateProcessing':
      return template(config);
    case 'BertProcessing':
      return surrounded(config, { between: 1, typeOfB: 1 });
    case 'RobertaProcessing':
      return surrounded(config, { between: 2, typeOfB: 0 });
    default:
      throw new UnsupportedError(
        `tokenizer: post-processor ${JSON.stringify(config.type)} is not supported`,
      );
  }
}

function template(config: Json): Frame {
  const specials = (config.special_tokens ?? {}) as Record<string, { ids?: number[] }>;
  const pieces = (list: unknown): Piece[] =>
    (list as Record<'SpecialToken' | 'Sequence', { id: string; type_id: number }>[]).map((item) => {
      if (item.Sequence) {
        return { text: item.Sequence.id === 'B' ? 'b' : 'a', typeId: item.Sequence.type_id };
      }
      const { id, type_id: typeId } = item.SpecialToken;
      const ids = specials[id]?.ids;
      if (ids === undefined) {
        throw new FormatError(
          `tokenizer: the post-processor gives no id for ${JSON.stringify(id)}`,
        );
      }
      return { ids, typeId };
    });
  return { single: pieces(config.single), pair: pieces(config.pair) };
}

/** cls a sep, and cls a sep (sep) b sep. */
function surrounded(config: Json, form: { between: 1 | 2; typeOfB: 0 | 1 }): Frame {
  const idOf = (role: 'cls' | 'sep'): number => {
    const id = (config[role] as [string, number] | undefined)?.[1];
    if (typeof id === 'number') return id;
    throw new FormatError(`tokenizer: the post-processor gives no id for ${role}`);
  };
  const [cls, sep] = [idOf('cls'), idOf('sep')];
  const single: Piece[] = [
    { ids: [cls], typeId: 0 },
    { text: 'a', typeId: 0 },
    { ids: [sep], typeId: 0 },
  ];
  const second: Piece[] = [
    ...(form.between === 2 ? [{ ids: [sep], typeId: 0 }] : []),
    { text: 'b', typeId: form.typeOfB },
    { ids: [sep], typeId: form.typeOfB },
  ];
  return { single, pair: [...single, ...second] };
}

/** Ids of the frame itself, around one text or two. */
export function frameLength(frame: Frame, texts: 1 | 2): number {
  const pieces = texts === 1 ? frame.single : frame.pair;
  return pieces.reduce((sum, piece) => sum + ('ids' in piece ? piece.ids.length : 0), 0);
}

/**
 * Puts one text or two into the frame.
 * @param maxLength of the whole; the texts are cut at their ends, the longer one first
 */
export function applyFrame(
  frame: Frame,
  a: readonly number[],
  b: readonly number[] | null,
  maxLength = Number.POSITIVE_INFINITY,
): Encoding {
  const room = Math.max(0, maxLength - frameLength(frame, b === null ? 1 : 2));
  const [lengthA, lengthB] = b === null ? [Math.min(a.length, room), 0] : longestFirst(a, b, room);
  const texts = { a: a.slice(0, lengthA), b: b?.slice(0, lengthB) ?? [] };
  const ids: number[] = [];
  const typeIds: number[] = [];
  for (const piece of b === null ? frame.single : frame.pair) {
    const part = 'ids' in piece ? piece.ids : texts[piece.text];
    for (const id of part) {
      ids.push(id);
      typeIds.push(piece.typeId);
    }
  }
  return { ids, typeIds, cut: a.length - lengthA + ((b?.length ?? 0) - lengthB) };
}

/**
 * Lengths of two texts that share `room` tokens, as Hugging Face's `longest_first` cuts them: the shorter text stays whole while
 * it fits, else both get half (an odd token goes to the longer one).
 */
function longestFirst(
  a: readonly number[],
  b: readonly number[],
  room: number,
): [a: number, b: number] {
  if (a.length + b.length <= room) return [a.length, b.length];
  const shorter = Math.min(a.length, b.length);
  const half = Math.floor(room / 2);
  const [less, more] = shorter <= half ? [shorter, room - shorter] : [half, room - half];
  return a.length <= b.length ? [less, more] : [more, less];
}
