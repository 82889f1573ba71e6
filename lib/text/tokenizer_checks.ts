/**
 * Checks of a tokenizer.json before a tokenizer is made of it: values from which lists of that length, texts without bound or words
 * in quadratic time would follow.
 */
import { FormatError } from '../errors.ts';

type Json = Record<string, unknown>;

/** An entry of added_tokens. */
export interface AddedToken {
  id: number;
  content: string;
  special?: boolean;
}

/** Checks a tokenizer.json. @throws FormatError naming the token or the part at fault */
export function checkTokenizerJson(tokenizerJson: Json, addedTokens: readonly AddedToken[]): void {
  const { normalizer, pre_tokenizer: preTokenizer, decoder } = tokenizerJson;
  checkIds(tokenizerJson, addedTokens);
  checkWordLength(tokenizerJson);
  checkReplacements([normalizer, preTokenizer, decoder]);
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
  if (vocab !== undefined && (vocab === null || typeof vocab !== 'object')) {
    throw new FormatError('tokenizer: model.vocab must be an object or a list');
  }
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
    `tokenizer: ${where}: the id of ${JSON.stringify(token)} must be a whole number from 0 to ${kMaxId}, got ${JSON.stringify(id) ?? 'nothing'}`,
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
    `tokenizer: model.max_input_chars_per_word must be a whole number up to ${kMaxWord}, got ${JSON.stringify(longest)}`,
  );
}
