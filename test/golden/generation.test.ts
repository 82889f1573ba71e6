// Greedy generation against transformers: every family of tiny checkpoints, with and without adapters, and SmolLM2.
import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { type GenerateOptions, generate, generateWith } from '../../lib/generate/generate.ts';
import { type OpenSession, openSession } from '../../lib/generate/open_session.ts';
import { openUncachedSession } from '../../lib/generate/uncached_session.ts';
import {
  AutoModelForCausalLM,
  AutoModelForSeq2SeqLM,
  type CausalLM,
  type Seq2SeqLM,
} from '../../lib/models/index.ts';
import { getNumThreads, setNumThreads } from '../../lib/runtime.ts';
import type { ChatMessage } from '../../lib/text/chat_template.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { fixturePath } from '../support/fixtures.ts';
import { oneHot, scripted } from '../support/scripted_session.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

interface Tiny {
  task: 'causal_lm' | 'seq2seq_lm';
  new_tokens: number;
  prompts: number[][];
  ids: number[][];
  max_logit: number[][];
  use_cache_false_ids?: number[][];
  ids_adapter_off?: number[][];
  repetition_penalty?: { penalty: number; prompts: number[][]; ids: number[][] };
  eos_stop?: { eos_token_ids: number[]; ids: number[][] };
}

const tiny = JSON.parse(readFileSync(fixturePath('generation/tiny.json'), 'utf8')) as Record<
  string,
  Tiny
>;
const kMaxLogit = 1e-4; // of the golden README

const threads = getNumThreads();

type Loaded = CausalLM | Seq2SeqLM;

async function load(name: string, { task }: Tiny): Promise<Loaded> {
  const folder = fixturePath(`architectures/${name}/model`);
  return task === 'causal_lm'
    ? AutoModelForCausalLM.fromPretrained(folder)
    : AutoModelForSeq2SeqLM.fromPretrained(folder);
}

/** A session that notes the largest logit of each sequence at each step. */
function noting(open: OpenSession, largest: number[][]): OpenSession {
  return (model, options) => {
    const session = open(model, options);
    const note = (sequence: number, logits: Float32Array): void => {
      const own = largest[sequence] ?? [];
      own.push(logits.reduce((most, logit) => Math.max(most, logit)));
      largest[sequence] = own;
    };
    const { prefill, step } = session;
    session.prefill = async (prompts) => {
      const found = await prefill.call(session, prompts);
      for (const { sequence, logits } of found) note(sequence, logits);
      return found;
    };
    session.step = async (sequences, tokens) => {
      const rows = await step.call(session, sequences, tokens);
      for (const [i, row] of rows.entries()) note(sequences[i] as number, row);
      return rows;
    };
    return session;
  };
}

describe.each(Object.entries(tiny))('greedy generation: %s', (name, golden) => {
  const [family, kind] = name.split('/') as [string, string];
  let model: Loaded;
  let generator: Loaded | AdapterModel<CausalLM>;
  beforeAll(async () => {
    setNumThreads(1); // so small ops take longer to divide than to compute
    model = await load(family, golden);
    generator = model;
    if (kind === 'adapter') {
      generator = await AdapterModel.fromPretrained(
        model as CausalLM,
        fixturePath(`architectures/${family}/adapter`),
      );
    }
  });
  afterAll(() => {
    model.dispose();
    setNumThreads(threads);
  });

  /**
   * The ids by sessions of a kind. With a dynamic rotary embedding, keys in a cache keep the rotation of the length at which they
   * were written; without a cache, all keys are rotated by the whole length.
   */
  const expectedBy = (open: OpenSession): number[][] =>
    open !== openUncachedSession ? golden.ids : (golden.use_cache_false_ids ?? golden.ids);

  /** Ids of each prompt in one batch. */
  const idsOf = async (options: GenerateOptions): Promise<number[][]> => {
    const results = await generate(generator, {
      maxNewTokens: golden.new_tokens,
      eosTokenIds: [],
      ...options,
    }).result;
    return results.map(({ tokens }) => [...tokens]);
  };

  it('gives the ids and the largest logits, in a batch and one by one', async () => {
    for (const open of new Set([openSession, openUncachedSession])) {
      const largest: number[][] = [];
      const options = { ids: golden.prompts, maxNewTokens: golden.new_tokens, eosTokenIds: [] };
      const results = await generateWith(noting(open, largest), generator, options).result;
      const expected = expectedBy(open);
      expect(results.map(({ tokens }) => tokens)).toEqual(expected);
      if (expected !== golden.ids) continue; // their logits are not in the file
      largest.forEach((row, i) => {
        row.forEach((logit, t) => {
          expect(Math.abs(logit - (golden.max_logit[i]?.[t] as number)), `${i}, ${t}`).toBeLessThan(
            kMaxLogit,
          );
        });
      });
      expect(largest.map(({ length }) => length)).toEqual(expected.map(({ length }) => length));
    }
    const alone = await Promise.all(golden.prompts.map((ids) => idsOf({ ids })));
    expect(alone.flat()).toEqual(expectedBy(openSession));
  });

  const { repetition_penalty: penalised, eos_stop: ended, ids_adapter_off: idsOfBase } = golden;
  if (penalised !== undefined) {
    it('gives the ids with a repetition penalty', async () => {
      const { penalty, prompts, ids } = penalised;
      expect(await idsOf({ ids: prompts, repetitionPenalty: penalty })).toEqual(ids);
    });
  }

  if (ended !== undefined) {
    it('ends with any of the end tokens', async () => {
      const { eos_token_ids: eosTokenIds, ids } = ended;
      const options = { ids: golden.prompts, eosTokenIds, maxNewTokens: golden.new_tokens };
      const results = await generate(generator, options).result;
      expect(results.map(({ tokens }) => tokens)).toEqual(ids);
      for (const { finishReason, tokens } of results) {
        const isEnded = eosTokenIds.includes(tokens.at(-1) as number);
        expect(finishReason).toBe(isEnded ? 'stop' : 'length');
      }
    });
  }

  if (idsOfBase !== undefined) {
    it('gives the ids of the base with the adapter off', async () => {
      expect(await idsOf({ ids: golden.prompts, adapter: null })).toEqual(idsOfBase);
      expect(await idsOf({ ids: golden.prompts, adapter: 'default' })).toEqual(golden.ids);
    });
  }
});

interface Chat {
  messages: ChatMessage[];
  text: string;
  ids: number[];
  no_stop: { ids: number[]; text: string };
  greedy: { ids: number[]; finish: string; text: string };
  'repetition_penalty_1.1': { ids: number[]; finish: string; text: string };
  stop_strings: { stop: string[]; count: number; finish: string; text_before: string }[];
}

const kModel = 'models/smollm2-135m-instruct-gguf';
const kGolden = 'golden/generation/smollm2.json';

describeShared('SmolLM2 in f32', [kModel, kGolden], () => {
  const { chats, logprobs } = JSON.parse(readFileSync(sharedPath(kGolden), 'utf8')) as {
    chats: Chat[];
    logprobs: {
      prompt_ids: number[];
      ids: number[];
      logprobs: number[];
      top_ids: number[][];
      top_logprobs: number[][];
    };
  };
  let model: CausalLM;
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    model = await AutoModelForCausalLM.fromPretrained(sharedPath(kModel));
    tokenizer = await Tokenizer.fromPretrained(sharedPath(kModel));
  });
  afterAll(() => model.dispose());
  const messages = chats.map((chat) => chat.messages);
  const finished = (
    results: readonly { text: string; tokens: readonly number[]; finishReason: string }[],
  ) =>
    results.map(({ text, tokens, finishReason }) => ({ text, ids: tokens, finish: finishReason }));

  it('answers chats greedily', async () => {
    const results = await generate(model, { tokenizer, messages, maxNewTokens: 64 }).result;
    expect(finished(results)).toEqual(
      chats.map(({ greedy: { text, ids, finish } }) => ({ text, ids, finish })),
    );
    expect(results.map(({ promptTokens }) => promptTokens)).toEqual(
      chats.map(({ ids }) => ids.length),
    );
  });

  it('answers chats with a repetition penalty', async () => {
    const results = await generate(model, {
      tokenizer,
      messages,
      maxNewTokens: 64,
      repetitionPenalty: 1.1,
    }).result;
    const expected = chats.map((chat) => chat['repetition_penalty_1.1']);
    expect(finished(results)).toEqual(
      expected.map(({ text, ids, finish }) => ({ text, ids, finish })),
    );
  });

  it('ends texts before stop strings', async () => {
    for (const { ids: prompt, no_stop: whole, stop_strings: cases } of chats) {
      const { open } = scripted((ids) =>
        oneHot(whole.ids[ids.length - prompt.length] as number, model.vocabSize),
      );
      for (const { stop, count, finish, text_before } of cases) {
        const [result] = await generateWith(open, model, {
          ...{ tokenizer, ids: prompt, maxNewTokens: 64, eosTokenIds: [] },
          ...{ stopStrings: stop, skipSpecialTokens: false },
        }).result;
        expect(result).toMatchObject({ text: text_before, finishReason: finish });
        expect(result?.tokens).toEqual(whole.ids.slice(0, count));
      }
    }
  });

  it('gives log-probabilities', async () => {
    const { prompt_ids: ids } = logprobs;
    const tokens = [];
    for await (const token of generate(model, {
      ids,
      logprobs: 5,
      maxNewTokens: 24,
      eosTokenIds: [],
    }))
      tokens.push(token);
    expect(tokens.map(({ token }) => token)).toEqual(logprobs.ids);
    tokens.forEach(({ logprob, topLogprobs }, t) => {
      expect(Math.abs((logprob as number) - (logprobs.logprobs[t] as number))).toBeLessThan(1e-4);
      expect(topLogprobs?.map(({ token }) => token)).toEqual(logprobs.top_ids[t]);
      topLogprobs?.forEach((top, i) => {
        expect(Math.abs(top.logprob - (logprobs.top_logprobs[t]?.[i] as number))).toBeLessThan(
          1e-4,
        );
      });
    });
  });
});
