import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { UnsupportedError } from '../../lib/errors.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { fixturePath } from '../support/fixtures.ts';
import { processorMs } from '../support/limits.ts';
import { describeShared, sharedPath } from '../support/shared.ts';
import { kTinyT5TokenizerConfig, tinyT5TokenizerJson } from '../support/tiny_t5_tokenizer.ts';
import {
  tinyTokenizer,
  tinyTokenizerConfig,
  tinyTokenizerJson,
} from '../support/tiny_tokenizer.ts';

type Json = Record<string, unknown>;

/** The texts that a stream gives with each id, and at the end. */
function streamed(tokenizer: Tokenizer, ids: readonly number[], skipSpecialTokens = false) {
  const stream = tokenizer.decodeStream({ skipSpecialTokens });
  return { chunks: ids.map((id) => stream.push(id)), flush: stream.end() };
}

/** Expects the parts of a stream to be the text of decode(), for random ids. */
function expectDecoded(tokenizer: Tokenizer, numRuns: number): void {
  const known = Array.from({ length: tokenizer.vocabSize }, (_, id) => id);
  const ids = fc.array(fc.constantFrom(...known), { minLength: 1, maxLength: 30 });
  fc.assert(
    fc.property(ids, fc.boolean(), (given, skipSpecialTokens) => {
      const { chunks, flush } = streamed(tokenizer, given, skipSpecialTokens);
      expect(chunks.join('') + flush).toBe(tokenizer.decode(given, { skipSpecialTokens }));
      for (const chunk of chunks) expect(chunk).not.toMatch(/\p{Cs}/u);
    }),
    { numRuns },
  );
}

/** A BPE tokenizer as Llama 2 and Gemma have it: U+2581 for spaces, and tokens for the bytes of other characters. */
function sentencePiece(decoders: Json[] | Json, over: Json = {}): Tokenizer {
  const bytes = Array.from({ length: 256 }, (_, byte) => {
    return `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`;
  });
  const words = ['▁', 'a', "'", 't', '.', '▁a', '▁▁', 'n', ',', '日', '▁the', '##ed', "n't"];
  const vocab = Object.fromEntries(
    ['<unk>', '<s>', '</s>', ...bytes, ...words].map((t, i) => [t, i]),
  );
  return Tokenizer.fromJson(
    {
      version: '1.0',
      added_tokens: ['<unk>', '<s>', '</s>'].map((content, id) => ({
        id,
        content,
        special: true,
        normalized: false,
      })),
      normalizer: null,
      pre_tokenizer: null,
      post_processor: null,
      decoder: Array.isArray(decoders) ? { type: 'Sequence', decoders } : decoders,
      model: { type: 'BPE', unk_token: '<unk>', byte_fallback: true, vocab, merges: [] },
    },
    { eos_token: '</s>', ...over },
  );
}

const kReplace = { type: 'Replace', pattern: { String: '▁' }, content: ' ' };
const kLlama = [
  kReplace,
  { type: 'ByteFallback' },
  { type: 'Fuse' },
  { type: 'Strip', content: ' ', start: 1, stop: 0 },
];
const kDecoders: Record<string, Json[] | Json> = {
  'Llama 2': kLlama,
  Gemma: kLlama.slice(0, 3),
  'bytes before words': [{ type: 'ByteFallback' }, { type: 'Metaspace', replacement: '▁' }],
  'spaces stripped at both ends': [
    kReplace,
    { type: 'Fuse' },
    { type: 'Strip', content: ' ', start: 2, stop: 2 },
  ],
  'spaces stripped from tokens': [kReplace, { type: 'Strip', content: ' ', start: 1, stop: 1 }],
  'replaced behind Fuse': [{ type: 'Fuse' }, kReplace],
  Metaspace: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always' },
  WordPiece: { type: 'WordPiece', prefix: '##', cleanup: true },
};

describe('DecodeStream', () => {
  it('gives the text of decode() for a byte-level vocabulary', () => {
    expectDecoded(tinyTokenizer(), 2000);
  });

  it('gives the text of decode() where spaces before punctuation are removed', () => {
    const cleaning = { ...tinyTokenizerConfig(), clean_up_tokenization_spaces: true };
    const tokenizer = Tokenizer.fromJson(tinyTokenizerJson(), cleaning);
    const ids = [..." '.nt,mversx"].map((char) => tokenizer.encode(char)[0] as number);
    fc.assert(
      fc.property(fc.array(fc.constantFrom(...ids), { minLength: 1, maxLength: 12 }), (given) => {
        const { chunks, flush } = streamed(tokenizer, given);
        expect(chunks.join('') + flush).toBe(tokenizer.decode(given));
      }),
      { numRuns: 5000 },
    );
  });

  it.each(Object.entries(kDecoders))('gives the text of decode(): %s', (_, decoders) => {
    expectDecoded(sentencePiece(decoders), 1000);
  });

  it('gives the text of decode() for the vocabularies of T5, and without a decoder', () => {
    expectDecoded(Tokenizer.fromJson(tinyT5TokenizerJson(), kTinyT5TokenizerConfig), 500);
    const json = { ...tinyT5TokenizerJson(), decoder: null };
    expectDecoded(Tokenizer.fromJson(json, kTinyT5TokenizerConfig), 500);
  });

  it('joins the bytes of a character around a special token that is left out', () => {
    const tokenizer = tinyTokenizer();
    const [a, b] = tokenizer.encode('é') as [number, number];
    const start = tokenizer.bosId as number;
    expect(streamed(tokenizer, [a, start, b], true)).toEqual({ chunks: ['', '', 'é'], flush: '' });
    expect(streamed(tokenizer, [a, start, b]).chunks).toEqual(['', '\ufffd<start>', '\ufffd']);
  });

  it('gives no text for an id without a token, as models have them beyond the vocabulary', () => {
    expect(streamed(tinyTokenizer(), [97, 5000, 98])).toEqual({
      chunks: ['a', '', 'b'],
      flush: '',
    });
  });

  it('refuses a decoder that cannot decode id by id, with its name', () => {
    const refused: [Json[] | Json, string][] = [
      [{ type: 'BPEDecoder', suffix: '</w>' }, 'BPEDecoder'],
      [[{ type: 'Fuse' }, { type: 'ByteFallback' }], 'ByteFallback'],
      [[{ type: 'Replace', pattern: { Regex: 'a+' }, content: '' }], 'Replace'],
      [[{ type: 'Fuse' }, { type: 'Replace', pattern: { String: 'ab' }, content: '' }], 'Replace'],
    ];
    for (const [decoders, name] of refused) {
      const make = () => sentencePiece(decoders).decodeStream();
      expect(make).toThrow(UnsupportedError);
      expect(make).toThrow(new RegExp(`the decoder ${name}.* cannot decode id by id`));
    }
  });

  it('takes the same time for each id of a long text', () => {
    const tokenizer = tinyTokenizer();
    const stream = tokenizer.decodeStream();
    const begun = processorMs();
    let length = 0;
    for (let i = 0; i < 200_000; i++) length += stream.push(i % 256).length;
    expect(length).toBeGreaterThan(100_000);
    expect(processorMs() - begun).toBeLessThan(10_000); // 10^10 decoded ids if each began from the first
  });
});

interface Streaming {
  note: string;
  ids: number[];
  chunks: string[];
  flush: string;
  text: string;
}

describeShared(
  'DecodeStream on the vocabulary of SmolLM2',
  ['golden/smollm2/tokenizer.json'],
  () => {
    const golden = JSON.parse(
      readFileSync(fixturePath('generation/streaming.json'), 'utf8'),
    ) as Streaming[];

    it.each(golden)('gives the golden parts: $note', async ({ ids, chunks, flush, text }) => {
      const tokenizer = await Tokenizer.fromFile(sharedPath('golden/smollm2/tokenizer.json'));
      expect(streamed(tokenizer, ids)).toEqual({ chunks, flush });
      expect(chunks.join('') + flush).toBe(text);
      expect(tokenizer.decode(ids)).toBe(text);
    });
  },
);
