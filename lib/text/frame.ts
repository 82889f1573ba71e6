/**
 * The frame of special tokens that a tokenizer puts around one text or a pair ([CLS] a [SEP] b [SEP]), as tokenizer.json's
 * post-processor describes it, and the truncation of the texts. Both are done here, on ids, because truncation must not remove
 * special tokens.
 */
import { z } from 'zod';
import { UnsupportedError } from '../errors.ts';
import { shown } from '../shown.ts';
import { kMaxId, malformed } from './tokenizer_checks.ts';

type Json = Record<string, unknown>;

/** The ids of one text or two, between special tokens. */
export interface Encoding {
  readonly ids: number[]; // (T)
  /** Token types: 1 for the second text where the model distinguishes the two (BERT's segments), else 0. */
  readonly typeIds: number[]; // (T)
  /** Number of tokens that were cut off. */
  readonly cut: number;
}

/** A part of a frame: ids of special tokens, or the place of a text. */
type FramePart = { ids: number[]; typeId: number } | { text: 'a' | 'b'; typeId: number };

/** The frames of one text and of a pair. */
export interface Frame {
  readonly single: readonly FramePart[];
  readonly pair: readonly FramePart[];
}

/** The frame of a tokenizer that adds no special tokens: one text after the other. */
const kTextsOnly: Frame = {
  single: [{ text: 'a', typeId: 0 }],
  pair: [
    { text: 'a', typeId: 0 },
    { text: 'b', typeId: 0 },
  ],
};

/**
 * Reads the frame from a post-processor. One of type ByteLevel adds no tokens, since it changes offsets only.
 * @throws UnsupportedError for a kind that is not known; FormatError for a special token without an id
 */
export function readFrame(postProcessor: unknown): Frame {
  if (postProcessor === null || postProcessor === undefined) return kTextsOnly;
  const config = checked(kProcessor, postProcessor);
  switch (config.type) {
    case 'ByteLevel':
      return kTextsOnly;
    case 'Sequence': {
      const frames = checked(kSequence, config).processors.map(readFrame);
      const [frame = kTextsOnly, ...others] = frames.filter((one) => one !== kTextsOnly);
      if (others.length === 0) return frame;
      throw new UnsupportedError(
        'tokenizer: several post-processors that add special tokens are not supported; write them in tokenizer.json as one ' +
          'TemplateProcessing',
      );
    }
    case 'TemplateProcessing':
      return template(config);
    case 'BertProcessing':
      return bertFrame(config, { between: 1, typeOfB: 1 });
    case 'RobertaProcessing':
      return bertFrame(config, { between: 2, typeOfB: 0 });
    default:
      throw new UnsupportedError(
        `tokenizer: post-processor ${shown(config.type)} is not supported; write it in tokenizer.json as ` +
          'TemplateProcessing',
      );
  }
}

const tokenId = z.int().nonnegative().max(kMaxId);
const kProcessor = z.looseObject({ type: z.string() });
const kSequence = z.looseObject({ processors: z.array(z.unknown()) });
const kPart = z.union([
  z.object({ SpecialToken: z.object({ id: z.string(), type_id: tokenId }) }),
  z.object({ Sequence: z.object({ id: z.enum(['A', 'B']), type_id: tokenId }) }),
]);
const kTemplate = z.looseObject({
  single: z.array(kPart),
  pair: z.array(kPart),
  special_tokens: z.record(z.string(), z.looseObject({ ids: z.array(tokenId) })).default({}),
});

/** Checks a part of the post-processor. @throws FormatError naming the field */
function checked<T>(schema: z.ZodType<T>, value: unknown): T {
  const { data, error } = schema.safeParse(value);
  const issue = error?.issues[0];
  if (issue === undefined) return data as T;
  const field = ['post_processor', ...issue.path].join('.');
  throw malformed(`${field}: ${issue.message}`);
}

function template(config: Json): Frame {
  const { single, pair, special_tokens: specials } = checked(kTemplate, config);
  const parts = (list: typeof single): FramePart[] =>
    list.map((item) => {
      if ('Sequence' in item) {
        return { text: item.Sequence.id === 'B' ? 'b' : 'a', typeId: item.Sequence.type_id };
      }
      const { id, type_id: typeId } = item.SpecialToken;
      const ids = Object.hasOwn(specials, id) ? specials[id]?.ids : undefined;
      if (ids === undefined) {
        throw malformed(`the post-processor gives no id for ${shown(id)}`);
      }
      return { ids, typeId };
    });
  return { single: parts(single), pair: parts(pair) };
}

/** The frame of BERT and RoBERTa: cls a sep, and cls a sep (sep) b sep. */
function bertFrame(config: Json, form: { between: 1 | 2; typeOfB: 0 | 1 }): Frame {
  const idOf = (role: 'cls' | 'sep'): number => {
    const given = config[role];
    const id = tokenId.safeParse(Array.isArray(given) ? given[1] : undefined);
    if (id.success) return id.data;
    throw malformed(`the post-processor gives no id for ${role}`);
  };
  const [cls, sep] = [idOf('cls'), idOf('sep')];
  const single: FramePart[] = [
    { ids: [cls], typeId: 0 },
    { text: 'a', typeId: 0 },
    { ids: [sep], typeId: 0 },
  ];
  const second: FramePart[] = [
    ...(form.between === 2 ? [{ ids: [sep], typeId: 0 }] : []),
    { text: 'b', typeId: form.typeOfB },
    { ids: [sep], typeId: form.typeOfB },
  ];
  return { single, pair: [...single, ...second] };
}

/** The number of special tokens around one text or two. */
export function frameLength(frame: Frame, texts: 1 | 2): number {
  const parts = texts === 1 ? frame.single : frame.pair;
  return parts.reduce((sum, part) => sum + ('ids' in part ? part.ids.length : 0), 0);
}

/**
 * Puts one text or two into the frame.
 * @param maxLength largest number of ids in all; the texts are cut at their ends, the longer one first
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
  for (const part of b === null ? frame.single : frame.pair) {
    for (const id of 'ids' in part ? part.ids : texts[part.text]) {
      ids.push(id);
      typeIds.push(part.typeId);
    }
  }
  return { ids, typeIds, cut: a.length - lengthA + ((b?.length ?? 0) - lengthB) };
}

/**
 * The lengths to which two texts are cut so that they have `room` tokens together, as Hugging Face's `longest_first` does it: the
 * shorter text stays whole if it has at most half of them, else both get half (an odd token goes to the longer one).
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
