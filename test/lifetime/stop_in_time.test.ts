// Everything that computes with SmolLM2 ends within two seconds of its signal, in the middle of a prompt of 8,000 tokens or of 128 of them.
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { evaluate } from '../../lib/eval/evaluate.ts';
import { loglikelihoods } from '../../lib/eval/loglikelihood.ts';
import { openChat } from '../../lib/generate/chat.ts';
import { generate } from '../../lib/generate/generate.ts';
import { batchOf } from '../../lib/models/batch.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { memoryStats, opTimes, resetOpTimes, synchronize } from '../../lib/runtime.ts';
import { openServer } from '../../lib/serve/server.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { calibrate } from '../../lib/train/calibrate.ts';
import { openSocket, send } from '../support/api_server.ts';
import { runProgram } from '../support/child.ts';
import { eventually } from '../support/eventually.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

const kModel = 'models/smollm2-135m-instruct-gguf';
const kFile = `${kModel}/SmolLM2-135M-Instruct.Q4_1.gguf`;
const kTokens = 8000;
const kMany = 128;
/** The time in which an end is due, and attempts of which one must make it: other processes may hold the machine for a while. */
const kDueMs = 2000;
const kAttempts = 3;
/** Time that the work has before it is stopped: the engine is in the middle of it, with a long queue. */
const kBeginMs = 700;

const ids = (seed = 0): number[] =>
  Array.from({ length: kTokens }, (_, i) => 5 + ((i * 7919 + seed * 31) % 49_000));
const many = (): number[][] => Array.from({ length: kMany }, (_, seed) => ids(seed));

describeShared('with SmolLM2', [kFile], () => {
  let model: CausalLM;
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    model = await AutoModelForCausalLM.fromPretrained(sharedPath(kFile));
    tokenizer = await Tokenizer.fromPretrained(sharedPath(kFile));
  });
  afterAll(() => model?.dispose());

  /** Stops work in the middle of it; returns the least time that it took to end, and what it ended with. */
  async function stopped(work: (signal: AbortSignal) => Promise<unknown>): Promise<unknown> {
    const times: number[] = [];
    for (let attempt = 0; attempt < kAttempts; attempt++) {
      const stop = new AbortController();
      resetOpTimes();
      const ending = work(stop.signal).catch((error: unknown) => error);
      await eventually(() =>
        expect(opTimes().some(({ op }) => op === 'attention' || op === 'linear')).toBe(true),
      );
      await sleep(kBeginMs);
      const begun = performance.now();
      stop.abort(new Error('stopped'));
      const end = await ending;
      times.push(performance.now() - begun);
      await synchronize(); // nothing is left of it in the queue, and nothing failed
      times.push(Math.max(times.pop() as number, performance.now() - begun));
      // A server cuts connections off that a busy machine has not let it answer in time.
      const isCut = (end as { code?: unknown } | null)?.code === 'ECONNRESET';
      if ((times.at(-1) as number) < kDueMs && !isCut) return end;
      if (isCut) times[times.length - 1] = Number.POSITIVE_INFINITY;
    }
    expect(Math.min(...times)).toBeLessThan(kDueMs);
    return undefined;
  }

  it.each([
    ['a prompt', () => [ids()]],
    ['128 prompts', many],
  ])(
    'text generation of %s ends, with its memory, and what comes next is right',
    async (_, prompts) => {
      const next = async () =>
        (await generate(model, { ids: [1, 2, 3], maxNewTokens: 3 }).result)[0];
      const right = await next();
      const before = memoryStats().liveBytes;
      const end = await stopped(
        async (signal) =>
          await generate(model, { ids: prompts(), batchSize: kMany, signal }).result,
      );
      expect((end as { finishReason: string }[]).every((one) => one.finishReason === 'abort')).toBe(
        true,
      );
      // A larger table of positions stays with the model.
      expect(memoryStats().liveBytes - before).toBeLessThan(8 * 2 ** 20);
      expect((await next())?.tokens).toEqual(right?.tokens);
    },
  );

  it('a conversation ends its answer, and goes on from the turn before', async () => {
    const chat = openChat(model, { tokenizer, maxNewTokens: 2 });
    await chat.send('Good day.').result;
    const kept = chat.cachedTokens;
    const end = await stopped(
      async (signal) => await chat.send('one two three '.repeat(2500), { signal }).result,
    );
    expect(end).toMatchObject({ finishReason: 'abort', text: '' });
    expect(chat.cachedTokens).toBe(kept);
    expect((await chat.send('And you?').result).cachedTokens).toBeGreaterThan(kept - 8);
    chat.dispose();
  });

  it.each([
    ['a request', 1],
    ['128 requests of one item', kMany],
  ])('scoring of %s ends with the reason', async (_, count) => {
    const group = many()
      .slice(0, count)
      .map((one) => ({ context: one.slice(0, -1), continuation: one.slice(-1) }));
    const end = await stopped(async (signal) => {
      for await (const found of loglikelihoods(model, [group], { signal })) return found;
      return null;
    });
    expect(end).toMatchObject({ message: 'stopped' });
  });

  /** Micro-batches with so many sequences each, which predict their next ids. */
  function batchesOf(count: number, sequences: number) {
    const one = batchOf(many().slice(0, sequences));
    const targets = Int32Array.from(one.inputIds, (_, n) => one.inputIds[n + 1] ?? -100);
    const indices = Int32Array.from({ length: sequences }, (_, b) => b);
    const supervised = targets.length;
    return Array.from({ length: count }, () => ({ ...one, targets, indices, supervised }) as never);
  }

  it.each([
    ['a sequence', 1],
    ['128 sequences in one batch', kMany],
  ])('an evaluation of %s ends with the reason', async (_, sequences) => {
    const untuned = { model, hasTeacher: false, withTeacher: () => expect.fail() } as never;
    const end = await stopped((signal) => evaluate(untuned, batchesOf(1, sequences), { signal }));
    expect(end).toMatchObject({ message: 'stopped' });
  });

  it.each(['eva', 'corda', 'lora_ga'])(
    'a calibration for %s ends with the reason',
    async (init) => {
      const data = {
        batchCount: () => kMany,
        batches: () => batchesOf(1, 1),
        fingerprint: 'random ids',
      };
      const config = { r: 4, initLoraWeights: init, targetModules: ['q_proj', 'v_proj'] } as never;
      const end = await stopped((signal) => calibrate(model, config, { data, signal }));
      expect(end).toMatchObject({ message: 'stopped' });
    },
  );

  describe('a server', () => {
    const open = async () => {
      const server = await openServer({
        ...{ host: '127.0.0.1', port: 0, apiKey: null, maxConcurrent: 1, maxWaiting: 0 },
        maxPromptTokens: kMany * kTokens,
      });
      server.serve({
        generator: model,
        model,
        tokenizer,
        models: [{ id: 'm', adapter: undefined }],
      });
      return server;
    };

    it.each([
      ['a prompt', () => ids()],
      ['128 prompts', many],
    ])(
      'gives the place of a client that left to another, in the middle of %s',
      async (_, prompt) => {
        const server = await open();
        const body = JSON.stringify({ model: 'm', prompt: prompt(), max_tokens: 1 });
        const end = await stopped(async (signal) => {
          const socket = await openSocket(server);
          socket.write(
            `POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
          );
          signal.addEventListener('abort', () => socket.destroy());
          await new Promise((resolve) => socket.once('close', resolve));
          for (;;) {
            const short = { model: 'm', prompt: [1, 2, 3], max_tokens: 1 };
            const { status } = await send(server, '/v1/completions', { body: short });
            if (status !== 429) return status;
            await sleep(20);
          }
        });
        expect(end).toBe(200);
        await server.close();
      },
    );

    it('ends in the middle of 128 prompts', async () => {
      const end = await stopped(async (signal) => {
        const server = await open();
        const body = { model: 'm', prompt: many(), max_tokens: 1 };
        const answer = send(server, '/v1/completions', { body });
        await new Promise((resolve) => signal.addEventListener('abort', resolve));
        await server.close();
        return await answer;
      });
      expect(end).toMatchObject({ status: 503, json: { error: { code: 'stopping' } } });
    });
  });

  it('balora generate ends by Ctrl-C in the middle of its prompt', async () => {
    let least = Number.POSITIVE_INFINITY;
    for (let attempt = 0; attempt < kAttempts && least >= kDueMs; attempt++) {
      const result = await runProgram('test/lifetime/programs/interrupted_prompt.mjs', {
        args: [sharedPath(kFile)],
        hangMs: 60_000,
        onLine: (line, kill) => {
          if (line === 'begun') setTimeout(() => kill('SIGINT'), kBeginMs);
        },
      });
      expect(result, result.stderr).toMatchObject({ code: 130, signal: null, stopped: null });
      least = Math.min(least, Number(/ended (\S+)/.exec(result.stdout)?.[1]));
    }
    expect(least).toBeLessThan(kDueMs);
  });
});
