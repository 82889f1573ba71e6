// The fields of requests: what they become, and what is refused by name.
import { describe, expect, it } from 'vitest';
import { ApiError } from '../../lib/serve/api_error.ts';
import { chatCompletions } from '../../lib/serve/chat_completions.ts';
import { completions } from '../../lib/serve/completions.ts';
import type { Fields } from '../../lib/serve/request.ts';

const messages = [{ role: 'user', content: 'a' }];
const chat = (fields: Fields) => chatCompletions.read({ model: 'm', messages, ...fields });
const text = (fields: Fields) => completions.read({ model: 'm', prompt: 'a', ...fields });

/** The error that a request gives. */
function errorOf(read: () => unknown): {
  message: string;
  param: string | null;
  code: string | null;
} {
  try {
    read();
  } catch (error) {
    expect(error).toBeInstanceOf(ApiError);
    expect(error).toMatchObject({ status: 400 });
    return (error as ApiError).body.error;
  }
  return expect.unreachable();
}

describe('a chat request', () => {
  it('is greedy unless it says otherwise', () => {
    expect(chat({})).toEqual({
      ...{ model: 'm', input: { messages }, settings: {} },
      ...{ isStream: false, includesUsage: false },
    });
    expect(chat({ temperature: 0, top_p: 0.5 }).settings).toEqual({ temperature: 0, topP: 0.5 });
  });

  it('has options of text generation, and draws anew without a seed', () => {
    const fields = {
      ...{ max_completion_tokens: 7, temperature: 0.5, top_p: 0.9, seed: 3, stop: 'x', n: 2 },
      ...{ top_k: 5, min_p: 0.1, repetition_penalty: 1.1, min_tokens: 2, user: 'u' },
      ...{ stream: true, stream_options: { include_usage: true }, logprobs: true, top_logprobs: 2 },
    };
    expect(chat(fields)).toMatchObject({
      ...{ isStream: true, includesUsage: true },
      settings: {
        ...{ maxNewTokens: 7, temperature: 0.5, topP: 0.9, seed: 3, stopStrings: 'x' },
        ...{ numReturnSequences: 2, topK: 5, minP: 0.1, repetitionPenalty: 1.1, minNewTokens: 2 },
        logprobs: 2,
      },
    });
    const [one, two] = [chat({ temperature: 1 }).settings, chat({ temperature: 1 }).settings];
    expect(one).toMatchObject({ temperature: 1, topK: 0 });
    expect(one.seed).not.toBe(two.seed);
  });

  it('has messages of texts', () => {
    const own = [
      {
        role: 'developer',
        content: [
          { type: 'text', text: 'a' },
          { type: 'text', text: 'b' },
        ],
      },
      { role: 'user', content: 'c', name: 'n' },
      { role: 'assistant', content: 'd', refusal: null, tool_calls: [], annotations: [] },
    ];
    expect(chat({ messages: own }).input).toEqual({
      messages: [
        { role: 'system', content: 'ab' },
        { role: 'user', content: 'c', name: 'n' },
        { role: 'assistant', content: 'd' },
      ],
    });
  });

  it('may have fields that ask for nothing', () => {
    const fields = {
      ...{ frequency_penalty: 0, presence_penalty: 0, logit_bias: {}, tools: [], store: false },
      ...{ response_format: { type: 'text' }, tool_choice: 'none', metadata: null, whatever: null },
    };
    expect(chat(fields)).toEqual(chat({}));
  });

  it.each<[Fields, string | null, string]>([
    [{ model: undefined }, 'model', 'model must be the name of a model'],
    [{ messages: [] }, 'messages', 'messages must be a list of messages that is not empty'],
    [{ messages: ['a'] }, 'messages[0]', 'messages[0] must be an object with role and content'],
    [
      { messages: [{ role: 'tool', content: 'a' }] },
      'messages[0].role',
      'messages[0].role must be one of',
    ],
    [{ messages: [{ role: 'user' }] }, 'messages[0].content', 'messages[0].content must be a text'],
    [
      { messages: [{ role: 'user', content: [{ type: 'image_url' }] }] },
      'messages[0].content[0]',
      "messages[0].content[0] must be { type: 'text', text }",
    ],
    [
      { messages: [{ role: 'assistant', content: 'a', tool_calls: [{}] }] },
      'messages[0].tool_calls',
      'messages[0].tool_calls is not supported; leave it out',
    ],
    [{ tools: [{}] }, 'tools', 'tools is not supported; leave it out'],
    [{ frequency_penalty: 0.5 }, 'frequency_penalty', 'frequency_penalty is not supported'],
    [{ response_format: { type: 'json_object' } }, 'response_format', 'response_format is not'],
    [{ max_token: 3 }, 'max_token', 'unknown field max_token; leave it out'],
    [{ constructor: 3 }, 'constructor', 'unknown field constructor'],
    [{ temperature: -1 }, 'temperature', 'temperature must be a number >= 0, got -1'],
    [{ temperature: 'hot' }, 'temperature', 'temperature must be a number >= 0, got "hot"'],
    [{ top_p: 2 }, 'top_p', 'top_p must be'],
    [{ max_tokens: 0 }, 'max_tokens', 'max_tokens must be a whole number >= 1, got 0'],
    [
      { max_tokens: 1, max_completion_tokens: 1 },
      'max_completion_tokens',
      'are two names of one limit',
    ],
    [{ min_tokens: 9, max_tokens: 4 }, null, 'min_tokens must be at most max_tokens'],
    [{ seed: -1 }, 'seed', 'seed must be a whole number >= 0, got -1'],
    [{ stop: '' }, 'stop', 'stop must be a text that is not empty, or a list of them, got ""'],
    [{ stop: ['a', ''] }, 'stop', 'stop must be a text that is not empty'],
    [{ n: 1000 }, 'n', 'n must be at most 128'],
    [{ stream: 'yes' }, 'stream', 'stream must be true or false'],
    [{ stream_options: {} }, 'stream_options', 'stream_options needs stream: true'],
    [
      { stream: true, stream_options: { include_usage: 1 } },
      'stream_options.include_usage',
      'stream_options.include_usage must be true or false',
    ],
    [{ stream: true, stream_options: { x: 1 } }, 'stream_options.x', 'is not supported'],
    [{ logprobs: 1 }, 'logprobs', 'logprobs must be true or false'],
    [{ top_logprobs: 3 }, 'top_logprobs', 'top_logprobs needs logprobs: true'],
    [{ logprobs: true, top_logprobs: 21 }, 'top_logprobs', 'must be a whole number from 0 to 20'],
  ])('refuses %j', (fields, param, message) => {
    const error = errorOf(() => chat(fields));
    expect(error.message).toContain(message);
    expect(error.param).toBe(param);
  });
});

describe('a completion request', () => {
  it.each<[unknown, object]>([
    ['a', { prompt: ['a'] }],
    [['a', 'b'], { prompt: ['a', 'b'] }],
    [[1, 2], { ids: [[1, 2]] }],
    [[[1, 2], [3]], { ids: [[1, 2], [3]] }],
  ])('has the prompt %j', (prompt, input) => {
    expect(text({ prompt }).input).toEqual(input);
  });

  it('has a number of likeliest tokens', () => {
    expect(text({ logprobs: 3 }).settings).toEqual({ logprobs: 3 });
    expect(text({ echo: false, best_of: 1, suffix: null })).toEqual(text({}));
  });

  it.each<[Fields, string, string]>([
    [{ prompt: [] }, 'prompt', 'prompt must be a text, a list of token ids'],
    [{ prompt: ['a', 1] }, 'prompt', 'prompt must be a text'],
    [{ prompt: undefined }, 'prompt', 'prompt must be a text'],
    [{ prompt: Array(100).fill('a'), n: 2 }, 'prompt', '100 prompts with n 2 are more than 128'],
    [{ echo: true }, 'echo', 'echo is not supported'],
    [{ logprobs: true }, 'logprobs', 'logprobs must be a whole number from 0 to 20'],
    [{ messages }, 'messages', 'unknown field messages'],
  ])('refuses %j', (fields, param, message) => {
    const error = errorOf(() => text(fields));
    expect(error.message).toContain(message);
    expect(error.param).toBe(param);
  });
});

describe('an answer', () => {
  const head = { id: 'i', created: 1, model: 'm' };
  const token = { token: 'a', bytes: [97], logprob: -1 };
  const tokens = [{ ...token, top: [token] }];

  it('to a chat request has the objects of OpenAI’s API', () => {
    const { whole, opening, part, closing, usage } = chatCompletions;
    const logprobs = { content: [{ ...token, top_logprobs: [token] }], refusal: null };
    const message = { role: 'assistant', content: 'a', refusal: null };
    expect(whole(head, [{ text: 'a', finishReason: 'stop', tokens }])).toEqual({
      ...{ ...head, object: 'chat.completion' },
      choices: [{ index: 0, message, logprobs, finish_reason: 'stop' }],
    });
    const chunk = (choice: object) => ({
      ...{ ...head, object: 'chat.completion.chunk' },
      choices: [{ index: 1, logprobs: null, finish_reason: null, ...choice }],
    });
    expect(opening(head, 1)).toEqual(chunk({ delta: { role: 'assistant', content: '' } }));
    const some = { text: 'a', tokens, offset: 4 };
    expect(part(head, 1, some)).toEqual(chunk({ delta: { content: 'a' }, logprobs }));
    expect(part(head, 1, { ...some, tokens: null })).toEqual(chunk({ delta: { content: 'a' } }));
    expect(closing(head, 1, 'length')).toEqual(chunk({ delta: {}, finish_reason: 'length' }));
    expect(usage(head)).toEqual({ ...head, object: 'chat.completion.chunk', choices: [] });
  });

  it('to a completion request, too', () => {
    const { whole, opening, part, closing, usage } = completions;
    const logprobs = (offset: number) => ({
      ...{ tokens: ['a'], token_logprobs: [-1], top_logprobs: [{ a: -1 }], text_offset: [offset] },
    });
    const object = 'text_completion';
    expect(whole(head, [{ text: 'a', finishReason: 'stop', tokens }])).toEqual({
      ...{ ...head, object },
      choices: [{ text: 'a', index: 0, logprobs: logprobs(0), finish_reason: 'stop' }],
    });
    const chunk = (choice: object) => ({
      ...{ ...head, object },
      choices: [{ index: 1, logprobs: null, finish_reason: null, ...choice }],
    });
    expect(opening(head, 1)).toBeNull();
    expect(part(head, 1, { text: 'a', tokens, offset: 4 })).toEqual(
      chunk({ text: 'a', logprobs: logprobs(4) }),
    );
    expect(closing(head, 1, 'length')).toEqual(chunk({ text: '', finish_reason: 'length' }));
    expect(usage(head)).toEqual({ ...head, object, choices: [] });
  });
});
