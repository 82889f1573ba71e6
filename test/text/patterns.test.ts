// Regular expressions that a tokenizer.json brings: one that backtracks for ever is stopped and named, others give the same ids.
import { describe, expect, it } from 'vitest';
import { Batches } from '../../lib/data/batches.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import { FormatError } from '../../lib/errors.ts';
import { unknownRegexes } from '../../lib/text/pre_tokenizers.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { processorMs } from '../support/limits.ts';
import {
  tinyTokenizer,
  tinyTokenizerConfig,
  tinyTokenizerJson,
} from '../support/tiny_tokenizer.ts';

const split = (regex: string) => ({
  type: 'Sequence',
  pretokenizers: [
    { type: 'Split', pattern: { Regex: regex }, behavior: 'Isolated', invert: false },
    { type: 'ByteLevel', add_prefix_space: false, use_regex: false },
  ],
});
const replacing = (Regex: string, content = '') => ({
  type: 'Replace',
  pattern: { Regex },
  content,
});
const kEvil = '^(a+)+$|(?:a|aa)+b';
const kText = `${'a'.repeat(60)}!`;
const kStopped =
  /^tokenizer: a text of length \d+ was not converted within \d+ ms, by a tokenizer\.json with its own patterns \("\^\(a\+\)\+\$\|\(\?:a\|aa\)\+b"\); correct the pattern/;

const made = (parts: object) =>
  Tokenizer.fromJson({ ...tinyTokenizerJson(), ...parts }, tinyTokenizerConfig());

describe('a pattern that backtracks for ever is stopped', () => {
  it.each<[string, object, (tokenizer: Tokenizer) => unknown]>([
    ['in the pre-tokenizer', { pre_tokenizer: split(kEvil) }, (t) => t.encode(kText)],
    [
      'for plain text',
      { pre_tokenizer: split(kEvil) },
      (t) => t.encode(kText, { parseSpecial: false }),
    ],
    ['in the normalizer', { normalizer: replacing(kEvil) }, (t) => t.encodePair('b', kText)],
    [
      'in the decoder',
      { decoder: { type: 'Sequence', decoders: [{ type: 'Fuse' }, replacing(kEvil)] } },
      (t) => t.decode(tinyTokenizer().encode(kText)),
    ],
  ])('%s', (_, parts, run) => {
    const tokenizer = made(parts);
    const begin = processorMs();
    let error: unknown;
    try {
      run(tokenizer);
    } catch (thrown) {
      error = thrown;
    }
    expect(error).toBeInstanceOf(FormatError);
    expect((error as Error).message).toMatch(kStopped);
    expect(processorMs() - begin).toBeLessThan(20_000);
    // The tokenizer remains usable.
    expect(tokenizer.encode('the')).toEqual(tinyTokenizer().encode('the'));
  });

  it('in the normalizer, which an added token goes through', () => {
    const { added_tokens: tokens } = tinyTokenizerJson() as { added_tokens: { id: number }[] };
    const id = Math.max(...tokens.map((token) => token.id)) + 1;
    const added_tokens = [...tokens, { id, content: kText, special: false, normalized: true }];
    expect(() => made({ normalizer: replacing(kEvil), added_tokens })).toThrow(kStopped);
  });

  it('with the row named, in a dataset', async () => {
    const rows = [
      { prompt: 'b', response: 'c' },
      { prompt: kText, response: 'c' },
    ];
    const made = Batches.create(
      arrayRows(rows),
      Tokenizer.fromJson(tinyTokenizerJson({ pre_tokenizer: split(kEvil) }), tinyTokenizerConfig()),
      { promptTemplate: '{prompt}' },
    );
    await expect(made).rejects.toThrow(/^row 1: tokenizer: a text of length \d+ was not converted/);
  });
});

describe('patterns', () => {
  it('of published tokenizers are known, and others are not', () => {
    expect(
      unknownRegexes([{ type: 'Replace', pattern: { Regex: ' {2,}' }, content: '▁' }]),
    ).toEqual([]);
    expect(unknownRegexes(split('\\p{N}'))).toEqual([]);
    expect(unknownRegexes([null, split(kEvil), split(kEvil)])).toEqual([kEvil]);
  });

  it('that are not known give the ids that known ones give', () => {
    const gpt2 =
      "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    const known = made({ pre_tokenizer: split(gpt2) });
    const other = made({ pre_tokenizer: split(`(?:${gpt2})`) });
    for (const text of ['the cab', ' a  b\n\nthe', ''])
      expect(other.encode(text)).toEqual(known.encode(text));
  });

  it('and replacements that are too long are refused', () => {
    expect(() => made({ pre_tokenizer: split('a'.repeat(20_001)) })).toThrow(
      /a pattern has 20001 characters/,
    );
    const grows = replacing('a', 'a'.repeat(100));
    expect(() => made({ normalizer: { type: 'Sequence', normalizers: [grows, grows] } })).toThrow(
      /its Replace steps may make a text more than 4096 times as long/,
    );
    made({ normalizer: grows });
    const wordPiece = {
      type: 'WordPiece',
      unk_token: 'a',
      vocab: { a: 0 },
      continuing_subword_prefix: '##',
    };
    expect(() =>
      made({ model: { ...wordPiece, max_input_chars_per_word: 1e9 }, added_tokens: [] }),
    ).toThrow(/max_input_chars_per_word must be a whole number from 0 to 1000, got 1000000000/);
    made({ model: { ...wordPiece, max_input_chars_per_word: 100 }, added_tokens: [] });
  });
});
