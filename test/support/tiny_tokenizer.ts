/** A byte-level BPE tokenizer of 256 bytes, a few merges and two special tokens, for tests without any model. */
import { kByteToChar } from '../../lib/text/byte_level.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';

const kMerges: [string, string][] = [
  ['a', 'b'],
  ['Ġ', 'a'],
  ['t', 'h'],
  ['th', 'e'],
];

/** The tokenizer.json. Ids: bytes 0-255, merges from 256 on, then `<start>` and `<end>`. */
export function tinyTokenizerJson(
  over: { pre_tokenizer?: unknown; merges?: [string, string][] } = {},
): object {
  const merges = over.merges ?? kMerges;
  const vocab = Object.fromEntries(
    [...kByteToChar, ...merges.map((m) => m.join(''))].map((t, i) => [t, i]),
  );
  const first = 256 + merges.length;
  return {
    version: '1.0',
    added_tokens: [
      { id: first, content: '<start>', special: true, normalized: false },
      { id: first + 1, content: '<end>', special: true, normalized: false },
    ],
    normalizer: null,
    pre_tokenizer: over.pre_tokenizer ?? {
      type: 'ByteLevel',
      add_prefix_space: false,
      use_regex: true,
    },
    post_processor: null,
    decoder: { type: 'ByteLevel' },
    model: { type: 'BPE', unk_token: null, byte_fallback: false, vocab, merges },
  };
}

/** The tokenizer_config.json, with a chat template like ChatML: a turn is `<start>role\ncontent<end>\n`. */
export function tinyTokenizerConfig(): object {
  return {
    bos_token: '<start>',
    eos_token: '<end>',
    pad_token: '<end>',
    chat_template:
      "{% for m in messages %}{{ '<start>' + m['role'] + '\n' + m['content'] + '<end>\n' }}{% endfor %}" +
      "{% if add_generation_prompt %}{{ '<start>assistant\n' }}{% endif %}",
  };
}

export function tinyTokenizer(): Tokenizer {
  return Tokenizer.fromJson(tinyTokenizerJson(), tinyTokenizerConfig());
}
