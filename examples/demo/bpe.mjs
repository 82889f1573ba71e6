// Trains a byte-level BPE vocabulary (Sennrich et al. 2016, on GPT-2's byte alphabet) and converts it to a tokenizer.json. It is
// deterministic: of equally frequent pairs the one that sorts first is merged.

// GPT-2's pre-tokenizer pattern.
const kPattern = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/** The 256 printable characters that represent the bytes in byte-level vocabularies. */
function byteAlphabet() {
  const printable = [];
  for (const [from, to] of [
    [0x21, 0x7e],
    [0xa1, 0xac],
    [0xae, 0xff],
  ]) {
    for (let byte = from; byte <= to; ++byte) printable.push(byte);
  }
  const alphabet = new Array(256);
  let next = 256;
  for (let byte = 0; byte < 256; ++byte) {
    alphabet[byte] = String.fromCodePoint(printable.includes(byte) ? byte : next++);
  }
  return alphabet;
}

function countWords(texts, alphabet) {
  const counts = new Map();
  const encoder = new TextEncoder();
  for (const text of texts) {
    for (const [word] of text.matchAll(kPattern)) counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  return [...counts].map(([word, count]) => ({
    symbols: Array.from(encoder.encode(word), (byte) => alphabet[byte]),
    count,
  }));
}

/**
 * @param {string[]} texts
 * @param {{ vocabSize: number, special: string[] }} options special tokens take the first ids
 * @returns {{ vocab: Record<string, number>, merges: [string, string][] }}
 */
export function trainBpe(texts, { vocabSize, special }) {
  const alphabet = byteAlphabet();
  const words = countWords(texts, alphabet);
  const pairs = new Map(); // "a b" -> { count, words: Set<index> }
  const add = (index, sign) => {
    const { symbols, count } = words[index];
    for (let i = 0; i + 1 < symbols.length; ++i) {
      const key = `${symbols[i]} ${symbols[i + 1]}`;
      let entry = pairs.get(key);
      if (!entry) {
        entry = { count: 0, words: new Set() };
        pairs.set(key, entry);
      }
      entry.count += sign * count;
      if (sign > 0) entry.words.add(index);
    }
  };
  for (let index = 0; index < words.length; ++index) add(index, 1);

  const tokens = [...special, ...alphabet];
  const merges = [];
  while (tokens.length < vocabSize) {
    let best = null;
    for (const [key, { count }] of pairs) {
      if (count > 0 && (!best || count > best.count || (count === best.count && key < best.key))) {
        best = { key, count };
      }
    }
    if (!best) break;
    const [left, right] = best.key.split(' ');
    merges.push([left, right]);
    tokens.push(left + right);
    for (const index of pairs.get(best.key).words) {
      add(index, -1);
      const { symbols } = words[index];
      const merged = [];
      for (let i = 0; i < symbols.length; ++i) {
        if (symbols[i] === left && symbols[i + 1] === right) {
          merged.push(left + right);
          ++i;
        } else {
          merged.push(symbols[i]);
        }
      }
      words[index].symbols = merged;
      add(index, 1);
    }
    pairs.delete(best.key);
  }
  return { vocab: Object.fromEntries(tokens.map((token, id) => [token, id])), merges };
}

/** The tokenizer.json of a trained vocabulary. */
export function tokenizerJson({ vocab, merges }, special) {
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: special.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: {
      type: 'ByteLevel',
      add_prefix_space: false,
      trim_offsets: true,
      use_regex: true,
    },
    post_processor: null,
    decoder: { type: 'ByteLevel', add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab,
      merges: merges.map(([left, right]) => [left, right]),
    },
  };
}
