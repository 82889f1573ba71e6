// tokenizer.json files with parts of another type than they should have: each is refused with the file and the field.
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { FormatError, UnsupportedError } from '../../lib/errors.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { tinyTokenizerJson } from '../support/tiny_tokenizer.ts';
import { tinyWordPieceJson } from '../support/tiny_wordpiece.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-tokenizer-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const path = join(folder, 'tokenizer.json');
const base = tinyTokenizerJson() as Record<string, unknown>;
const wordPiece = tinyWordPieceJson(['the', 'cat']);

async function load(json: unknown): Promise<Tokenizer> {
  writeFileSync(path, JSON.stringify(json));
  return Tokenizer.fromPretrained(folder);
}

describe('a damaged tokenizer.json', () => {
  it.each([
    ['an added token that is none', { added_tokens: [null] }, /added_tokens\.0\.content must be/],
    ['an added token without content', { added_tokens: [{ id: 1 }] }, /added_tokens\.0\.content/],
    ['a post-processor without type', { post_processor: {} }, /post_processor\.type: /],
    [
      'a sequence of no list',
      { post_processor: { type: 'Sequence', processors: 7 } },
      /post_processor\.processors: /,
    ],
    [
      'normalizers of no list',
      { normalizer: { type: 'Sequence', normalizers: null } },
      /normalizer\.normalizers must be a list, got null/,
    ],
    [
      'pre-tokenizers of no list',
      { pre_tokenizer: { type: 'Sequence', pretokenizers: null } },
      /pre_tokenizer\.pretokenizers must be a list, got null/,
    ],
    [
      'an id that is no whole number',
      { post_processor: { type: 'BertProcessing', cls: ['a', 1], sep: ['b', -128] } },
      /gives no id for sep/,
    ],
    [
      'a template without parts',
      { post_processor: { type: 'TemplateProcessing', single: 5, pair: [] } },
      /post_processor\.single: /,
    ],
    [
      'a special token whose ids are texts',
      {
        post_processor: {
          type: 'TemplateProcessing',
          single: [{ SpecialToken: { id: 'x', type_id: 0 } }],
          pair: [],
          special_tokens: { x: { ids: ['1'] } },
        },
      },
      /post_processor\.special_tokens\.x\.ids\.0: /,
    ],
    [
      'a behavior that is a number',
      { pre_tokenizer: { type: 'Split', pattern: { String: ' ' }, behavior: 5, invert: false } },
      /pre_tokenizer\.behavior must be text, got 5/,
    ],
    [
      'a step of a sequence without a type',
      { normalizer: { type: 'Sequence', normalizers: [{ type: 'NFC' }, {}] } },
      /normalizer\.normalizers\.1\.type must be text, got nothing/,
    ],
    [
      'steps that are no list',
      { decoder: { type: 'Sequence', decoders: 5 } },
      /decoder\.decoders must be a list, got 5/,
    ],
    [
      'a split without a pattern',
      { pre_tokenizer: { type: 'Split', behavior: 'Isolated' } },
      /pre_tokenizer\.pattern must be an object, got nothing/,
    ],
    [
      'a pattern of another type',
      { normalizer: { type: 'Replace', pattern: { Regex: null, String: 'a' }, content: '' } },
      /normalizer\.pattern\.Regex must be text, got null/,
    ],
    [
      'words of length 0, which would never end',
      { pre_tokenizer: { type: 'FixedLength', length: 0 } },
      /pre_tokenizer\.length must be a whole number >= 1, got 0/,
    ],
    [
      'words of length null',
      { pre_tokenizer: { type: 'FixedLength', length: null } },
      /pre_tokenizer\.length must be a whole number >= 1, got null/,
    ],
    [
      'a mark that is null, which would be four letters',
      { pre_tokenizer: { type: 'Metaspace', replacement: null } },
      /pre_tokenizer\.replacement must be text, got null/,
    ],
    [
      'a beginning that is null',
      { normalizer: { type: 'Prepend', prepend: null } },
      /normalizer\.prepend must be text, got null/,
    ],
    [
      'a replacement that is null',
      { normalizer: { type: 'Replace', pattern: { String: 'a' }, content: null } },
      /normalizer\.content must be text, got null/,
    ],
    [
      'a character to strip that is null',
      {
        decoder: {
          type: 'Sequence',
          decoders: [{ type: 'Fuse' }, { type: 'Strip', content: null }],
        },
      },
      /decoder\.decoders\.1\.content must be text, got null/,
    ],
    [
      'a sequence without steps',
      { decoder: { type: 'Sequence' } },
      /decoder\.decoders must be a list/,
    ],
    [
      'words of fewer than no characters',
      { model: { ...(wordPiece.model as object), max_input_chars_per_word: -1 } },
      /max_input_chars_per_word must be a whole number from 0 to 1000, got -1/,
    ],
    [
      'a special token whose id is of no vocabulary',
      { post_processor: { type: 'BertProcessing', cls: ['a', 2 ** 31], sep: ['b', 1] } },
      /gives no id for cls/,
    ],
    ['a model that is none', { model: null }, /model must be an object, got null/],
    ['no vocabulary', { model: { type: 'BPE', merges: [] } }, /model\.vocab must be/],
    ['no merges', { model: { type: 'BPE', vocab: { a: 0 } } }, /model\.merges must be a list/],
    [
      'a merge of one token',
      { model: { type: 'BPE', vocab: { a: 0 }, merges: ['a'] } },
      /model\.merges\.0 must be two tokens in the form of the first merge, got "a"/,
    ],
    [
      'merges of two forms',
      { model: { type: 'BPE', vocab: { a: 0 }, merges: [['a', 'a'], 'a a'] } },
      /model\.merges\.1 must be two tokens/,
    ],
    [
      'a piece without a score',
      { model: { type: 'Unigram', vocab: [['a', 0], ['b']] } },
      /model\.vocab\.1 must be a token with its score, got \["b"\]/,
    ],
    [
      'an unknown token that is an object',
      { model: { type: 'BPE', vocab: { a: 0 }, merges: [], unk_token: {} } },
      /model\.unk_token must be text or null, got {}/,
    ],
    [
      'a flag that is a text',
      { added_tokens: [{ id: 1, content: 'a', special: 'yes' }] },
      /added_tokens\.0\.special must be true or false or null, got "yes"/,
    ],
    ['a vocabulary that is a text', { model: { type: 'BPE', vocab: 'a' } }, /model\.vocab must be/],
    [
      'an unknown id that is a list',
      { model: { type: 'Unigram', vocab: [['a', 0]], unk_id: [0] } },
      /the id of "unk_id" must be a whole number/,
    ],
  ])('with %s is refused by file and field', async (_, change, message) => {
    const error = await load({ ...base, ...change }).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(FormatError);
    expect((error as Error).message).toContain(path);
    expect((error as Error).message).toMatch(message);
  });

  it('that nests too deeply is refused, from a file or not', async () => {
    const depth = 20_000;
    const decoder = JSON.parse(`${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}`) as object;
    const deep = { ...base, decoder: { type: 'Fuse', ...decoder } };
    expect(() => Tokenizer.fromJson(deep)).toThrow(FormatError);
    expect(() => Tokenizer.fromJson(deep)).toThrow(/^tokenizer: it nests too deeply/);
  });

  it.each([7, 0, false, {}, [null], [{ name: 'default' }]])(
    'with the chat template %j is refused',
    (given) => {
      expect(() => Tokenizer.fromJson(base, { chat_template: given })).toThrow(
        /chat template: must be a text, or a list/,
      );
    },
  );

  it('and its configuration have limits of size', async () => {
    const config = join(folder, 'tokenizer_config.json');
    writeFileSync(config, '');
    truncateSync(config, 9 * 2 ** 20);
    await expect(load(base)).rejects.toThrow(
      /tokenizer_config\.json: has 9\.00 MiB, and .* 8\.00 MiB/,
    );
    rmSync(config);
    truncateSync(path, 65 * 2 ** 20);
    await expect(Tokenizer.fromPretrained(folder)).rejects.toThrow(
      /tokenizer\.json: has 65\.0 MiB/,
    );
  });

  it('of an unknown kind names the file', async () => {
    const error = await load({ ...base, post_processor: { type: 'New' } }).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(UnsupportedError);
    expect((error as Error).message).toMatch(/tokenizer\.json: tokenizer: post-processor "New"/);
  });

  it('without its unknown token gives no ids that are none', async () => {
    const model = { ...(wordPiece.model as object), unk_token: '[NONE]' };
    const tokenizer = await load({ ...wordPiece, model });
    expect(() => tokenizer.encode('xyz')).toThrow(FormatError);
  });
});
