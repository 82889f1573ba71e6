// The loop of generation on scripted logits: streams, ends, batches, draws, errors. With real models: test/golden/generation.test.ts.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import { ArgumentError, FormatError, NativeError, UnsupportedError } from '../../lib/errors.ts';
import { type GenerateOptions, generate, generateWith } from '../../lib/generate/generate.ts';
import type { GeneratedText, GeneratedToken } from '../../lib/generate/sequence.ts';
import { AutoModelForSequenceClassification } from '../../lib/models/index.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { fixturePath } from '../support/fixtures.ts';
import { oneHot, type Script, scripted } from '../support/scripted_session.ts';
import { disturb } from '../support/tiny_adapters.ts';
import { TinyModel } from '../support/tiny_model.ts';
import {
  tinyTokenizer,
  tinyTokenizerConfig,
  tinyTokenizerJson,
} from '../support/tiny_tokenizer.ts';

const kVocabulary = 262; // of the tiny tokenizer
const tokenizer = tinyTokenizer();
const model = new TinyModel({ vocabulary: kVocabulary });
const folder = mkdtempSync(join(tmpdir(), 'balora-generate-'));
afterAll(() => {
  model.dispose();
  rmSync(folder, { recursive: true, force: true });
});

/** A script that writes a text after a prompt of `skip` ids, and then ends. */
function writes(text: string, skip: number): Script {
  const ids = [...tokenizer.encode(text), tokenizer.eosId as number];
  return (given) => oneHot(ids[given.length - skip] as number, kVocabulary);
}

interface Collected {
  readonly tokens: GeneratedToken[];
  readonly results: readonly GeneratedText[];
  readonly session: ReturnType<typeof scripted>['session'];
}

/** Everything that a generation gives; the texts of its tokens must be those of its results. */
async function collect(script: Script, options: GenerateOptions): Promise<Collected> {
  const { open, session } = scripted(script);
  const stream = generateWith(open, model, { tokenizer, ...options });
  const tokens: GeneratedToken[] = [];
  for await (const token of stream) tokens.push(token);
  const results = await stream.result;
  results.forEach(({ text, tokens: ids }, sequence) => {
    const own = tokens.filter((token) => token.sequence === sequence);
    expect(own.map(({ token }) => token)).toEqual(ids);
    expect(own.map((token) => token.text).join('')).toBe(text);
  });
  expect(session.isDisposed).toBe(true);
  return { tokens, results, session };
}

/** Numbers from -1 to 1 that depend on ids. */
function hashed(ids: readonly number[], seed: number): Float32Array {
  let hash = seed;
  for (const id of ids) hash = (Math.imul(hash, 31) + id + 1) | 0;
  return Float32Array.from({ length: kVocabulary }, (_, id) => {
    const mixed = Math.imul(hash ^ Math.imul(id + 1, 0x9e3779b9), 0x85ebca6b);
    return ((mixed >>> 8) / 2 ** 23 - 1) * 3;
  });
}

describe('generate', () => {
  it('streams a text token by token, and ends with the end token', async () => {
    const { tokens, results } = await collect(writes('hé the end', 3), { prompt: 'one' });
    expect(tokens.map(({ text }) => text)).toEqual([
      'h',
      '',
      'é',
      ' ',
      'the',
      ' ',
      'e',
      'n',
      'd',
      '',
    ]);
    expect(results).toMatchObject([
      { text: 'hé the end', finishReason: 'stop', promptTokens: 3, logprobs: null },
    ]);
    expect(results[0]?.tokens.at(-1)).toBe(tokenizer.eosId);
    expect(results[0]?.promptTokensPerSecond).toBeGreaterThan(0);
    expect(results[0]?.tokensPerSecond).toBeGreaterThan(0);
  });

  it('ends after maxNewTokens, with an incomplete character as U+FFFD', async () => {
    const { results } = await collect(writes('hé', 1), { ids: [5], maxNewTokens: 2 });
    expect(results).toMatchObject([{ text: 'h\ufffd', finishReason: 'length' }]);
    expect(results[0]?.tokens).toHaveLength(2);
  });

  it('reads prompts as texts, conversations and ids', async () => {
    const seen: (readonly number[])[] = [];
    const script: Script = (ids) => {
      seen.push(ids.slice());
      return oneHot(tokenizer.eosId as number, kVocabulary);
    };
    const messages = [{ role: 'user', content: 'a' }];
    await collect(script, { prompt: ['x', 'yz'] });
    await collect(script, { messages });
    await collect(script, { messages: [messages, messages] });
    await collect(script, { ids: [[1, 2], Int32Array.of(3)] });
    const chat = tokenizer.encode('<start>user\na<end>\n<start>assistant\n');
    expect(seen).toEqual([
      tokenizer.encode('x'),
      tokenizer.encode('yz'),
      chat,
      chat,
      chat,
      [1, 2],
      [3],
    ]);
  });

  it('generates without a tokenizer, then without text', async () => {
    const { open } = scripted((ids) => oneHot(ids.length, kVocabulary));
    const stream = generateWith(open, model, { ids: [7, 8], maxNewTokens: 3 });
    expect(await stream.result).toMatchObject([
      { text: '', tokens: [2, 3, 4], finishReason: 'length' },
    ]);
  });

  describe('the end of a sequence', () => {
    it('is a stop string, across tokens, whose text is left out', async () => {
      const { tokens, results } = await collect(writes('one END of it', 1), {
        ids: [1],
        stopStrings: ['END', 'zzz'],
      });
      expect(results).toMatchObject([{ text: 'one ', finishReason: 'stop' }]);
      expect(results[0]?.tokens).toHaveLength(7); // o, n, e, a space, E, N, D
      expect(tokens.map(({ text }) => text)).toEqual(['o', 'n', 'e', ' ', '', '', '']);
    });

    it('is a stop string that the rest of the text completes', async () => {
      // The first byte of a character that does not come: U+FFFD only at the end.
      const { results } = await collect(writes('é', 1), {
        ids: [1],
        maxNewTokens: 1,
        stopStrings: '\ufffd',
      });
      expect(results).toMatchObject([{ text: '', finishReason: 'stop' }]);
    });

    it('gives back the beginning of a stop string that does not come', async () => {
      const { results } = await collect(writes('the EN', 1), { ids: [1], stopStrings: 'END' });
      expect(results).toMatchObject([{ text: 'the EN', finishReason: 'stop' }]);
    });

    it('is a stop string that is a special token, by its id', async () => {
      const { results } = await collect(writes('a<start>b', 1), {
        ids: [1],
        stopStrings: '<start>',
      });
      expect(results).toMatchObject([
        { text: 'a', finishReason: 'stop', tokens: [97, tokenizer.bosId] },
      ]);
      const shown = { skipSpecialTokens: false, stopStrings: '<start>' };
      expect((await collect(writes('a<start>b', 1), { ids: [1], ...shown })).results).toMatchObject(
        [{ text: 'a' }],
      );
    });

    it('is any of the given end tokens; special tokens are shown if asked for', async () => {
      const script = writes('ac<start>d', 1);
      const byId = await collect(script, { ids: [1], eosTokenIds: 99 });
      expect(byId.results).toMatchObject([{ text: 'ac', tokens: [97, 99], finishReason: 'stop' }]);
      const shown = await collect(script, { ids: [1], skipSpecialTokens: false });
      expect(shown.results).toMatchObject([{ text: 'ac<start>d<end>' }]);
      const skipped = await collect(script, { ids: [1] });
      expect(skipped.results).toMatchObject([{ text: 'acd' }]);
      const none = await collect(
        (ids) => oneHot(ids.length === 2 ? (tokenizer.eosId as number) : 97, kVocabulary),
        {
          ids: [1],
          eosTokenIds: [],
          maxNewTokens: 3,
        },
      );
      expect(none.results).toMatchObject([{ text: 'aa', finishReason: 'length' }]);
    });

    it('does not come before minNewTokens', async () => {
      const end = tokenizer.eosId as number;
      const script: Script = () => {
        const logits = oneHot(end, kVocabulary);
        logits[98] = 40;
        return logits;
      };
      expect((await collect(script, { ids: [1], minNewTokens: 3 })).results).toMatchObject([
        { text: 'bbb', tokens: [98, 98, 98, end] },
      ]);
    });

    it('is the end of the context', async () => {
      class Short extends TinyModel {
        override get contextLength(): number {
          return 6;
        }
      }
      const short = new Short({ vocabulary: kVocabulary });
      const { open } = scripted(() => oneHot(97, kVocabulary));
      const [result] = await generateWith(open, short, { tokenizer, ids: [1, 2, 3, 4] }).result;
      expect(result).toMatchObject({ text: 'aa', finishReason: 'length' });
      expect(() => generate(short, { ids: [1, 2, 3, 4, 5, 6] })).toThrow(
        'generate: ids has 6 tokens, but the context of this tiny model has 6, new tokens included; shorten the prompt',
      );
      short.dispose();
    });
  });

  it('gives in its stream the text of its result, whatever the tokens and the stop strings', async () => {
    const stop = fc.string({
      unit: fc.constantFrom('a', 'b', ' ', '\ufffd', 'é'),
      minLength: 1,
      maxLength: 3,
    });
    const cleaning = Tokenizer.fromJson(tinyTokenizerJson(), {
      ...tinyTokenizerConfig(),
      clean_up_tokenization_spaces: true,
    });
    await fc.assert(
      fc.asyncProperty(
        fc.record({
          seed: fc.integer(),
          stopStrings: fc.array(stop, { maxLength: 3 }),
          skipSpecialTokens: fc.boolean(),
          isCleaned: fc.boolean(),
          maxNewTokens: fc.integer({ min: 1, max: 40 }),
        }),
        async ({ seed, isCleaned, ...options }) => {
          const own = isCleaned ? cleaning : tokenizer;
          const { results } = await collect((ids) => hashed(ids, seed), {
            ...options,
            ids: [[1], [2, 3]],
            tokenizer: own,
            temperature: 1,
            topK: 40,
            numReturnSequences: 2,
          });
          for (const { text, tokens } of results) {
            const { skipSpecialTokens } = options;
            const whole = own.decode(tokens, { skipSpecialTokens });
            expect(whole.startsWith(text)).toBe(true);
            const stops = options.stopStrings;
            if (!stops.some((one) => whole.includes(one))) expect(text).toBe(whole);
            for (const one of stops) expect(text).not.toContain(one);
          }
        },
      ),
      { numRuns: 150 },
    );
  });

  describe('several sequences', () => {
    const prompts = Array.from({ length: 7 }, (_, i) => [i + 1, 2]);

    it('are decoded in batches that are filled up, and give the same whatever the size', async () => {
      const options = { ids: prompts, temperature: 1.2, maxNewTokens: 12, topK: 0 };
      const script: Script = (ids) => hashed(ids, 5);
      const alone = await collect(script, { ...options, batchSize: 1 });
      const three = await collect(script, { ...options, batchSize: 3 });
      const all = await collect(script, options);
      const idsOf = ({ results }: Collected) => results.map(({ tokens }) => tokens);
      expect(idsOf(three)).toEqual(idsOf(alone));
      expect(idsOf(all)).toEqual(idsOf(alone));
      expect([alone, three, all].map(({ session }) => session.mostLive)).toEqual([1, 3, 7]);
      expect(all.session.prefills).toEqual([7]);
      expect(new Set(idsOf(all).map((ids) => ids.join())).size).toBe(7);
    });

    it('of one prompt share its pass, and differ by their draws', async () => {
      const { results, session } = await collect((ids) => hashed(ids, 1), {
        ids: [[1], [1]],
        doSample: true,
        numReturnSequences: 3,
        maxNewTokens: 8,
      });
      expect(session.prefills).toEqual([2]);
      expect(results).toHaveLength(6);
      expect(new Set(results.map(({ tokens }) => tokens.join())).size).toBe(6);
    });

    it('may be more than fit into a batch', async () => {
      const { results, session } = await collect((ids) => hashed(ids, 1), {
        ids: [[1], [2], [3]],
        doSample: true,
        numReturnSequences: 3,
        batchSize: 2,
        maxNewTokens: 4,
      });
      expect(results).toHaveLength(9);
      expect(session.mostLive).toBe(3);
    });

    it('read the beginning of all prompts once where they are asked to share it', async () => {
      const script: Script = (ids) => hashed(ids, 3);
      const ids = [
        [7, 8, 9, 1],
        [7, 8, 9],
        [7, 8, 5, 6, 6],
      ];
      const options = { ids, maxNewTokens: 5, batchSize: 2 };
      const whole = await collect(script, options);
      const shared = await collect(script, { ...options, sharePrefix: true });
      expect(shared.results.map(({ tokens }) => tokens)).toEqual(
        whole.results.map(({ tokens }) => tokens),
      );
      expect(shared.results.map(({ promptTokens }) => promptTokens)).toEqual([4, 3, 5]);
      expect([shared.session.prefills, shared.session.extensions]).toEqual([[1], [2, 1]]);
      const differ = await collect(script, {
        ids: [
          [1, 2],
          [2, 2],
        ],
        sharePrefix: true,
      });
      expect([differ.session.prefills, differ.session.extensions]).toEqual([[2], []]);
      const same = await collect(script, {
        ids: [
          [1, 2, 3],
          [1, 2, 3],
        ],
        sharePrefix: true,
      });
      expect([same.session.prefills, same.session.extensions]).toEqual([[1], [2]]);
    });
  });

  it('repeats its draws with the same seed, and draws others with another', async () => {
    const draw = async (seed: number) => {
      const { results } = await collect((ids) => hashed(ids, 3), {
        ids: [1],
        seed,
        doSample: true,
        maxNewTokens: 20,
      });
      return results[0]?.tokens;
    };
    expect(await draw(1)).toEqual(await draw(1));
    expect(await draw(1)).not.toEqual(await draw(2));
  });

  it('returns the log-probabilities of the model itself', async () => {
    const logits = Float32Array.from({ length: kVocabulary }, (_, id) =>
      id === 97 ? 3 : id === 98 ? 2 : -1,
    );
    const { tokens, results } = await collect(() => logits, {
      ids: [98, 97],
      logprobs: 2,
      maxNewTokens: 2,
      repetitionPenalty: 4, // 97 and 98 become unlikely, which does not show in the log-probabilities
    });
    const sum = Math.log([...logits].reduce((total, logit) => total + Math.exp(logit), 0));
    expect(tokens[0]?.logprob).toBeCloseTo((logits[tokens[0]?.token as number] as number) - sum, 6);
    expect(tokens[0]?.topLogprobs?.map(({ token }) => token)).toEqual([97, 98]);
    expect(tokens[0]?.topLogprobs?.[1]?.logprob).toBeCloseTo(2 - sum, 6);
    expect(results[0]?.logprobs).toEqual(tokens.map(({ logprob }) => logprob));
    expect(
      (await collect(() => logits, { ids: [1], logprobs: 0, maxNewTokens: 1 })).tokens[0]
        ?.topLogprobs,
    ).toEqual([]);
  });

  describe('ends early', () => {
    it('by a signal: the results are what there is', async () => {
      const controller = new AbortController();
      const { open, session } = scripted((ids) => hashed(ids, 1));
      const stream = generateWith(open, model, { ids: [[1], [2]], signal: controller.signal });
      let count = 0;
      for await (const _ of stream) if (++count === 6) controller.abort();
      const results = await stream.result;
      expect(results.map(({ finishReason }) => finishReason)).toEqual(['abort', 'abort']);
      expect(results.reduce((sum, { tokens }) => sum + tokens.length, 0)).toBe(count);
      expect(count).toBeLessThan(20);
      expect(session.isDisposed).toBe(true);
    });

    it('by a signal from before the call: nothing is computed', async () => {
      const { open, session } = scripted(() => []);
      const stream = generateWith(open, model, { ids: [1, 2], signal: AbortSignal.abort() });
      expect(await stream.result).toMatchObject([
        { text: '', tokens: [], finishReason: 'abort', promptTokens: 2, tokensPerSecond: 0 },
      ]);
      expect(session.prefills).toEqual([]);
    });

    it('by a signal of a timer, although the logits need no time', async () => {
      const { open } = scripted(() => oneHot(1, kVocabulary));
      const signal = AbortSignal.timeout(50);
      const [result] = await generateWith(open, model, { ids: [1], signal, maxNewTokens: 1e9 })
        .result;
      expect(result?.finishReason).toBe('abort');
    });

    it('when its consumer leaves the loop', async () => {
      const { open, session } = scripted((ids) => hashed(ids, 1));
      const stream = generateWith(open, model, { ids: [1] });
      for await (const _ of stream) break;
      expect(session.isDisposed).toBe(true);
      const [result] = await stream.result;
      expect(result?.finishReason).toBe('abort');
      expect(session.steps).toBeLessThan(10);
    });
  });

  describe('fails', () => {
    const failing =
      (message: string): Script =>
      async (ids) => {
        if (ids.length > 3) throw new Error(message);
        return oneHot(97, kVocabulary);
      };

    it('in the stream and in the promise, and frees its session', async () => {
      const { open, session } = scripted(failing('out of memory'));
      const stream = generateWith(open, model, { tokenizer, ids: [1, 2] });
      const texts: string[] = [];
      const iterate = async () => {
        for await (const { text } of stream) texts.push(text);
      };
      await expect(iterate()).rejects.toThrow('out of memory');
      await expect(stream.result).rejects.toThrow('out of memory');
      expect(texts).toEqual(['a', 'a']);
      expect(session.isDisposed).toBe(true);
    });

    it('without ending the process where nobody looks at the result', async () => {
      const unhandled: unknown[] = [];
      const note = (reason: unknown): void => void unhandled.push(reason);
      process.on('unhandledRejection', note);
      const stream = generateWith(scripted(failing('unseen')).open, model, { ids: [1, 2] });
      void stream.result;
      const left = generateWith(scripted(failing('unseen')).open, model, { ids: [1, 2] });
      for await (const _ of left) break;
      await new Promise((resolve) => setTimeout(resolve, 20));
      process.off('unhandledRejection', note);
      expect(unhandled).toEqual([]);
    });

    it.each([
      [Number.NaN, /the logit of id 5 at token 1 of sequence 0 is NaN; the weights or the adapter/],
      [Number.POSITIVE_INFINITY, /the logit of id 5 at token 1 of sequence 0 is Infinity/],
    ])('at a logit of %s', async (value, message) => {
      const { open, session } = scripted((ids) => {
        const logits = oneHot(97, kVocabulary);
        if (ids.length === 2) logits[5] = value;
        return logits;
      });
      for (const options of [{}, { temperature: 0.5 }]) {
        const { result } = generateWith(open, model, { ids: [1], ...options });
        await expect(result).rejects.toThrow(message);
        await expect(result).rejects.toMatchObject({
          code: 'ERR_NOT_FINITE',
          constructor: NativeError,
        });
      }
      expect(session.isDisposed).toBe(true);
    });

    it('where no token is left', async () => {
      const all = Array.from({ length: kVocabulary }, (_, id) => id);
      for (const options of [{}, { doSample: true }]) {
        const { open } = scripted((ids) => hashed(ids, 1));
        const { result } = generateWith(open, model, {
          ids: [1],
          eosTokenIds: all,
          minNewTokens: 2,
          ...options,
        });
        await expect(result).rejects.toThrow('generate: no token is left for sequence 0');
      }
    });

    it('at a damaged generation_config.json, naming it', async () => {
      writeFileSync(join(folder, 'generation_config.json'), '{ "eos_token_id": "x" }');
      class There extends TinyModel {
        override readonly folder = folder;
      }
      const there = new There({ vocabulary: kVocabulary });
      const { result } = generateWith(scripted(() => []).open, there, { ids: [1] });
      await expect(result).rejects.toThrow(FormatError);
      await expect(result).rejects.toThrow(
        /generation_config.json: eos_token_id must be an id or a list of ids, got "x"/,
      );
      there.dispose();
    });

    it.each<[object, string]>([
      [{}, 'generate: give one of prompt, messages, ids, got none'],
      [
        { prompt: 'a', ids: [1] },
        'generate: give one of prompt, messages, ids, got prompt and ids',
      ],
      [{ prompt: '' }, 'generate: prompt has no tokens; give at least one'],
      [{ prompt: ['a', ''] }, 'generate: prompt[1] has no tokens'],
      [{ prompt: [] }, 'generate: prompt is an empty list'],
      [{ prompt: 5 }, 'generate: prompt must be a text or a list of texts'],
      [{ ids: [] }, 'generate: ids is an empty list'],
      [{ ids: [[1], []] }, 'generate: ids[1] must be a list of ids that is not empty'],
      [{ ids: new Int32Array(0) }, 'generate: ids has no tokens'],
      [
        { ids: [kVocabulary] },
        `generate: ids has the id ${kVocabulary}, which the model does not have; give ids from 0 to ${kVocabulary - 1}`,
      ],
      [{ ids: [[1], [1.5]] }, 'generate: ids[1] has the id 1.5'],
      [{ messages: [] }, 'generate: messages is an empty list'],
      [
        { messages: [{ content: 'a' }] },
        'generate: messages[0] must be a list of messages { role, content }',
      ],
      [{ ids: [1], adapter: 'x' }, 'generate: adapter "x" needs an AdapterModel'],
      [{ ids: [1], maxNewTokens: -1 }, 'maxNewTokens must be a whole number >= 1, got -1'],
      [{ ids: [1], stopStrings: [''] }, 'stopStrings must be a text that is not empty'],
    ])('at the call with %j', (options, message) => {
      const call = () => generate(model, { tokenizer, ...options } as GenerateOptions);
      expect(call).toThrow(ArgumentError);
      expect(call).toThrow(message);
    });

    it('at the call without a tokenizer that it needs', () => {
      expect(() => generate(model, { prompt: 'a' })).toThrow(
        "generate: prompt needs the model's tokenizer",
      );
      expect(() => generate(model, { ids: [1], stopStrings: 'a' })).toThrow(
        "generate: stopStrings needs the model's tokenizer",
      );
      const json = { ...tinyTokenizerJson(), decoder: { type: 'BPEDecoder', suffix: '' } };
      const odd = Tokenizer.fromJson(json);
      expect(() => generate(model, { ids: [1], tokenizer: odd })).toThrow(UnsupportedError);
    });

    it('at the call for a model that does not generate', async () => {
      const classifier = await AutoModelForSequenceClassification.fromPretrained(
        fixturePath('architectures/bert/model'),
      );
      expect(() => generate(classifier as never, { ids: [1] })).toThrow(
        'generate: the model must be a language model or an encoder-decoder, or one that is tuned, got a bert for classification',
      );
      expect(() => generate({} as never, { ids: [1] })).toThrow('got object');
      classifier.dispose();
    });
  });
});

describe('adapters', () => {
  const ids = [3, 5];

  it('generate by their names, and the model before tuning by null, whichever is active', async () => {
    const base = new TinyModel({ vocabulary: 40 });
    const of = async (given: Parameters<typeof generate>[0], options: object = {}) => {
      const [result] = await generate(given, { ids, maxNewTokens: 12, temperature: 2, ...options })
        .result;
      return result?.tokens;
    };
    const plain = await of(base);
    const tuned = await AdapterModel.create(base, { r: 2 });
    disturb(tuned, 100, 1);
    await tuned.addAdapter('other', { r: 3 });
    tuned.setAdapter('other');
    disturb(tuned, 200, 1);
    const [first] = tuned.names as [string];
    const other = await of(tuned);
    expect(other).not.toEqual(plain);
    expect(await of(tuned, { adapter: null })).toEqual(plain);
    expect(await of(tuned, { adapter: 'other' })).toEqual(other);
    const byName = await of(tuned, { adapter: first });
    expect(tuned.active).toBe('other');
    expect(byName).not.toEqual(other);
    tuned.setAdapter(first);
    expect(await of(tuned)).toEqual(byName);
    expect(await of(tuned, { adapter: 'other' })).toEqual(other);
    tuned.enabled = false;
    expect(await of(tuned)).toEqual(plain);
    expect(await of(tuned, { adapter: first })).toEqual(byName);
    expect(tuned.enabled).toBe(false);
    expect(() => generate(tuned, { ids, adapter: 'none' })).toThrow(
      `generate: there is no adapter "none"; known: ${first}, other`,
    );
    expect(() => generate(base, { ids, adapter: null })).toThrow('has an adapter already');
    tuned.dispose();
    expect(await of(base, { adapter: null })).toEqual(plain);
    base.dispose();
  });

  it('generate side by side', async () => {
    const base = new TinyModel({ vocabulary: 40 });
    const tuned = await AdapterModel.create(base, { r: 2 });
    disturb(tuned, 100, 1);
    const options = { ids, maxNewTokens: 12, temperature: 2 };
    const [first] = tuned.names as [string];
    const alone = async (adapter: string | null) =>
      (await generate(tuned, { ...options, adapter }).result)[0]?.tokens;
    const expected = [await alone(first), await alone(null)];
    expect(await Promise.all([alone(first), alone(null)])).toEqual(expected);
    tuned.dispose();
    base.dispose();
  });

  it('are not part of full fine-tuning', () => {
    const base = new TinyModel({ vocabulary: 40 });
    const tuned = new FullModel(base);
    expect(() => generate(tuned, { ids, adapter: null })).toThrow(
      'generate: adapter null needs an AdapterModel',
    );
    tuned.dispose();
    base.dispose();
  });
});
