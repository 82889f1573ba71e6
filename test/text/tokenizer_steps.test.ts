// Every option of the steps of a tokenizer.json against the ids of Hugging Face's tokenizers (Rust), and the refusal of all others.
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { FormatError, UnsupportedError } from '../../lib/errors.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { fixturePath } from '../support/fixtures.ts';
import { kStepTokenizers, pairBpe } from '../support/tokenizer_steps.ts';

type Json = Record<string, unknown>;

const golden = JSON.parse(readFileSync(fixturePath('data/tokenizer_steps.json'), 'utf8')) as Record<
  string,
  [text: string, ids: number[] | null][]
>;

describe('ids are those of Hugging Face with', () => {
  it.each(Object.entries(kStepTokenizers))('%s', (name, json) => {
    const tokenizer = Tokenizer.fromJson(json);
    expect(golden[name]?.length).toBeGreaterThan(10);
    for (const [text, ids] of golden[name] ?? []) {
      const encode = () => tokenizer.encode(text, { addSpecialTokens: false });
      if (ids === null) expect(encode, JSON.stringify(text)).toThrow(FormatError);
      else expect(encode(), JSON.stringify(text)).toEqual(ids);
    }
  });
});

const base = kStepTokenizers.WhitespaceSplit as Json;
const made = (over: Json, config: Json = {}) => Tokenizer.fromJson({ ...base, ...over }, config);
const token = { id: 1000, content: '<s>', special: true };

describe('a tokenizer.json is refused by name with', () => {
  it.each<[string, Json, RegExp]>([
    [
      'an unknown behavior',
      { pre_tokenizer: { type: 'Punctuation', behavior: 'Merged' } },
      /the behavior "Merged" of the pre-tokenizer Punctuation is not supported \(known: Removed, /,
    ],
    [
      'an unknown pre-tokenizer',
      { pre_tokenizer: { type: 'UnicodeScripts' } },
      /the pre-tokenizer "UnicodeScripts" is not supported \(known: Sequence, BertPreTokenizer, /,
    ],
    [
      'an unknown normalizer',
      { normalizer: { type: 'Sequence', normalizers: [{ type: 'Other' }] } },
      /the normalizer "Other" is not supported \(known: Sequence, NFC, /,
    ],
    [
      'an unknown decoder',
      { decoder: { type: 'Other' } },
      /the decoder "Other" is not supported \(known: BPEDecoder, /,
    ],
    ['an unknown model', { model: { ...pairBpe(), type: 'Other' } }, /the model "Other" is not/],
    [
      'dropout',
      { model: pairBpe({ dropout: 0.1 }) },
      /model\.dropout 0\.1, which leaves out merges/,
    ],
    [
      'a prefix of a BPE',
      { model: pairBpe({ continuing_subword_prefix: '##' }) },
      /model\.continuing_subword_prefix "##" of a BPE is not supported/,
    ],
    [
      'an unknown scheme of Metaspace',
      { pre_tokenizer: { type: 'Metaspace', prepend_scheme: 'last' } },
      /pre_tokenizer\.prepend_scheme must be always, first, never, got "last"/,
    ],
    [
      'a pattern that keeps what is before it',
      { pre_tokenizer: { type: 'Split', pattern: { Regex: 'a\\Kb' }, behavior: 'Isolated' } },
      /the pattern "a\\\\Kb" has \\K, which JavaScript's regular expressions do not have/,
    ],
    [
      'a group of options in a pattern',
      { normalizer: { type: 'Replace', pattern: { Regex: '(?m:a.b)' }, content: '' } },
      /the pattern "\(\?m:a\.b\)" has the group \(\?m:/,
    ],
    [
      'two post-processors that add tokens',
      {
        post_processor: {
          type: 'Sequence',
          processors: [1, 2].map((id) => ({
            type: 'BertProcessing',
            cls: ['a', id],
            sep: ['b', 0],
          })),
        },
      },
      /several post-processors that add special tokens are not supported/,
    ],
  ])('%s', (_, over, message) => {
    expect(() => made(over)).toThrow(UnsupportedError);
    expect(() => made(over)).toThrow(message);
  });

  it.each<[string, Json, RegExp]>([
    [
      'a merge beyond its vocabulary',
      { model: { ...pairBpe(), merges: ['a b', 'ab ab'] } },
      /model\.merges\.1 needs the token "abab", which the vocabulary does not have/,
    ],
    [
      'an added token with another id than its own',
      { added_tokens: [{ ...token, content: 'a', id: 7 }] },
      /the added token "a" has the id 7 in added_tokens, and .* would give it 2:/,
    ],
    [
      'a gap before an added token',
      { added_tokens: [token] },
      /the added token "<s>" has the id 1000 in added_tokens/,
    ],
    [
      'an unknown token beyond its vocabulary',
      { model: { type: 'Unigram', vocab: [['a', 0]], unk_id: 1 } },
      /model\.unk_id must be below the 1 tokens of the vocabulary, got 1/,
    ],
    [
      'a WordPiece without a prefix',
      { model: { type: 'WordPiece', vocab: { a: 0 }, unk_token: 'a' } },
      /model\.continuing_subword_prefix must be text, got nothing/,
    ],
    [
      'a mark of two characters',
      { pre_tokenizer: { type: 'Metaspace', replacement: '__' } },
      /pre_tokenizer\.replacement must be one character, got "__"/,
    ],
    [
      'a pattern that is none',
      { pre_tokenizer: { type: 'Split', pattern: { Regex: '(a' }, behavior: 'Isolated' } },
      /the pattern "\(a" cannot be read \(/,
    ],
    [
      'a template of a third text',
      {
        post_processor: {
          ...{ type: 'TemplateProcessing', pair: [], special_tokens: {} },
          single: [{ Sequence: { id: 'C', type_id: 0 } }],
        },
      },
      /post_processor\.single\.0/,
    ],
  ])('%s', (_, over, message) => {
    expect(() => made(over)).toThrow(FormatError);
    expect(() => made(over)).toThrow(message);
  });

  it('a character without a token at the end of a word that must have one', () => {
    const suffix = kStepTokenizers['BPE end_of_word_suffix'] as { model: Json };
    const tokenizer = made({ model: { ...suffix.model, unk_token: null } });
    expect(tokenizer.encode('ab')).toHaveLength(1);
    expect(() => tokenizer.encode('a-')).toThrow(/"a-" has a character without a token/);
  });
});

describe('a tokenizer', () => {
  it('takes no step from tokenizer_config.json', () => {
    const config = { remove_space: true, do_lowercase_and_remove_accent: true, target_lang: 'a' };
    for (const text of ['  ab  ', 'É-Σ'])
      expect(made({}, config).encode(text)).toEqual(made({}).encode(text));
  });

  it('does not apply truncation and padding of tokenizer.json', () => {
    const truncation = { max_length: 2, strategy: 'LongestFirst', stride: 0, direction: 'Right' };
    const padding = { strategy: { Fixed: 9 }, pad_id: 0, pad_token: '?', pad_type_id: 0 };
    expect(made({ truncation, padding }).encode('a b d')).toEqual(made({}).encode('a b d'));
  });

  it.each([
    ['always', '▁▁a▁b', 'a b'],
    ['first', '▁a', 'a'],
    ['never', '▁a▁b', ' a b'],
  ])('decodes the marks of Metaspace %s', (prepend_scheme, marked, text) => {
    const tokenizer = made({
      pre_tokenizer: null,
      decoder: { type: 'Metaspace', replacement: '▁', prepend_scheme },
    });
    const ids = tokenizer.encode(marked);
    expect(tokenizer.decode(ids)).toBe(text);
    const stream = tokenizer.decodeStream();
    expect(ids.map((id) => stream.push(id)).join('') + stream.end()).toBe(text);
  });

  it('decodes replacements as plain text', () => {
    const decoder = { type: 'Replace', pattern: { String: '▁' }, content: '$&$' };
    expect(made({ decoder }).decode(made({}).encode('a▁'))).toBe('a$&$');
  });
});
