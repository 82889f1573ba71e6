/** Additions and corrections to the models and decoders of @huggingface/tokenizers 0.2. */
import { toByteLevel } from './byte_level.ts';
import type { HfBpe, HfModel, HfUnigram } from './hf_tokenizers.ts';
import type { GreedyMerges } from './spm_merges.ts';

/**
 * Drops characters without a token before BPE merges, as Hugging Face's tokenizers do; the JavaScript port drops them after the
 * merges. Only vocabularies without unknown token and byte fallback are affected.
 */
export function dropUnknownCharacters(model: HfBpe): void {
  if (model.unk_token != null || model.byte_fallback || model.end_of_word_suffix) return;
  const merge = model.bpe.bind(model);
  const known = (char: string) => model.tokens_to_ids.has(char);
  model.bpe = (token) => {
    const chars = Array.from(token);
    return merge(chars.every(known) ? token : chars.filter(known).join(''));
  };
}

/** Adds byte fallback to Unigram: a character without a token becomes its bytes, if all of them have tokens. */
export function fallBackToBytes(model: HfModel): void {
  const encode = model.encode.bind(model);
  const tokenOf = (byte: number) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`;
  model.encode = (preTokens) =>
    encode(preTokens).flatMap((token) => {
      if (model.tokens_to_ids.has(token)) return [token];
      const bytes = Array.from(Buffer.from(token, 'utf8'), tokenOf);
      return bytes.every((byte) => model.tokens_to_ids.has(byte)) ? bytes : [token];
    });
}

/** Largest number of words whose tokens are cached; natural text repeats its words. */
const kMaxCachedWords = 1 << 16;

/**
 * Makes the model encode words of plain text: each is converted to the byte alphabet, and its tokens are cached (on text, three
 * times as fast as the package's own steps and cache).
 */
export function encodeByteLevel(model: HfModel): void {
  const encode = model.encode.bind(model);
  const cache = new Map<string, string[]>();
  model.encode = (words) =>
    words.flatMap((word) => {
      let tokens = cache.get(word);
      if (!tokens) {
        tokens = encode([toByteLevel(word)]);
        if (cache.size >= kMaxCachedWords) cache.clear();
        cache.set(word, tokens);
      }
      return tokens;
    });
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

/** Removes special tokens from Unigram's trie: they are recognised before the model runs, and their characters are text to it. */
export function hideSpecialTokens(
  model: HfUnigram,
  addedTokens: readonly { content: string; special?: boolean }[],
): void {
  for (const { content, special } of addedTokens) {
    if (!special) continue;
    let node: HfUnigram['trie']['root'] | undefined = model.trie.root;
    for (const char of content) node = node?.children.get(char);
    if (node) node.is_leaf = false;
  }
}

/** Makes a decoder keep U+FEFF at the beginning of the bytes, which the package's decoder removes as a byte-order mark. */
export function repairDecoder(node: unknown): void {
  if (typeof node !== 'function') return;
  const decoder = node as { decoders?: unknown; text_decoder?: InstanceType<typeof TextDecoder> };
  if (Array.isArray(decoder.decoders)) decoder.decoders.forEach(repairDecoder);
  if (decoder.text_decoder) decoder.text_decoder = new TextDecoder('utf-8', { ignoreBOM: true });
}
