import { readFileSync } from 'node:fs';
import { copyFile, lstat, mkdtemp, readdir, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { gguf } from '@huggingface/gguf';
import fc from 'fast-check';
import { beforeAll, describe, expect, it } from 'vitest';
import { ArgumentError, FormatError, UnsupportedError } from '../../lib/errors.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { describeShared, sharedPath } from '../support/shared.ts';
import { tinyTokenizerConfig, tinyTokenizerJson } from '../support/tiny_tokenizer.ts';

interface Golden {
  strings: { text: string; ids: number[]; ids_no_special?: number[] }[];
  chats: {
    messages: { role: string; content: string }[];
    add_generation_prompt: boolean;
    text: string;
    ids: number[];
  }[];
  chat_template: string;
  missing_bytes: number[];
  missing_byte_strings: { text: string; ids: number[]; ids_hf_tokenizers: number[] }[];
}

const kGguf = 'models/smollm2-135m-instruct-gguf/SmolLM2-135M-Instruct.Q4_1.gguf';
const kTokens = 'golden/smollm2/tokens.json';
const kJson = 'golden/smollm2/tokenizer.json';

describeShared('SmolLM2 tokenizer', [kGguf, kTokens, kJson], () => {
  let fromGguf: Tokenizer;
  let fromFile: Tokenizer;
  let golden: Golden;
  beforeAll(async () => {
    golden = JSON.parse(readFileSync(sharedPath(kTokens), 'utf8')) as Golden;
    const { metadata } = await gguf(sharedPath(kGguf), { allowLocalFile: true });
    fromGguf = Tokenizer.fromGguf(metadata as unknown as Record<string, unknown>);
    fromFile = await Tokenizer.fromFile(sharedPath(kJson));
  });

  const dropsBytes = (text: string) =>
    Buffer.from(text, 'utf8').some((byte) => golden.missing_bytes.includes(byte));

  it('gives the golden ids from the GGUF vocabulary and from tokenizer.json', () => {
    for (const { text, ids } of golden.strings) {
      expect(fromGguf.encode(text), JSON.stringify(text)).toEqual(ids);
      expect(fromFile.encode(text), JSON.stringify(text)).toEqual(ids);
    }
  });

  it('encodes special tokens as text on request', () => {
    const cases = golden.strings.filter((s) => s.ids_no_special);
    expect(cases.length).toBeGreaterThan(5);
    for (const { text, ids, ids_no_special } of golden.strings) {
      const expected = ids_no_special ?? ids;
      expect(fromGguf.encode(text, { parseSpecial: false }), text).toEqual(expected);
      expect(fromFile.encode(text, { parseSpecial: false }), text).toEqual(expected);
    }
  });

  it('reads the vocabulary of a GGUF file, unless there is a tokenizer.json beside it', async () => {
    const inside = await Tokenizer.fromPretrained(dirname(sharedPath(kGguf)));
    const { text, ids, ids_hf_tokenizers } = golden.missing_byte_strings[0] as Required<
      Golden['missing_byte_strings'][0]
    >;
    expect(inside.encode(text)).toEqual(ids);
    expect(inside.eosId).toBe(2);
    const folder = await mkdtemp(join(tmpdir(), 'balora-tokenizer-'));
    try {
      await symlink(sharedPath(kGguf), join(folder, 'model.gguf'));
      await copyFile(sharedPath(kJson), join(folder, 'tokenizer.json'));
      const beside = await Tokenizer.fromPretrained(join(folder, 'model.gguf'));
      expect(beside.encode(text)).toEqual(ids_hf_tokenizers);
      // tokenizer.json has no special ids and no chat template: they come from the GGUF file.
      expect(beside.eosId).toBe(2);
      const chat = golden.chats[0] as Golden['chats'][0];
      expect(beside.renderChat(chat.messages, { addGenerationPrompt: true })).toBe(chat.text);
      await symlink(sharedPath(kGguf), join(folder, 'other.gguf'));
      await expect(Tokenizer.fromPretrained(folder)).rejects.toThrow(/several GGUF files/);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it('saves a GGUF vocabulary as a tokenizer.json that gives the same ids', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'balora-tokenizer-'));
    try {
      await fromGguf.savePretrained(folder);
      await fromGguf.savePretrained(folder); // existing files are kept
      const saved = await Tokenizer.fromPretrained(folder);
      for (const { text, ids } of golden.strings) expect(saved.encode(text), text).toEqual(ids);
      for (const { messages, text, add_generation_prompt } of golden.chats) {
        const options = { addGenerationPrompt: add_generation_prompt };
        expect(saved.renderChat(messages, options)).toBe(text);
      }
      expect([saved.bosId, saved.eosId, saved.padId]).toEqual([1, 2, 2]);
      const written = JSON.parse(readFileSync(join(folder, 'tokenizer.json'), 'utf8'));
      const reference = JSON.parse(readFileSync(sharedPath(kJson), 'utf8'));
      expect(written.model.vocab).toEqual(reference.model.vocab);
      expect(written.model.merges).toEqual(reference.model.merges);
      expect(written.added_tokens).toEqual(reference.added_tokens);
      expect(Object.keys(written.model).sort()).toEqual(Object.keys(reference.model).sort());
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it('treats bytes without a token like the runtime of each format', () => {
    for (const { text, ids, ids_hf_tokenizers } of golden.missing_byte_strings) {
      expect(fromGguf.encode(text), JSON.stringify(text)).toEqual(ids);
      expect(fromFile.encode(text), JSON.stringify(text)).toEqual(ids_hf_tokenizers);
    }
  });

  it('renders and tokenizes the golden chats', () => {
    for (const chat of golden.chats) {
      const options = { addGenerationPrompt: chat.add_generation_prompt };
      expect(fromGguf.renderChat(chat.messages, options)).toBe(chat.text);
      expect(fromGguf.encodeChat(chat.messages, options)).toEqual(chat.ids);
    }
  });

  it('has the special ids', () => {
    expect([fromGguf.bosId, fromGguf.eosId, fromGguf.padId, fromGguf.unkId]).toEqual([1, 2, 2, 0]);
    expect(fromGguf.vocabSize).toBe(49152);
    expect(fromGguf.specialIds.size).toBe(17);
    expect(fromGguf.specialIds.has(16) && !fromGguf.specialIds.has(17)).toBe(true);
  });

  it('decodes encoded text, which is the concatenation of its tokens’ bytes', () => {
    for (const { text, ids } of golden.strings) {
      if (dropsBytes(text)) continue;
      expect(fromGguf.decode(ids), JSON.stringify(text)).toBe(text);
      const bytes = Buffer.concat(ids.map((id) => fromGguf.tokenBytes(id)));
      expect(bytes.toString('utf8')).toBe(text);
    }
    expect(fromGguf.decode([1, 520, 9531, 2], { skipSpecialTokens: true })).toBe('assistant');
  });

  it('round-trips arbitrary text, with the same ids from both formats', () => {
    const clean = fc.string({ unit: 'binary', maxLength: 60 }).filter((text) => !dropsBytes(text));
    fc.assert(
      fc.property(clean, (text) => {
        const ids = fromGguf.encode(text, { parseSpecial: false });
        expect(fromGguf.decode(ids)).toBe(text);
        expect(fromFile.encode(text, { parseSpecial: false })).toEqual(ids);
      }),
      { numRuns: 300 },
    );
  });
});

describeShared('WordPiece tokenizer', ['models/all-minilm-l6-v2', 'golden/nlu'], () => {
  it('gives the golden ids, without the truncation and padding of its tokenizer.json', async () => {
    const tokenizer = await Tokenizer.fromPretrained(sharedPath('models/all-minilm-l6-v2'));
    const { strings } = JSON.parse(
      readFileSync(sharedPath('golden/nlu/tokenizer.json'), 'utf8'),
    ) as { strings: { text: string; ids: number[] }[] };
    expect(strings.length).toBeGreaterThan(10);
    for (const { text, ids } of strings) expect(tokenizer.encode(text), text).toEqual(ids);
    expect(tokenizer.encode('word '.repeat(300)).length).toBe(302);
  });
});

describe('Tokenizer', () => {
  it('reads a Hugging Face folder with special tokens and chat template', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'balora-tokenizer-'));
    try {
      await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tinyTokenizerJson()));
      await writeFile(
        join(folder, 'tokenizer_config.json'),
        JSON.stringify({
          ...tinyTokenizerConfig(),
          eos_token: { content: '<end>', special: true },
        }),
      );
      const tokenizer = await Tokenizer.fromPretrained(folder);
      expect(tokenizer.eosId).toBe(tokenizer.tokenId('<end>'));
      expect(tokenizer.encode('ab<end>')).toEqual([...tokenizer.encode('ab'), tokenizer.eosId]);
      await writeFile(
        join(folder, 'chat_template.jinja'),
        '{{ messages[0].content }}{{ eos_token }}',
      );
      const again = await Tokenizer.fromPretrained(folder);
      expect(again.renderChat([{ role: 'user', content: 'x' }])).toBe('x<end>');
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it('does not read GGUF files beside a complete model folder', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'balora-tokenizer-'));
    try {
      await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tinyTokenizerJson()));
      const names = ['config.json', 'model.safetensors', 'model.f16.gguf', 'model.q8.gguf'];
      for (const name of names) await writeFile(join(folder, name), '');
      const tokenizer = await Tokenizer.fromPretrained(folder);
      expect(tokenizer.encode('ab')).toEqual(Tokenizer.fromJson(tinyTokenizerJson()).encode('ab'));
      await rm(join(folder, 'config.json'));
      await expect(Tokenizer.fromPretrained(folder)).rejects.toThrow(/several GGUF files/);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it('is saved under a temporary name first, so that the file is complete or absent', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'balora-tokenizer-'));
    try {
      // A rename replaces the link, while an opened file would be written through it.
      const path = join(folder, 'tokenizer.json');
      await symlink(join(folder, 'nowhere'), path);
      const tokenizer = Tokenizer.fromJson(tinyTokenizerJson(), tinyTokenizerConfig());
      await tokenizer.savePretrained(folder);
      expect((await lstat(path)).isFile()).toBe(true);
      expect((await readdir(folder)).sort()).toEqual(['tokenizer.json', 'tokenizer_config.json']);
      const again = await Tokenizer.fromPretrained(folder);
      expect(again.encode('ab<end>')).toEqual(tokenizer.encode('ab<end>'));
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it('names a missing or damaged file', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'balora-tokenizer-'));
    try {
      const path = join(folder, 'tokenizer.json');
      await expect(Tokenizer.fromPretrained(folder)).rejects.toThrow(`${path}: no such file`);
      await writeFile(path, '{"model": ');
      await expect(Tokenizer.fromPretrained(folder)).rejects.toThrow(`${path}: not valid JSON`);
      await writeFile(path, '{}');
      const error = await Tokenizer.fromPretrained(folder).catch((e: unknown) => e);
      expect(error).toBeInstanceOf(FormatError);
      expect((error as FormatError).path).toBe(path);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it('splits numbers and white space by Unicode, like the original', () => {
    const tokenizer = Tokenizer.fromJson(
      tinyTokenizerJson({
        pre_tokenizer: {
          type: 'Sequence',
          pretokenizers: [
            { type: 'Digits', individual_digits: true },
            { type: 'ByteLevel', add_prefix_space: false, use_regex: true },
          ],
        },
        // The merge of a space with the first byte of U+0661 or U+0085 applies only where both are in one pre-token.
        merges: [
          ['Ġ', 'Ù'],
          ['Ġ', 'Â'],
        ],
      }),
    );
    const tokens = (text: string) => tokenizer.encode(text).map((id) => tokenizer.token(id));
    expect(tokens(' \u0661')).toEqual(['Ġ', 'Ù', '¡']);
    expect(tokens(' \u0085x')[0]).toBe('Ġ');
    expect(tokens(' \u00a2')[0]).toBe('ĠÂ');
  });

  it('refuses unknown parts of tokenizer.json', () => {
    const metadata = (over: Record<string, unknown>) => ({
      'tokenizer.ggml.model': 'gpt2',
      'tokenizer.ggml.pre': 'smollm',
      'tokenizer.ggml.tokens': ['a', 'b', 'ab'],
      'tokenizer.ggml.token_type': new Int32Array([1, 1, 1]),
      'tokenizer.ggml.merges': ['a b'],
      ...over,
    });
    expect(Tokenizer.fromGguf(metadata({})).encode('ab')).toEqual([2]);
    expect(Tokenizer.fromGguf(new Map(Object.entries(metadata({})))).encode('ab')).toEqual([2]);
    const bad = (over: Record<string, unknown>) => () => Tokenizer.fromGguf(metadata(over));
    expect(bad({ 'tokenizer.ggml.model': 'rwkv' })).toThrow(UnsupportedError);
    expect(bad({ 'tokenizer.ggml.pre': 'poro' })).toThrow(/'poro' is not known/);
    expect(bad({ 'tokenizer.ggml.pre': undefined })).toThrow(/'default' is not known/);
    expect(bad({ 'tokenizer.ggml.pre': 'toString' })).toThrow(UnsupportedError);
    expect(bad({ 'tokenizer.ggml.tokens': undefined })).toThrow(FormatError);
    expect(bad({ 'tokenizer.ggml.token_type': [1] })).toThrow(/1 entries, tokens 3/);
    expect(bad({ 'tokenizer.ggml.eos_token_id': 7 })).toThrow(/outside the vocabulary/);
    expect(bad({ 'tokenizer.ggml.merges': ['ab'] })).toThrow(
      /merges\[0\] must be two tokens, got 'ab'; put .* tokenizer.json beside/,
    );
    expect(bad({ 'tokenizer.ggml.add_bos_token': true })).toThrow(/bos_token_id is missing/);
    const framed = Tokenizer.fromGguf(
      metadata({
        'tokenizer.ggml.add_bos_token': true,
        'tokenizer.ggml.add_eos_token': true,
        'tokenizer.ggml.bos_token_id': 0,
        'tokenizer.ggml.eos_token_id': 1n,
      }),
    );
    expect(framed.encode('ab')).toEqual([0, 2, 1]);
    expect(framed.encode('ab', { addSpecialTokens: false })).toEqual([2]);
  });

  it.each([-1, 1.5, '3', null, 2 ** 24 + 1, 1e308])('refuses the id %j of a token', (id) => {
    const json = structuredClone(tinyTokenizerJson()) as {
      model: { vocab: Record<string, unknown> };
      added_tokens: { id: unknown }[];
    };
    json.model.vocab.a = id;
    expect(() => Tokenizer.fromJson(json)).toThrow(
      /^tokenizer: model\.vocab: the id of "a" must be a whole number from 0 to 16777216, got /,
    );
    const added = structuredClone(tinyTokenizerJson()) as typeof json;
    (added.added_tokens[0] as { id: unknown }).id = id;
    expect(() => Tokenizer.fromJson(added)).toThrow(/^tokenizer: added_tokens: the id of "/);
  });

  it('refuses ids outside the vocabulary and chats without a template', () => {
    const tokenizer = Tokenizer.fromJson(tinyTokenizerJson());
    expect(tokenizer.decode([])).toBe('');
    expect(() => tokenizer.decode([99999])).toThrow(ArgumentError);
    expect(() => tokenizer.renderChat([{ role: 'user', content: 'x' }])).toThrow(
      /no chat template/,
    );
    const strict = Tokenizer.fromJson(tinyTokenizerJson(), {
      chat_template: "{{ raise_exception('roles must alternate') }}",
    });
    expect(() => strict.renderChat([])).toThrow(/chat template: .*roles must alternate/);
  });
});
