// Decoding with a cache of keys and values: greedy tokens and logits of every family against transformers, the same bits for a
// sequence alone and among others, forks and continuations, memory, and what is refused.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { type CachedSession, openCachedSession } from '../../lib/generate/cached_session.ts';
import { generate } from '../../lib/generate/generate.ts';
import type { DecoderLM } from '../../lib/models/decoder.ts';
import {
  AutoModelForCausalLM,
  AutoModelForSeq2SeqLM,
  AutoModelForSequenceClassification,
  type CausalLM,
  type Model,
  type Seq2SeqLM,
} from '../../lib/models/index.ts';
import { copy_, mul } from '../../lib/ops/index.ts';
import { memoryStats, synchronize } from '../../lib/runtime.ts';
import { noGrad, type Tensor } from '../../lib/tensor.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { architecture, normError } from '../support/golden_checkpoints.ts';

interface GoldenRun {
  readonly task: 'causal_lm' | 'seq2seq_lm';
  readonly new_tokens: number;
  readonly prompts: readonly (readonly number[])[];
  readonly ids: readonly (readonly number[])[];
  readonly max_logit: readonly (readonly number[])[];
}

const kGolden: Record<string, GoldenRun> = JSON.parse(
  readFileSync(fileURLToPath(new URL('../fixtures/generation/tiny.json', import.meta.url)), 'utf8'),
);

const run = <T>(body: () => T): T => noGrad(body);
const open = (model: Model): CachedSession => openCachedSession(model, { run, maxLength: 100 });

type DType = 'f32' | 'bf16' | 'f64';

/** Loads a golden checkpoint, `name` or `name/adapter`, for the time of `body`. */
async function withModel(
  name: string,
  dtype: DType,
  body: (model: CausalLM | Seq2SeqLM) => Promise<void>,
): Promise<void> {
  const [checkpoint = '', part] = name.split('/');
  const Auto = checkpoint.startsWith('t5') ? AutoModelForSeq2SeqLM : AutoModelForCausalLM;
  const folder = architecture(checkpoint);
  using model = await Auto.fromPretrained(join(folder, 'model'), { dtype });
  if (part !== 'adapter') return await body(model);
  const tuned = await AdapterModel.fromPretrained(model as CausalLM, join(folder, 'adapter'));
  await body(tuned.model);
  tuned.dispose();
}

const argmax = (logits: Float32Array): number =>
  logits.reduce((best, value, id) => (value > (logits[best] as number) ? id : best), 0);

interface Decoded {
  readonly ids: number[];
  readonly logits: Float32Array[];
}

/** Decodes greedily; sequence i ends after counts[i] tokens. */
async function decode(
  session: CachedSession,
  prompts: readonly (readonly number[])[],
  counts: readonly number[],
): Promise<Decoded[]> {
  const found: Decoded[] = prompts.map(() => ({ ids: [], logits: [] }));
  const started = await session.prefill(prompts.map((ids) => Int32Array.from(ids)));
  let live = started.map(({ sequence, logits }, i) => ({ sequence, logits, i }));
  for (;;) {
    for (const { i, logits } of live) {
      found[i]?.logits.push(logits);
      found[i]?.ids.push(argmax(logits));
    }
    for (const { sequence, i } of live) {
      if (found[i]?.ids.length === counts[i]) session.release(sequence);
    }
    live = live.filter(({ i }) => (found[i] as Decoded).ids.length < (counts[i] as number));
    if (live.length === 0) return found;
    const rows = await session.step(
      live.map(({ sequence }) => sequence),
      live.map(({ i }) => found[i]?.ids.at(-1) as number),
    );
    live = live.map((one, n) => ({ ...one, logits: rows[n] as Float32Array }));
  }
}

/** The first place at which two runs' logits have different bits; null: they are the same. */
function difference(a: readonly Float32Array[], b: readonly Float32Array[]): string | null {
  if (a.length !== b.length) return `${a.length} and ${b.length} steps`;
  for (const [step, row] of a.entries()) {
    const id = row.findIndex((value, i) => !Object.is(value, b[step]?.[i]));
    if (id >= 0) return `step ${step}, id ${id}: ${row[id]} and ${b[step]?.[id]}`;
  }
  return null;
}

describe('greedy decoding in f32 is that of transformers', () => {
  it.each(Object.keys(kGolden))('%s', async (name) => {
    const golden = kGolden[name] as GoldenRun;
    await withModel(name, 'f32', async (model) => {
      const session = open(model);
      const counts = golden.prompts.map(() => golden.new_tokens);
      const decoded = await decode(session, golden.prompts, counts);
      expect(decoded.map(({ ids }) => ids)).toEqual(golden.ids);
      decoded.forEach(({ logits }, i) => {
        logits.forEach((row, step) => {
          const error = Math.max(...row) - (golden.max_logit[i]?.[step] as number);
          expect(Math.abs(error), `${i}, step ${step}`).toBeLessThan(1e-4);
        });
      });
      session.dispose();
    });
  });
});

const kPrompts = [[3, 9, 4, 17, 5], [8], [21, 2, 2, 30, 7, 6, 11, 19], [40, 3, 9]];
const kCounts = [9, 14, 6, 12];
/** One checkpoint of each way of computing: windows, soft-caps, norms, biases, adapters, positions. */
const kKinds = [
  ...['llama-untied-gqa/adapter', 'mistral', 'gemma', 'gemma2', 'gemma3-text', 'qwen2', 'phi3'],
  ...['olmo2', 'gpt2/adapter', 'llama-dynamic-rope', 'llama-biases', 't5', 't5-v1.1'],
];

describe.each(['f32', 'bf16'] as const)('in %s a sequence gets the same bits', (dtype) => {
  it.each(kKinds)('alone and among others: %s', async (name) => {
    await withModel(name, dtype, async (model) => {
      const session = open(model);
      const together = await decode(session, kPrompts, kCounts);
      for (const [i, prompt] of kPrompts.entries()) {
        const [alone] = await decode(session, [prompt], [kCounts[i] as number]);
        expect(alone?.ids).toEqual(together[i]?.ids);
        expect(difference(alone?.logits ?? [], together[i]?.logits ?? [])).toBeNull();
      }
      session.dispose();
    });
  });
});

// The keys of a dynamic rotary embedding keep the frequencies that they had; T5's tokens are all decoded one by one.
const kWhole = kKinds.filter((name) => !/dynamic|^t5/.test(name));

describe('a step', () => {
  it.each(kWhole)('equals a forward of the whole sequence: %s', async (name) => {
    await withModel(name, 'f64', async (model) => {
      const session = open(model);
      const prompt = kPrompts[2] as number[];
      const [decoded] = await decode(session, [prompt], [12]);
      const { ids, logits } = decoded as Decoded;
      const [again] = await session.prefill([Int32Array.from([...prompt, ...ids.slice(0, -1)])]);
      const error = normError(again?.logits ?? [], logits.at(-1) as Float32Array);
      expect(error).toBeLessThan(1e-6); // of logits read in f32
      session.dispose();
    });
  });
});

describe('a fork', () => {
  it('goes on as its own sequence would, with the same bits', async () => {
    await withModel('gemma2', 'f32', async (model) => {
      const session = open(model);
      const prompt = Int32Array.from({ length: 40 }, (_, i) => (7 * i) % 50);
      const [first] = await session.prefill([prompt]);
      const forks = session.fork(first?.sequence as number, 3);
      const all = [first?.sequence as number, ...forks];
      const tokens = [
        [4, 5, 6, 7],
        [1, 9, 1, 9],
        [3, 3, 3, 3],
      ] as const;
      const together: Float32Array[][] = [];
      for (const step of tokens) together.push([...(await session.step(all, step))]);
      for (const [i] of all.entries()) {
        const [alone] = await session.prefill([prompt]);
        for (const [step, row] of tokens.entries()) {
          const [logits] = await session.step([alone?.sequence as number], [row[i] as number]);
          const other = together[step]?.[i] as Float32Array;
          expect(difference([logits as Float32Array], [other])).toBeNull();
        }
        session.release(alone?.sequence as number);
      }
      session.dispose();
    });
  });

  it('shares the memory of its prefix', async () => {
    await withModel('llama-untied-gqa', 'f32', async (model) => {
      const session = open(model);
      const [first] = await session.prefill([new Int32Array(64)]);
      const before = session.memory.usedBytes;
      const forks = session.fork(first?.sequence as number, 5);
      expect(session.memory.usedBytes).toBe(before);
      await session.step(forks, [1, 2, 3, 4, 5]);
      expect(session.memory.usedBytes).toBe(before + (5 * before) / 2); // a block more each, of two
      session.dispose();
    });
  });
});

describe('equal prompts', () => {
  it('are computed once, with the bits that each has alone, and then go their own ways', async () => {
    await withModel('llama-untied-gqa', 'bf16', async (model) => {
      const session = open(model);
      const prompt = Int32Array.from({ length: 40 }, (_, i) => (7 * i) % 50);
      const other = Int32Array.from({ length: 33 }, (_, i) => (3 * i) % 50);
      const [alone] = await session.prefill([prompt]);
      const before = session.memory.usedBytes;
      const started = await session.prefill([prompt, other, prompt, other, prompt]);
      const numbers = started.map(({ sequence }) => sequence);
      expect(new Set(numbers).size).toBe(5);
      expect(session.memory.usedBytes).toBe(3 * before); // as many blocks for each of the two
      for (const i of [0, 2, 4]) {
        const rows = [started[i]?.logits as Float32Array];
        expect(difference([alone?.logits as Float32Array], rows)).toBeNull();
      }
      started[0]?.logits.fill(0); // belongs to the caller
      expect(
        difference([alone?.logits as Float32Array], [started[2]?.logits as Float32Array]),
      ).toBe(null);
      const together = await session.step(numbers, [4, 5, 6, 7, 8]);
      const [after] = await session.step([alone?.sequence as number], [6]);
      expect(difference([after as Float32Array], [together[2] as Float32Array])).toBeNull();
      for (const number of numbers) session.release(number);
      session.release(alone?.sequence as number);
      expect(session.memory.usedBytes).toBe(0);
      session.dispose();
    });
  });

  it('leave nothing behind when their forward fails', async () => {
    await withModel('gpt2', 'f32', async (model) => {
      const session = open(model);
      const bad = Int32Array.of(100_000);
      await expect(session.prefill([bad, bad])).rejects.toThrow(/ids\[0\] of sequence 0/);
      expect(session.memory.usedBytes).toBe(0);
      session.dispose();
    });
  });
});

describe('prompts that share their beginning', () => {
  const prompts = [3, 20, 12].map((length, p) =>
    Int32Array.from({ length: 35 + length }, (_, i) => (i < 35 ? 5 * i : 11 * i + p) % 50),
  );
  const ids = prompts.map((prompt) => Array.from(prompt));

  it.each(['llama-untied-gqa/adapter', 'mistral', 'gemma3-text', 'gemma2'])(
    'give what whole prompts give, whatever the size of a batch: %s',
    async (name) => {
      await withModel(name, 'f64', async (model) => {
        const logprobsOf = async (options: { sharePrefix: boolean; batchSize?: number }) => {
          const call = { ids, maxNewTokens: 6, eosTokenIds: [], logprobs: 0, ...options };
          const results = await generate(model, call).result;
          return results.map(({ tokens, logprobs }) => ({ tokens, logprobs }));
        };
        const shared = await logprobsOf({ sharePrefix: true });
        expect(await logprobsOf({ sharePrefix: true, batchSize: 1 })).toEqual(shared);
        (await logprobsOf({ sharePrefix: false })).forEach(({ tokens, logprobs }, i) => {
          expect(shared[i]?.tokens).toEqual(tokens);
          logprobs?.forEach((value, t) => {
            expect(shared[i]?.logprobs?.[t]).toBeCloseTo(value, 5);
          });
        });
      });
    },
  );

  it('are refused for an encoder-decoder', async () => {
    await withModel('t5', 'f32', async (model) => {
      expect(() => generate(model, { ids, sharePrefix: true })).toThrow(
        /the encoder of this t5 model reads each prompt as a whole/,
      );
      expect(() => generate(model, { ids, sharePrefix: 1 as never })).toThrow(
        'generate: sharePrefix must be true or false, got 1',
      );
    });
  });
});

describe.each(['f32', 'bf16'] as const)(
  'an adapter in %s whose factors are kept packed',
  (dtype) => {
    it('is followed as it changes, and back', async () => {
      const folder = architecture('llama-untied-gqa');
      using model = await AutoModelForCausalLM.fromPretrained(join(folder, 'model'), { dtype });
      const tuned = await AdapterModel.fromPretrained(model, join(folder, 'adapter'));
      const session = open(model);
      const logits = async () => {
        const [decoded] = await decode(session, [[3, 9, 4, 17, 5]], [4]);
        return (decoded as Decoded).logits;
      };
      const first = await logits();
      const parameters = tuned.parameters().map(({ tensor }) => tensor);
      const before = parameters.map((parameter) => noGrad(() => mul(parameter, 1)));
      const set = (values: readonly Tensor[]): void =>
        noGrad(() => {
          for (const [i, parameter] of parameters.entries()) copy_(parameter, values[i] as Tensor);
        });
      set(before.map((values) => noGrad(() => mul(values, -2))));
      const changed = await logits();
      expect(difference(changed, first)).not.toBeNull();
      set(before);
      expect(difference(await logits(), first)).toBeNull();
      session.dispose();
      tuned.dispose();
    });
  },
);

describe('a continuation of several tokens', () => {
  it.each(['llama-untied-gqa', 'mistral', 'gemma3-text', 'gpt2'])(
    'equals single steps: %s',
    async (name) => {
      await withModel(name, 'f64', async (model) => {
        const session = open(model);
        const start = Int32Array.from([5, 6, 7]);
        const more = [9, 2, 14, 3, 3, 8, 21, 30, 1];
        const started = await session.prefill([start, start]);
        const [a, b] = started.map(({ sequence }) => sequence) as [number, number];
        const [at_once] = await session.extend([{ sequence: a, ids: more }]);
        let stepped: readonly Float32Array[] = [];
        for (const id of more) stepped = await session.step([b], [id]);
        expect(normError(at_once as Float32Array, stepped[0] as Float32Array)).toBeLessThan(1e-6);
        session.dispose();
      });
    },
  );
});

describe('the memory of sessions', () => {
  /** Bytes of keys and values of so many positions, in whole blocks of 32 with whole groups of 32 channels. */
  const onPaper = (
    positions: readonly number[],
    { layers, heads, channels }: { layers: number; heads: number; channels: number },
    bytes: number,
  ): number => {
    const blocks = positions.reduce((sum, count) => sum + Math.ceil(count / 32), 0);
    return blocks * 32 * layers * 2 * heads * Math.ceil(channels / 32) * 32 * bytes;
  };

  it.each([
    ['f32', 4],
    ['bf16', 2],
  ] as const)('in %s is what the positions take on paper', async (dtype, bytes) => {
    await withModel('llama-untied-gqa', dtype, async (model) => {
      const { numLayers, numKeyValueHeads, headDim } = (model as DecoderLM).config;
      const shape = { layers: numLayers, heads: numKeyValueHeads, channels: headDim };
      const session = open(model);
      const prompts = [1, 32, 33, 64].map((length) => new Int32Array(length).fill(length));
      const numbers = (await session.prefill(prompts)).map(({ sequence }) => sequence);
      expect(session.memory.usedBytes).toBe(onPaper([1, 32, 33, 64], shape, bytes));
      await session.step(numbers, [1, 1, 1, 1]);
      expect(session.memory.usedBytes).toBe(onPaper([2, 33, 34, 65], shape, bytes));
      session.dispose();
    });
  });

  it('is that of the cache on paper, and all is freed', async () => {
    await withModel('mistral', 'bf16', async (model) => {
      const cacheBytes = () => memoryStats().byTag['kv cache'] ?? 0;
      const live = async () => {
        await collectGarbage();
        await synchronize();
        const { liveTensors, liveBytes } = memoryStats();
        return { liveTensors, liveBytes };
      };
      const decodeOnce = async () => {
        const session = open(model);
        await decode(session, kPrompts, kCounts);
        expect(session.memory.usedBytes).toBe(0);
        await synchronize();
        expect(cacheBytes()).toBe(session.memory.bytes);
        session.dispose();
      };
      await decodeOnce();
      const before = await live();
      for (let i = 0; i < 10; i++) await decodeOnce();
      expect(await live()).toEqual(before);
      expect(cacheBytes()).toBe(0);
    });
  });

  it('does not grow while a window slides', async () => {
    await withModel('mistral', 'f32', async (model) => {
      const session = open(model);
      const [started] = await session.prefill([new Int32Array(40)]);
      const sequence = started?.sequence as number;
      const before = session.memory;
      // Beyond position 128, from where on the steps to position 256 are one recorded graph, whose tensors the session keeps.
      for (let i = 0; i < 95; i++) await session.step([sequence], [i % 50]);
      await collectGarbage();
      await synchronize();
      const { liveTensors, liveBytes, byTag } = memoryStats();
      for (let i = 0; i < 100; i++) await session.step([sequence], [i % 50]);
      await synchronize();
      expect(session.memory.bytes).toBe(before.bytes);
      const now = memoryStats();
      expect(now.liveTensors).toBeLessThanOrEqual(liveTensors);
      expect(now.liveBytes).toBeLessThanOrEqual(liveBytes);
      expect(now.byTag.graphs).toBe(byTag.graphs);
      session.dispose();
    });
  });
});

describe('a session', () => {
  it('settles what is pending when it is disposed of', async () => {
    await withModel('llama-untied-gqa', 'f32', async (model) => {
      const session = open(model);
      const pending = session.prefill([Int32Array.of(1, 2, 3)]);
      session.dispose();
      session.dispose();
      const [first] = await pending;
      expect(first?.logits.every(Number.isFinite)).toBe(true);
      await expect(session.step([0], [1])).rejects.toThrow(/has been disposed of/);
    });
  });

  it('refuses ids outside the vocabulary, unknown sequences and too long ones, and goes on', async () => {
    await withModel('gpt2', 'f32', async (model) => {
      const session = open(model);
      await expect(session.prefill([Int32Array.of(1), Int32Array.of(100_000)])).rejects.toThrow(
        /ids\[0\] of sequence 1 must be 0 to \d+, got 100000/,
      );
      expect(session.memory.usedBytes).toBe(0);
      const [first] = await session.prefill([new Int32Array(20)]);
      const sequence = first?.sequence as number;
      await expect(session.step([sequence, 99], [1, 1])).rejects.toThrow(/sequence 99 is not/);
      await expect(session.extend([{ sequence, ids: new Int32Array(5) }])).rejects.toThrow(
        /a sequence of 25 tokens is longer than the position table/,
      );
      expect((await session.step([sequence], [3]))[0]?.length).toBe(model.vocabSize);
      session.dispose();
    });
  });

  it('is refused for a model that classifies, by its name', async () => {
    using model = await AutoModelForSequenceClassification.fromPretrained(
      join(architecture('bert'), 'model'),
    );
    expect(() => open(model)).toThrow(/a bert model of this kind does not generate text/);
  });
});
