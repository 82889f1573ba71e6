/** Vocabularies written as metadata of GGUF files: the same ids when they are read again, and refusals by name. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { bpeTokens, sentencePieceBpe } from '../support/sentencepiece_bpe.ts';
import { tinyTokenizerConfig, tinyTokenizerJson } from '../support/tiny_tokenizer.ts';

type Json = Record<string, unknown>;

const valuesOf = (tokenizer: Tokenizer, rows: number): Map<string, unknown> =>
  new Map(Array.from(tokenizer.ggufMetadata(rows), ([key, { value }]) => [key, value]));

const split = (regex: string): Json => ({
  ...{ type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false },
});
const kBytes = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false };
const sequence = (...pretokenizers: Json[]): Json => ({ type: 'Sequence', pretokenizers });
/** The patterns in the tokenizer.json files of Llama 3 and of Qwen 2. */
const kLlama3 = (digits: string): string =>
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" +
  `\\p{N}${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;

function byteLevel(preTokenizer: Json, over: Json = {}, model: Json = {}): Tokenizer {
  const json = tinyTokenizerJson({ pre_tokenizer: preTokenizer }) as Json;
  return Tokenizer.fromJson(
    { ...json, ...over, model: { ...(json.model as Json), ...model } },
    tinyTokenizerConfig(),
  );
}

const texts = fc.string({ unit: fc.constantFrom(...'abthe 12\n.', '  ', 'the', 'é', '世', '🙂') });
const runs = { numRuns: 200, seed: 5 };

function expectSameIds(tokenizer: Tokenizer, rows: number): void {
  const again = Tokenizer.fromGguf(valuesOf(tokenizer, rows));
  fc.assert(
    fc.property(texts, (text) => {
      expect(again.encode(text)).toEqual(tokenizer.encode(text));
    }),
    runs,
  );
  expect([again.bosId, again.eosId]).toEqual([tokenizer.bosId, tokenizer.eosId]);
  expect([...again.specialIds].sort()).toEqual([...tokenizer.specialIds].sort());
}

describe('byte-level BPE', () => {
  it.each([
    ['gpt-2', { type: 'ByteLevel', add_prefix_space: false, use_regex: true }, {}, {}],
    [
      'smollm',
      sequence({ type: 'Digits', individual_digits: true }, { ...kBytes, use_regex: true }),
      {},
      {},
    ],
    ['llama-bpe', sequence(split(kLlama3('{1,3}')), kBytes), {}, { ignore_merges: true }],
    ['dbrx', sequence(split(kLlama3('{1,3}')), kBytes), {}, {}],
    ['qwen2', sequence(split(kLlama3('')), kBytes), { normalizer: { type: 'NFC' } }, {}],
  ] as [string, Json, Json, Json][])(
    'has the name %s of its pre-tokenizer, and the same ids',
    (name, pre, over, model) => {
      const tokenizer = byteLevel(pre, over, model);
      const values = valuesOf(tokenizer, tokenizer.vocabSize);
      expect(values.get('tokenizer.ggml.model')).toBe('gpt2');
      expect(values.get('tokenizer.ggml.pre')).toBe(name);
      expectSameIds(tokenizer, tokenizer.vocabSize);
    },
  );

  it('has as many tokens as the largest vocabularies', () => {
    const json = tinyTokenizerJson() as { added_tokens: Json[]; model: Json };
    const { vocab } = json.model as { vocab: Record<string, number> };
    const least = Object.keys(vocab).length;
    const many = Array.from({ length: 200_000 }, (_, i) => [`<${i}>`, least + i] as const);
    const size = least + many.length;
    const tokenizer = Tokenizer.fromJson({
      ...json,
      added_tokens: json.added_tokens.map((token, i) => ({ ...token, id: size + i })),
      model: { ...json.model, vocab: { ...vocab, ...Object.fromEntries(many) } },
    });
    const values = valuesOf(tokenizer, tokenizer.vocabSize);
    expect(values.get('tokenizer.ggml.tokens')).toHaveLength(tokenizer.vocabSize);
  });

  it('has unused tokens for rows beyond the vocabulary, and the chat template', () => {
    const tokenizer = byteLevel({ type: 'ByteLevel', add_prefix_space: false, use_regex: true });
    const values = valuesOf(tokenizer, tokenizer.vocabSize + 2);
    const tokens = values.get('tokenizer.ggml.tokens') as string[];
    expect(tokens.slice(-2)).toEqual([
      `[PAD${tokenizer.vocabSize}]`,
      `[PAD${tokenizer.vocabSize + 1}]`,
    ]);
    expect((values.get('tokenizer.ggml.token_type') as number[]).slice(-4)).toEqual([3, 3, 5, 5]);
    const { chat_template: template } = tinyTokenizerConfig() as { chat_template: string };
    expect(values.get('tokenizer.chat_template')).toBe(template);
    expect(() => tokenizer.ggufMetadata(tokenizer.vocabSize - 1)).toThrow(
      /has the id \d+, and the model's embedding \d+ rows: its vocabulary was resized for another model/,
    );
  });

  it.each([
    ['a pattern of its own', sequence(split('\\w+'), kBytes), {}],
    ['a prefix space', { type: 'ByteLevel', add_prefix_space: true, use_regex: true }, {}],
    ['a normalizer', sequence(kBytes), { normalizer: { type: 'Lowercase' } }],
  ] as [string, Json, Json][])('with %s is refused', (_, pre, over) => {
    const tokenizer = byteLevel(pre, over);
    expect(() => tokenizer.ggufMetadata(tokenizer.vocabSize)).toThrow(
      /BPE with a normalizer or a pre-tokenizer that llama\.cpp has no name for is not written.* give the GGUF file/,
    );
  });
});

describe('SentencePiece BPE', () => {
  it.each([
    ['with a space in front', true],
    ['without', false],
  ])('has scores by the ranks of its merges, and the same ids: %s', (_, prefix) => {
    const tokenizer = sentencePieceBpe(prefix);
    const values = valuesOf(tokenizer, bpeTokens.length);
    expect(values.get('tokenizer.ggml.model')).toBe('llama');
    expect(values.get('tokenizer.ggml.add_space_prefix')).toBe(prefix);
    expect(values.get('tokenizer.ggml.add_bos_token')).toBe(true);
    expect((values.get('tokenizer.ggml.token_type') as number[]).slice(0, 4)).toEqual([2, 3, 3, 6]);
    expectSameIds(tokenizer, bpeTokens.length);
  });
});

it('other kinds are refused by name', () => {
  const unigram = Tokenizer.fromJson({
    version: '1.0',
    normalizer: null,
    model: {
      type: 'Unigram',
      unk_id: 0,
      vocab: [
        ['<unk>', 0],
        ['▁', -1],
        ['a', -2],
      ],
    },
    pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always' },
    decoder: { type: 'Metaspace', replacement: '▁' },
  });
  expect(() => unigram.ggufMetadata(3)).toThrow(/a tokenizer of kind Unigram is not written/);
});
