/**
 * Checks of a tokenizer.json before a tokenizer is made of it: values of another type, which would fail at some text in the middle of
 * the data, and values from which lists of that length, texts without bound or words in quadratic time would follow.
 */
import { FormatError } from '../errors.ts';
import { type CallKind, kCall, orNull, wholeNumber } from '../options/call.ts';
import { shown } from '../shown.ts';

type Json = Record<string, unknown>;

/** An entry of added_tokens. */
export interface AddedToken {
  id: number;
  content: string;
  special?: boolean;
}

/**
 * Checks a tokenizer.json and the list of special tokens in its configuration.
 * @throws FormatError naming the token or the part at fault
 */
export function checkTokenizerJson(
  tokenizerJson: Json,
  addedTokens: readonly AddedToken[],
  { additional_special_tokens: special }: Json,
): void {
  const { normalizer, pre_tokenizer: preTokenizer, decoder } = tokenizerJson;
  checkIds(tokenizerJson, addedTokens);
  checkModel(tokenizerJson.model);
  checkWordLength(tokenizerJson);
  checkPart('normalizer', normalizer);
  checkPart('pre_tokenizer', preTokenizer);
  checkPart('decoder', decoder);
  checkReplacements([normalizer, preTokenizer, decoder]);
  for (const [i, token] of addedTokens.entries()) {
    checkFields(`added_tokens.${i}`, token as unknown as Json, kTokenFields);
  }
  check('additional_special_tokens', special ?? [], kCall.list);
}

function check(name: string, value: unknown, { schema, wanted }: CallKind): void {
  if (schema.safeParse(value).success) return;
  throw new FormatError(`tokenizer: ${name} must be ${wanted}, got ${shown(value)}`);
}

/** Fields by the names that they have in every part. */
type Fields = Readonly<Record<string, CallKind>>;

function checkFields(where: string, values: Json, fields: Fields): void {
  for (const [key, value] of Object.entries(values)) {
    if (Object.hasOwn(fields, key)) check(`${where}.${key}`, value, fields[key] as CallKind);
  }
}

const fieldsOf = (names: string, kind: CallKind): Fields =>
  Object.fromEntries(names.split(/\s+/).map((name) => [name, orNull(kind)]));

const kTokenFields = fieldsOf('special normalized single_word lstrip rstrip', kCall.boolean);

/** The fields of normalizers, pre-tokenizers and decoders. */
const kPartFields: Fields = {
  ...fieldsOf(
    `clean_text handle_chinese_chars strip_accents lowercase strip_left strip_right add_prefix_space trim_offsets use_regex
     invert individual_digits cleanup split`,
    kCall.boolean,
  ),
  ...fieldsOf(
    `content prepend replacement str_rep prepend_scheme behavior prefix suffix pad_token word_delimiter_token
     precompiled_charsmap`,
    kCall.text,
  ),
  ...fieldsOf('start stop', wholeNumber({ least: 0 })),
  ...fieldsOf('length', wholeNumber({ least: 1 })),
};

/** The names of the lists of steps that a step may consist of. */
const kSteps = ['normalizers', 'pretokenizers', 'decoders'];

/** Checks the types of all fields of a normalizer, pre-tokenizer or decoder, and of its steps. */
function checkPart(where: string, part: unknown): void {
  if (part === null || part === undefined) return;
  check(where, part, kCall.object);
  const { type, pattern } = part as Json;
  check(`${where}.type`, type, kCall.text);
  checkFields(where, part as Json, kPartFields);
  const hasPattern = pattern !== null && pattern !== undefined;
  if (hasPattern || type === 'Split' || type === 'Replace') {
    checkPattern(`${where}.pattern`, pattern);
  }
  for (const key of kSteps) {
    const steps = (part as Json)[key] ?? [];
    check(`${where}.${key}`, steps, kCall.list);
    for (const [i, step] of (steps as unknown[]).entries()) {
      check(`${where}.${key}.${i}`, step, kCall.object);
      checkPart(`${where}.${key}.${i}`, step);
    }
  }
}

function checkPattern(where: string, pattern: unknown): void {
  check(where, pattern, kCall.object);
  const { Regex: regex, String: text } = pattern as Json;
  if (regex === undefined) check(`${where}.String`, text, kCall.text);
  else check(`${where}.Regex`, regex, kCall.text);
}

const kModelFields: Fields = {
  ...fieldsOf(
    'type unk_token continuing_subword_prefix continuing_subword_suffix end_of_word_suffix',
    kCall.text,
  ),
  ...fieldsOf('byte_fallback fuse_unk ignore_merges', kCall.boolean),
};

/** Checks the types of a model's fields, and the pairs that a BPE merges. */
function checkModel(model: unknown): void {
  check('model', model, kCall.object);
  const { type, vocab, merges } = model as Json;
  checkFields('model', model as Json, kModelFields);
  check('model.vocab', vocab, type === 'Unigram' ? kCall.list : kVocabulary);
  if (Array.isArray(vocab)) vocab.forEach(checkPiece);
  if (merges === undefined && type !== 'BPE') return;
  check('model.merges', merges, kCall.list);
  for (const [i, merge] of (merges as unknown[]).entries()) {
    checkMerge(merge, i, typeof (merges as unknown[])[0]);
  }
}

const kVocabulary: CallKind = {
  schema: kCall.object.schema.or(kCall.list.schema),
  wanted: 'an object or a list',
};

function checkPiece(piece: unknown, i: number): void {
  const [token, score] = Array.isArray(piece) ? piece : [];
  if (typeof token === 'string' && typeof score === 'number') return;
  throw new FormatError(
    `tokenizer: model.vocab.${i} must be a token with its score, got ${shown(piece)}`,
  );
}

/** A merge is a text of two tokens or a list of them, all merges in the form of the first. */
function checkMerge(merge: unknown, i: number, form: string): void {
  const pair: unknown = typeof merge === 'string' ? merge.split(' ') : merge;
  const isPair = Array.isArray(pair) && pair.length === 2 && typeof merge === form;
  if (isPair && pair.every((token) => typeof token === 'string')) return;
  throw new FormatError(
    `tokenizer: model.merges.${i} must be two tokens in the form of the first merge, got ${shown(merge)}`,
  );
}

/** Longest pattern that is read; published ones have up to 2000 characters. */
const kMaxPattern = 20_000;
/** How many times as long as a text its replacements may make it. */
const kMaxGrowth = 4096;

/** Checks the patterns and replacements of parts of a tokenizer.json. @throws FormatError for those that are too long */
function checkReplacements(parts: unknown): void {
  let growth = 1;
  const visit = (node: unknown): void => {
    if (node === null || typeof node !== 'object') return;
    const { type, content, Regex: regex } = node as Json;
    if (typeof regex === 'string' && regex.length > kMaxPattern) {
      throw new FormatError(
        `tokenizer: a pattern has ${regex.length} characters, more than the ${kMaxPattern} that are read`,
      );
    }
    if (type === 'Replace' && typeof content === 'string') growth *= Math.max(1, content.length);
    if (growth > kMaxGrowth) {
      throw new FormatError(
        `tokenizer: its Replace steps may make a text more than ${kMaxGrowth} times as long`,
      );
    }
    Object.values(node).forEach(visit);
  };
  visit(parts);
}

/** Largest id of a vocabulary: far above every real one, and a list of that length still fits into memory. */
const kMaxId = 2 ** 24;

/** Checks the ids of a vocabulary, from which arrays are made. @throws FormatError naming the token */
function checkIds({ model }: Json, addedTokens: readonly AddedToken[]): void {
  const { vocab, unk_id: unknown } = (model ?? {}) as { vocab?: unknown; unk_id?: unknown };
  if (unknown !== undefined && unknown !== null) checkId('model', 'unk_id', unknown);
  // Unigram's vocabulary is a list, whose places are the ids.
  const named = vocab !== null && typeof vocab === 'object' && !Array.isArray(vocab);
  for (const [token, id] of named ? Object.entries(vocab) : []) checkId('model.vocab', token, id);
  if (!Array.isArray(addedTokens)) throw new FormatError('tokenizer: added_tokens must be a list');
  for (const [i, token] of addedTokens.entries()) {
    const { content, id } = (token ?? {}) as Partial<AddedToken>;
    if (typeof content !== 'string') {
      throw new FormatError(`tokenizer: added_tokens.${i}.content must be a text`);
    }
    checkId('added_tokens', content, id);
  }
}

function checkId(where: string, token: string, id: unknown): void {
  if (Number.isSafeInteger(id) && (id as number) >= 0 && (id as number) <= kMaxId) return;
  throw new FormatError(
    `tokenizer: ${where}: the id of ${shown(token)} must be a whole number from 0 to ${kMaxId}, got ${shown(id)}`,
  );
}

/** Longest word that a WordPiece model may split, in quadratic time. Published ones split words of up to 100 characters. */
const kMaxWord = 1000;

/** @throws FormatError for a model that would split longer words */
function checkWordLength({ model }: Json): void {
  const { max_input_chars_per_word: stated } = (model ?? {}) as Json;
  const longest = stated ?? 0;
  if (Number.isInteger(longest) && (longest as number) <= kMaxWord) return;
  throw new FormatError(
    `tokenizer: model.max_input_chars_per_word must be a whole number up to ${kMaxWord}, got ${shown(longest)}`,
  );
}
