// The server as the official client of OpenAI's API sees it: a real model, its adapters as models, streams, log-probabilities, errors.
import OpenAI from 'openai';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { generate } from '../../lib/generate/generate.ts';
import type { GeneratedText } from '../../lib/generate/sequence.ts';
import { AutoModelForCausalLM, type CausalLM, demoCheckpoint } from '../../lib/models/index.ts';
import { type ApiServer, openServer } from '../../lib/serve/server.ts';
import { chatTokenizer } from '../support/chat_model.ts';
import { disturb } from '../support/tiny_adapters.ts';

const tokenizer = chatTokenizer();
const kKey = 'secret';
const messages = [{ role: 'user' as const, content: 'What is the state of the Union?' }];
let model: CausalLM;
let tuned: AdapterModel;
let server: ApiServer;
let client: OpenAI;
beforeAll(async () => {
  model = await AutoModelForCausalLM.fromPretrained(demoCheckpoint, { dtype: 'f32' });
  tuned = await AdapterModel.create(model, { r: 2 }, { name: 'first' });
  disturb(tuned, 1, 0.05);
  await tuned.addAdapter('second', { r: 4 });
  tuned.setAdapter('second');
  disturb(tuned, 50, 0.05);
  server = await openServer({
    ...{ host: '127.0.0.1', port: 0, apiKey: kKey, maxConcurrent: 1, maxWaiting: 1 },
  });
  server.serve({
    ...{ generator: tuned, model, tokenizer },
    models: [
      { id: 'base', adapter: null },
      { id: 'first', adapter: 'first' },
      { id: 'second', adapter: 'second' },
    ],
  });
  client = new OpenAI({ apiKey: kKey, baseURL: `${server.url}/v1`, maxRetries: 0 });
});
afterAll(async () => {
  await server.close();
  tuned.dispose();
  model.dispose();
});

const kAdapters = [
  ['base', null],
  ['first', 'first'],
  ['second', 'second'],
] as const;

async function expected(options: object): Promise<GeneratedText> {
  const [result] = await generate(tuned, { tokenizer, maxNewTokens: 10, ...options }).result;
  return result as GeneratedText;
}

describe('the official client', () => {
  it('lists the models', async () => {
    const list = await client.models.list();
    expect(list.data.map(({ id }) => id)).toEqual(['base', 'first', 'second']);
    expect(await client.models.retrieve('first')).toMatchObject({ id: 'first', object: 'model' });
  });

  it.each(kAdapters)('chats with %s, whole and by a stream', async (id, adapter) => {
    const wanted = await expected({ messages, adapter });
    const request = { model: id, messages, max_completion_tokens: 10 };
    const whole = await client.chat.completions.create(request);
    expect(whole.choices[0]).toMatchObject({
      message: { role: 'assistant', content: wanted.text },
      finish_reason: wanted.finishReason,
    });
    expect(whole.usage).toMatchObject({
      prompt_tokens: wanted.promptTokens,
      completion_tokens: wanted.tokens.length,
    });
    const stream = await client.chat.completions.create({
      ...{ ...request, stream: true, stream_options: { include_usage: true } },
    });
    let text = '';
    let usage: unknown = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? '';
      usage = chunk.usage ?? usage;
    }
    expect(text).toBe(wanted.text);
    expect(usage).toEqual(whole.usage);
  });

  it('gets the answers of two adapters at the same time', async () => {
    const texts = await Promise.all(
      kAdapters.slice(1).map(async ([id]) => {
        const { choices } = await client.chat.completions.create({
          ...{ model: id, messages, max_tokens: 10 },
        });
        return choices[0]?.message.content;
      }),
    );
    expect(new Set(texts).size).toBe(2);
  });

  it('completes texts, whole and by a stream', async () => {
    const wanted = await expected({ prompt: 'Call me', adapter: 'first', logprobs: 2 });
    const request = { model: 'first', prompt: 'Call me', max_tokens: 10 };
    const whole = await client.completions.create({ ...request, logprobs: 2 });
    expect(whole.choices[0]?.text).toBe(wanted.text);
    expect(whole.choices[0]?.logprobs?.token_logprobs).toEqual(wanted.logprobs);
    expect(whole.choices[0]?.logprobs?.tokens?.join('')).toBe(wanted.text);
    let text = '';
    for await (const chunk of await client.completions.create({ ...request, stream: true })) {
      text += chunk.choices[0]?.text ?? '';
    }
    expect(text).toBe(wanted.text);
  });

  it('draws the same with the same seed', async () => {
    const draw = async (seed?: number): Promise<string | null | undefined> => {
      const { choices } = await client.chat.completions.create({
        ...{ model: 'base', messages, temperature: 1, max_tokens: 10 },
        ...(seed !== undefined && { seed }),
      });
      return choices[0]?.message.content;
    };
    expect(await draw(3)).toBe(await draw(3));
    expect(await draw()).not.toBe(await draw());
  });

  it('has log-probabilities', async () => {
    const { choices } = await client.chat.completions.create({
      ...{ model: 'base', messages, max_tokens: 3, logprobs: true, top_logprobs: 2 },
    });
    const content = choices[0]?.logprobs?.content ?? [];
    expect(content).toHaveLength(3);
    for (const { token, logprob, top_logprobs: top } of content) {
      expect(top[0]).toMatchObject({ token, logprob });
      expect(top).toHaveLength(2);
    }
  });

  it('stops an answer, and the next request is answered', async () => {
    const stream = await client.chat.completions.create({
      ...{ model: 'base', messages, max_tokens: 400, stream: true },
    });
    for await (const _ of stream) break;
    const whole = await client.chat.completions.create({ model: 'base', messages, max_tokens: 2 });
    expect(whole.usage?.completion_tokens).toBe(2);
  });

  it('throws what it has a class for', async () => {
    const create = (more: object, own = client): Promise<unknown> =>
      own.chat.completions.create({ model: 'base', messages, ...more });
    await expect(create({ model: 'third' })).rejects.toThrow(OpenAI.NotFoundError);
    await expect(create({ stop: '' })).rejects.toMatchObject({ status: 400, param: 'stop' });
    await expect(create({ tools: [{ type: 'function' }] })).rejects.toThrow(
      /tools is not supported/,
    );
    await expect(
      create({ messages: [{ role: 'user', content: 'whale '.repeat(600) }] }),
    ).rejects.toMatchObject({ code: 'context_length_exceeded', param: 'messages' });
    await expect(create({}, client.withOptions({ apiKey: 'wrong' }))).rejects.toThrow(
      OpenAI.AuthenticationError,
    );
    const many = await Promise.allSettled(
      Array.from({ length: 4 }, () => create({ max_tokens: 30 })),
    );
    const refused = many.flatMap((one) => (one.status === 'rejected' ? [one.reason] : []));
    expect(refused).toHaveLength(2);
    for (const error of refused) {
      expect(error).toBeInstanceOf(OpenAI.RateLimitError);
      expect(Number(error.headers.get('retry-after'))).toBeGreaterThan(0);
    }
    // By default it tries again when it is told to.
    const patient = client.withOptions({ maxRetries: 5 });
    const all = Array.from({ length: 3 }, () => create({ max_tokens: 2 }, patient));
    expect(await Promise.all(all)).toHaveLength(3);
  });
});
