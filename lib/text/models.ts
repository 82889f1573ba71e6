/**
 * Words to ids by the models of @huggingface/tokenizers 0.2, with what Hugging Face's tokenizers (Rust) do otherwise: characters without
 * a token are dropped or joined within their word, before merges and fallback to bytes.
 */
import type { FormatError } from '../errors.ts';
import { shown } from '../shown.ts';
import { toByteLevel } from './byte_level.ts';
import { HfBpe, type HfModel, HfUnigram } from './hf_tokenizers.ts';
import type { GreedyMerges } from './spm_merges.ts';
import { type AddedToken, malformed } from './tokenizer_checks.ts';

type Json = Record<string, unknown>;

/** The tokens of a word. A token that is not in the vocabulary stands for an unknown part of the word. */
type WordTokens = (word: string) => readonly string[];
/** The ids of a word; an id is undefined where the vocabulary lacks the unknown token. */
export type WordIds = (word: string) => readonly (number | undefined)[];

/** The facts of a model that its package does not know. */
export interface WordOptions {
  /** `model` of tokenizer.json. */
  readonly config: Json;
  /** Treatment of a character without a token, see TokenizerOptions. */
  readonly missingBytes: 'join' | 'separate';
  /** Whether words are converted to the byte alphabet first. */
  readonly byteLevel: boolean;
}

/** The function that gives the ids of words. */
export function wordIdsOf(model: HfModel, options: WordOptions): WordIds {
  const tokensOf = wordTokens(model, options);
  const unknown = unknownId(model, options.config);
  const idsOf = (word: string) =>
    tokensOf(word).map((token) => model.tokens_to_ids.get(token) ?? unknown);
  return options.byteLevel ? cached((word) => idsOf(toByteLevel(word))) : idsOf;
}

function unknownId(
  model: HfModel,
  { type, unk_id: id, unk_token: token }: Json,
): number | undefined {
  if (type === 'Unigram') return (id ?? undefined) as number | undefined;
  return typeof token === 'string' ? model.tokens_to_ids.get(token) : undefined;
}

function wordTokens(model: HfModel, options: WordOptions): WordTokens {
  const { config } = options;
  if (model instanceof HfBpe) return (word) => bpeTokens(model, word, options);
  if (model instanceof HfUnigram) {
    return (word) => unigramTokens(model, word, config.byte_fallback === true);
  }
  // WordLevel has one token for a word, and WordPiece the unknown token for a whole word.
  return config.type === 'WordLevel' ? (word) => [word] : (word) => model.encode([word]);
}

const byteToken = (byte: number) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`;

/** The tokens of the bytes of a text; null if one of them has none. */
function bytesOf({ tokens_to_ids: ids }: HfModel, text: string): string[] | null {
  const bytes = Array.from(Buffer.from(text, 'utf8'), byteToken);
  return bytes.every((byte) => ids.has(byte)) ? bytes : null;
}

/** BPE's tokens. Unknown characters are replaced before merges, as Hugging Face's tokenizers do; the JavaScript port does it afterwards. */
function bpeTokens(model: HfBpe, word: string, options: WordOptions): string[] {
  const { tokens_to_ids: ids, ignore_merges: whole } = model;
  if (whole && ids.has(word)) return [word];
  const { unk_token: unknown } = options.config;
  return model.bpe(symbolsOf(model, word, options)).flatMap((token) => {
    const known = ids.has(token) ? [token] : model.byte_fallback ? bytesOf(model, token) : null;
    return known ?? (typeof unknown === 'string' ? [unknown] : []);
  });
}

/**
 * The characters of a word as BPE merges them: without those that have no token, or with the unknown token in their place, which may take
 * part in merges if it is one character. With `fuse_unk` adjacent ones are one, which comes after the bytes of characters behind it.
 */
function symbolsOf(model: HfBpe, word: string, { config, missingBytes }: WordOptions): string {
  const { unk_token: unknown, fuse_unk: fuses } = config;
  const suffix = model.end_of_word_suffix ?? '';
  const stands = typeof unknown === 'string' && Array.from(unknown).length === 1 && suffix === '';
  const chars = Array.from(word);
  let [symbols, open] = ['', ''];
  for (const [i, char] of chars.entries()) {
    const own = i === chars.length - 1 ? char + suffix : char;
    if (model.tokens_to_ids.has(own)) {
      symbols += open + char;
      open = '';
    } else if (model.byte_fallback && bytesOf(model, char) !== null) symbols += char;
    else if (typeof unknown === 'string') {
      if (open !== '' && fuses !== true) symbols += open;
      if (open === '' || fuses !== true) open = stands ? unknown : char;
    } else if (missingBytes === 'separate') symbols += char;
    else if (suffix !== '') throw lacksToken(word);
  }
  return symbols + open;
}

function lacksToken(word: string): FormatError {
  return malformed(
    `${shown(word)} has a character without a token, and a vocabulary with end_of_word_suffix needs an unknown token`,
  );
}

/** Unigram's tokens; adjacent unknown characters become their bytes, if all of these have tokens, or are one token. */
function unigramTokens(model: HfUnigram, word: string, byBytes: boolean): string[] {
  const tokens: string[] = [];
  let unknown = '';
  const close = (): void => {
    const bytes = byBytes && unknown !== '' ? bytesOf(model, unknown) : null;
    // One by one: a call takes about a hundred thousand arguments.
    if (bytes !== null) for (const byte of bytes) tokens.push(byte);
    else if (unknown !== '') tokens.push(unknown);
    unknown = '';
  };
  for (const token of model.encode([word])) {
    if (!model.tokens_to_ids.has(token)) {
      unknown += token;
      continue;
    }
    close();
    tokens.push(token);
  }
  close();
  return tokens;
}

/** Largest number of words whose ids are cached; natural text repeats its words. */
const kMaxCachedWords = 1 << 16;

/** Caches the ids of words (on text, three times as fast as the package's own steps and cache). */
function cached(idsOf: WordIds): WordIds {
  const cache = new Map<string, readonly (number | undefined)[]>();
  return (word) => {
    let ids = cache.get(word);
    if (ids === undefined) {
      ids = idsOf(word);
      if (cache.size >= kMaxCachedWords) cache.clear();
      cache.set(word, ids);
    }
    return ids;
  };
}

/** Makes BPE merge by the scores of a SentencePiece vocabulary instead of by a list of pairs. */
export function mergeByRank(model: HfBpe, { ranks }: GreedyMerges): void {
  model.add_node = (queue, node) => {
    const rank = ranks.get(node.token + node.next.token);
    if (rank === undefined) return;
    node.score = rank + node.bias; // equal ranks are merged from left to right
    queue.push(node);
  };
}

/** Gives Unigram's unknown token the score that the file has, in the place of the package's. */
export function restoreScore(model: HfUnigram, { unk_id: id, vocab }: Json): void {
  if (typeof id === 'number') model.scores[id] = (vocab as [string, number][])[id]?.[1] as number;
}

/** Removes special tokens from Unigram's trie: they are recognised before the model runs, and their characters are text to it. */
export function hideSpecialTokens(model: HfUnigram, addedTokens: readonly AddedToken[]): void {
  for (const { content, special } of addedTokens) {
    if (!special) continue;
    let node: HfUnigram['trie']['root'] | undefined = model.trie.root;
    for (const char of content) node = node?.children.get(char);
    if (node) node.is_leaf = false;
  }
}
