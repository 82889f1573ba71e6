/**
 * Checks of a tokenizer.json before a tokenizer is made of it: values of another type, which would fail at some text in the middle of
 * the data, and values from which lists of that length, texts without bound or words in quadratic time would follow.
 */
import { patternProblem } from '../deadline.ts';
import { FormatError, UnsupportedError } from '../errors.ts';
import { type CallKind, kCall, orNull, wholeNumber } from '../options/call.ts';
import { shown } from '../shown.ts';

type Json = Record<string, unknown>;

/** An entry of added_tokens. */
export interface AddedToken {
  id: number;
  content: string;
  special?: boolean | null;
  /** Whether it is found in the normalized text; by default what `special` is not. */
  normalized?: boolean | null;
  /** Whether it is found only where no letter stands beside it. */
  single_word?: boolean | null;
  /** Whether white space before it belongs to it, and that behind it. */
  lstrip?: boolean | null;
  rstrip?: boolean | null;
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

/** The error for a tokenizer.json that cannot be read. */
export function malformed(what: string): FormatError {
  return new FormatError(`tokenizer: ${what}`);
}

function check(name: string, value: unknown, { schema, wanted }: CallKind): void {
  if (schema.safeParse(value).success) return;
  throw malformed(`${name} must be ${wanted}, got ${shown(value)}`);
}

/** Fields by the names that they have in every part. */
type Fields = Readonly<Record<string, CallKind>>;

function checkFields(where: string, values: Json, fields: Fields): void {
  for (const [key, value] of Object.entries(values)) {
    if (Object.hasOwn(fields, key)) check(`${where}.${key}`, value, fields[key] as CallKind);
  }
}

const fieldsOf = (names: string, kind: CallKind): Fields =>
  Object.fromEntries(names.split(/\s+/).map((name) => [name, kind]));

const kTokenFields = fieldsOf(
  'special normalized single_word lstrip rstrip',
  orNull(kCall.boolean),
);

/** The fields of normalizers, pre-tokenizers and decoders. */
const kPartFields: Fields = {
  ...fieldsOf(
    `clean_text handle_chinese_chars strip_accents lowercase strip_left strip_right add_prefix_space trim_offsets use_regex
     invert individual_digits cleanup split`,
    orNull(kCall.boolean),
  ),
  ...fieldsOf('str_rep prepend_scheme precompiled_charsmap', orNull(kCall.text)),
  // Null would not be the same as left out, and Hugging Face's tokenizers refuse it.
  ...fieldsOf(
    'content prepend replacement behavior prefix suffix pad_token word_delimiter_token',
    kCall.text,
  ),
  ...fieldsOf('start stop', wholeNumber({ least: 0 })),
  ...fieldsOf('length', wholeNumber({ least: 1 })),
};

/** The names of the lists of steps of a Sequence, by the first word of where it stands. */
const kSteps = {
  normalizer: 'normalizers',
  pre_tokenizer: 'pretokenizers',
  decoder: 'decoders',
} as const;

/** Checks the types of all fields of a normalizer, pre-tokenizer or decoder, and of its steps. */
function checkPart(where: string, part: unknown): void {
  if (part === null || part === undefined) return;
  check(where, part, kCall.object);
  const { type, pattern } = part as Json;
  check(`${where}.type`, type, kCall.text);
  checkFields(where, part as Json, kPartFields);
  if (type === 'Metaspace') checkMetaspace(where, part as Json);
  if (type === 'CharDelimiterSplit') checkCharacter(`${where}.delimiter`, (part as Json).delimiter);
  if (where.startsWith('decoder') && !kDecoders.includes(type as string)) {
    throw new UnsupportedError(
      `tokenizer: the decoder ${shown(type)} is not supported (known: ${kDecoders.join(', ')}); write it in tokenizer.json by these`,
    );
  }
  const hasPattern = pattern !== null && pattern !== undefined;
  if (hasPattern || type === 'Split' || type === 'Replace') {
    checkPattern(`${where}.pattern`, pattern);
  }
  const own = kSteps[where.split('.')[0] as keyof typeof kSteps];
  for (const key of Object.values(kSteps)) {
    const steps = (part as Json)[key];
    if (steps === undefined && !(type === 'Sequence' && key === own)) continue;
    check(`${where}.${key}`, steps, kCall.list);
    for (const [i, step] of (steps as unknown[]).entries()) {
      check(`${where}.${key}.${i}`, step, kCall.object);
      checkPart(`${where}.${key}.${i}`, step);
    }
  }
}

/** The decoders that are known. */
const kDecoders = [
  ...['BPEDecoder', 'ByteFallback', 'ByteLevel', 'CTC', 'Fuse', 'Metaspace', 'Replace', 'Sequence'],
  ...['Strip', 'WordPiece'],
];
const kPrependSchemes: readonly unknown[] = ['always', 'first', 'never'];

function checkMetaspace(where: string, { replacement, prepend_scheme: scheme }: Json): void {
  if (replacement !== undefined) checkCharacter(`${where}.replacement`, replacement);
  if (scheme === undefined || scheme === null || kPrependSchemes.includes(scheme)) return;
  throw new UnsupportedError(
    `tokenizer: ${where}.prepend_scheme must be ${kPrependSchemes.join(', ')}, got ${shown(scheme)}`,
  );
}

function checkCharacter(where: string, value: unknown): void {
  if (typeof value === 'string' && Array.from(value).length === 1) return;
  throw malformed(`${where} must be one character, got ${shown(value)}`);
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
    orNull(kCall.text),
  ),
  ...fieldsOf('byte_fallback fuse_unk ignore_merges', orNull(kCall.boolean)),
};

const kModels: readonly unknown[] = ['BPE', 'Unigram', 'WordLevel', 'WordPiece'];

/** A model's configuration with its type, which older files leave out. */
export function withType(model: Json): Json {
  const { type, vocab } = model;
  if (type !== undefined && type !== null) return model;
  if (Object.hasOwn(model, 'merges')) return { ...model, type: 'BPE' };
  if (Array.isArray(vocab)) return { ...model, type: 'Unigram' };
  const isWordPiece = Object.hasOwn(model, 'continuing_subword_prefix');
  return { ...model, type: isWordPiece ? 'WordPiece' : 'WordLevel' };
}

/** Checks the types of a model's fields, and the pairs that a BPE merges. */
function checkModel(given: unknown): void {
  check('model', given, kCall.object);
  const model = withType(given as Json);
  const { type, vocab, merges } = model;
  checkFields('model', model, kModelFields);
  if (!kModels.includes(type)) {
    throw new UnsupportedError(
      `tokenizer: the model ${shown(type)} is not supported (known: ${kModels.join(', ')})`,
    );
  }
  check('model.vocab', vocab, type === 'Unigram' ? kCall.list : kCall.object);
  if (Array.isArray(vocab)) vocab.forEach(checkPiece);
  if (type === 'WordPiece') {
    check('model.unk_token', model.unk_token, kCall.text);
    check('model.continuing_subword_prefix', model.continuing_subword_prefix, kCall.text);
  }
  if (type !== 'BPE') return;
  refuseOptions(model);
  check('model.merges', merges, kCall.list);
  for (const [i, merge] of (merges as unknown[]).entries()) {
    checkMerge(merge, i, typeof (merges as unknown[])[0]);
  }
}

/** @throws UnsupportedError for options of a BPE that would change ids, so that leaving them out would be wrong */
function refuseOptions({ dropout, continuing_subword_prefix: prefix }: Json): void {
  if (dropout !== undefined && dropout !== null && dropout !== 0) {
    throw new UnsupportedError(
      `tokenizer: model.dropout ${shown(dropout)}, which leaves out merges at random, is not supported; set it to null`,
    );
  }
  if (prefix !== undefined && prefix !== null && prefix !== '') {
    throw new UnsupportedError(
      `tokenizer: model.continuing_subword_prefix ${shown(prefix)} of a BPE is not supported; use a tokenizer without it`,
    );
  }
}

/** The function that gives the id of a token in a model's own vocabulary. */
export function ownIds(vocab: unknown): (token: string) => number | undefined {
  if (!Array.isArray(vocab)) {
    const ids = vocab as Record<string, number>;
    return (token) => (Object.hasOwn(ids, token) ? ids[token] : undefined);
  }
  const ids = new Map((vocab as [string, number][]).map(([token], id) => [token, id]));
  return (token) => ids.get(token);
}

/**
 * Checks that a tokenizer.json says the same everywhere, where Hugging Face's tokenizers refuse it or give other ids than it states:
 * merges of tokens that are not in the vocabulary, and added tokens with ids of their own choice.
 * @throws FormatError naming the merge or the token
 */
export function checkConsistency(given: Json, addedTokens: readonly AddedToken[]): void {
  const model = withType(given);
  const idOf = ownIds(model.vocab);
  if (model.type === 'BPE') checkMerges(model.merges as (string | string[])[], idOf);
  const size = Array.isArray(model.vocab)
    ? model.vocab.length
    : Object.keys(model.vocab as object).length;
  const { unk_id: unknown } = model;
  if (model.type === 'Unigram' && typeof unknown === 'number' && unknown >= size) {
    throw malformed(
      `model.unk_id must be below the ${size} tokens of the vocabulary, got ${unknown}`,
    );
  }
  let next = size;
  const seen = new Map<string, number>();
  for (const { content, id } of addedTokens) {
    if (content === '' || seen.has(content)) continue;
    const given = idOf(content) ?? next;
    seen.set(content, given);
    next = Math.max(next, given + 1);
    if (id === given) continue;
    throw malformed(
      `the added token ${shown(content)} has the id ${id} in added_tokens, and Hugging Face's tokenizers would give it ` +
        `${given}: ids of added tokens are those of the vocabulary, or follow it without a gap`,
    );
  }
}

function checkMerges(
  merges: readonly (string | string[])[],
  idOf: (token: string) => number | undefined,
): void {
  for (const [i, merge] of merges.entries()) {
    const pair = typeof merge === 'string' ? merge.split(' ') : merge;
    const missing = [...pair, pair.join('')].find((token) => idOf(token) === undefined);
    if (missing === undefined) continue;
    throw malformed(
      `model.merges.${i} needs the token ${shown(missing)}, which the vocabulary does not have`,
    );
  }
}

function checkPiece(piece: unknown, i: number): void {
  const [token, score] = Array.isArray(piece) ? piece : [];
  if (typeof token === 'string' && typeof score === 'number') return;
  throw malformed(`model.vocab.${i} must be a token with its score, got ${shown(piece)}`);
}

/** A merge is a text of two tokens or a list of them, all merges in the form of the first. */
function checkMerge(merge: unknown, i: number, form: string): void {
  const pair: unknown = typeof merge === 'string' ? merge.split(' ') : merge;
  const isPair = Array.isArray(pair) && pair.length === 2 && typeof merge === form;
  if (isPair && pair.every((token) => typeof token === 'string')) return;
  throw malformed(
    `model.merges.${i} must be two tokens in the form of the first merge, got ${shown(merge)}`,
  );
}

/** How many times as long as a text its replacements may make it. */
const kMaxGrowth = 4096;

/** Checks the patterns and replacements of parts of a tokenizer.json. @throws FormatError for those that cannot be read */
function checkReplacements(parts: unknown): void {
  let growth = 1;
  const visit = (node: unknown): void => {
    if (node === null || typeof node !== 'object') return;
    const { type, content, Regex: regex } = node as Json;
    const problem = typeof regex === 'string' ? patternProblem(regex) : null;
    if (problem !== null) throw malformed(`a pattern ${problem}`);
    if (type === 'Replace' && typeof content === 'string') growth *= Math.max(1, content.length);
    if (growth > kMaxGrowth) {
      throw malformed(`its Replace steps may make a text more than ${kMaxGrowth} times as long`);
    }
    Object.values(node).forEach(visit);
  };
  visit(parts);
}

/** Largest id of a vocabulary: far above every real one, and a list of that length still fits into memory. */
export const kMaxId = 2 ** 24;

/** Checks the ids of a vocabulary, from which arrays are made. @throws FormatError naming the token */
function checkIds({ model }: Json, addedTokens: readonly AddedToken[]): void {
  const { vocab, unk_id: unknown } = (model ?? {}) as { vocab?: unknown; unk_id?: unknown };
  if (unknown !== undefined && unknown !== null) checkId('model', 'unk_id', unknown);
  // Unigram's vocabulary is a list, whose places are the ids.
  const named = vocab !== null && typeof vocab === 'object' && !Array.isArray(vocab);
  for (const [token, id] of named ? Object.entries(vocab) : []) checkId('model.vocab', token, id);
  if (!Array.isArray(addedTokens)) throw malformed('added_tokens must be a list');
  for (const [i, token] of addedTokens.entries()) {
    const { content, id } = (token ?? {}) as Partial<AddedToken>;
    if (typeof content !== 'string') {
      throw malformed(`added_tokens.${i}.content must be a text`);
    }
    checkId('added_tokens', content, id);
  }
}

function checkId(where: string, token: string, id: unknown): void {
  if (Number.isSafeInteger(id) && (id as number) >= 0 && (id as number) <= kMaxId) return;
  throw malformed(
    `${where}: the id of ${shown(token)} must be a whole number from 0 to ${kMaxId}, got ${shown(id)}`,
  );
}

/** Longest word that a WordPiece model may split, in quadratic time. Published ones split words of up to 100 characters. */
const kMaxWord = 1000;

/** @throws FormatError for a model that would split longer words */
function checkWordLength({ model }: Json): void {
  const { max_input_chars_per_word: stated } = (model ?? {}) as Json;
  const longest = stated ?? 0;
  const isLength = Number.isInteger(longest) && (longest as number) >= 0;
  if (isLength && (longest as number) <= kMaxWord) return;
  throw malformed(
    `model.max_input_chars_per_word must be a whole number from 0 to ${kMaxWord}, got ${shown(longest)}`,
  );
}
