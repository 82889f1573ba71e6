// The server over HTTP, with a script in the place of a model: answers, errors, limits, clients that leave or never read, and its end.
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it, vi } from 'vitest';
import { ArgumentError } from '../../lib/errors.ts';
import type { RequestLine } from '../../lib/serve/request_line.ts';
import { openServer } from '../../lib/serve/server.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import {
  answers,
  chatBody,
  eventsOf,
  kVocabulary,
  openSocket,
  type Scripted,
  scriptedServer,
  send,
} from '../support/api_server.ts';
import { eventually } from '../support/eventually.ts';
import { oneHot, type Script } from '../support/scripted_session.ts';

let opened: Scripted[] = [];
async function start(...args: Parameters<typeof scriptedServer>): Promise<Scripted> {
  const scripted = await scriptedServer(...args);
  opened.push(scripted);
  return scripted;
}
afterEach(async () => {
  const all = opened;
  opened = [];
  await Promise.all(all.map(({ server }) => server.close()));
});

const kChat = '/v1/chat/completions';
const kText = '/v1/completions';

/** A script of one letter without end, each after a turn of the event loop; `gate` holds it back. */
function endless(gate: () => Promise<void> = async () => {}): Script {
  return async () => {
    await gate();
    await sleep(1);
    return oneHot(97, kVocabulary);
  };
}

/** A gate that can be opened once. */
function makeGate(): { gate: () => Promise<void>; open: () => void } {
  let open = (): void => {};
  const opening = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { gate: () => opening, open };
}

describe('an answer', () => {
  it('is an object, with the numbers of tokens', async () => {
    const { server, sessions } = await start(answers('héllo'));
    const { status, json } = await send(server, kChat, { body: chatBody() });
    expect(status).toBe(200);
    expect(json).toMatchObject({
      object: 'chat.completion',
      model: 'tiny',
      choices: [
        { index: 0, message: { role: 'assistant', content: 'héllo' }, finish_reason: 'stop' },
      ],
      usage: { prompt_tokens: 20, completion_tokens: 7, total_tokens: 27 },
    });
    expect(json.id).toMatch(/^chatcmpl-[0-9a-f]{32}$/);
    expect(sessions[0]?.isDisposed).toBe(true);
  });

  it('is a stream of events, whose texts are that of the object', async () => {
    const { server } = await start(answers('héllo'));
    const body = chatBody({ stream: true, stream_options: { include_usage: true } });
    const { headers, text } = await send(server, kChat, { body });
    expect(headers['content-type']).toBe('text/event-stream; charset=utf-8');
    const events = eventsOf(text) as {
      choices: { delta: { content?: string } }[];
      usage: object;
    }[];
    expect(events.at(-1)).toBe('[DONE]');
    expect(events.at(-2)).toMatchObject({ choices: [], usage: { total_tokens: 27 } });
    expect(events.at(-3)).toMatchObject({
      choices: [{ delta: {}, finish_reason: 'stop' }],
      usage: null,
    });
    expect(events[0]).toMatchObject({ choices: [{ delta: { role: 'assistant', content: '' } }] });
    const parts = events.slice(0, -2).map(({ choices }) => choices[0]?.delta.content ?? '');
    expect(parts).toEqual(['', 'h', 'é', 'l', 'l', 'o', '']);
  });

  it('has as many choices as are asked for, and ends before a stop string', async () => {
    const { server } = await start(answers('one END'));
    const body = chatBody({ n: 2, stop: ['END'], max_tokens: 50 });
    const { json } = await send(server, kChat, { body });
    expect(json).toMatchObject({
      choices: [0, 1].map((index) => ({
        index,
        message: { content: 'one ' },
        finish_reason: 'stop',
      })),
      usage: { prompt_tokens: 20, completion_tokens: 14 },
    });
    const { text } = await send(server, kChat, { body: { ...body, stream: true } });
    const ends = (eventsOf(text) as { choices: { index: number; finish_reason: string }[] }[])
      .flatMap(({ choices = [] }) => choices)
      .filter(({ finish_reason }) => finish_reason !== null);
    expect(ends.map(({ index }) => index)).toEqual([0, 1]);
  });

  it('has log-probabilities, with bytes that are no character on their own', async () => {
    const { server } = await start(answers('é'));
    const body = chatBody({ logprobs: true, top_logprobs: 1 });
    const { json } = await send(server, kChat, { body });
    const [choice] = json.choices as {
      logprobs: { content: { token: string; bytes: number[] }[] };
    }[];
    expect(choice?.logprobs.content.map(({ token, bytes }) => [token, bytes])).toEqual([
      ['\ufffd', [0xc3]],
      ['\ufffd', [0xa9]],
      ['<end>', [...new TextEncoder().encode('<end>')]],
    ]);
    const stream = await send(server, kChat, { body: { ...body, stream: true } });
    const listed = (eventsOf(stream.text) as { choices: typeof json.choices }[])
      .flatMap(({ choices = [] }) => choices as { logprobs: { content: unknown[] } | null }[])
      .flatMap(({ logprobs }) => logprobs?.content ?? []);
    expect(listed).toEqual(choice?.logprobs.content);
  });

  it('continues texts and ids', async () => {
    const { server } = await start((ids) => oneHot(97 + (ids.length % 3), kVocabulary));
    const body = { model: 'tiny', prompt: ['x', 'yz'], max_tokens: 3, logprobs: 0 };
    const { json } = await send(server, kText, { body });
    expect(json).toMatchObject({
      object: 'text_completion',
      choices: [
        { index: 0, text: 'bca', finish_reason: 'length', logprobs: { text_offset: [0, 1, 2] } },
        { index: 1, text: 'cab' },
      ],
      usage: { prompt_tokens: 3, completion_tokens: 6 },
    });
    const ids = await send(server, kText, {
      body: { model: 'tiny', prompt: [1, 2], max_tokens: 1 },
    });
    expect(ids.json).toMatchObject({ choices: [{ text: 'c' }] });
    const stream = await send(server, kText, { body: { ...body, stream: true } });
    const offsets = (
      eventsOf(stream.text) as {
        choices: { index: number; logprobs: { text_offset: number[] } | null }[];
      }[]
    )
      .flatMap(({ choices = [] }) => choices)
      .filter(({ index }) => index === 0)
      .flatMap(({ logprobs }) => logprobs?.text_offset ?? []);
    expect(offsets).toEqual([0, 1, 2]);
  });
});

describe('other routes', () => {
  it('tell of the state and of the models', async () => {
    const { server } = await start(answers('a'));
    expect(await send(server, '/health')).toMatchObject({ status: 200, json: { status: 'ok' } });
    const model = { id: 'tiny', object: 'model', owned_by: 'balora' };
    expect(await send(server, '/v1/models')).toMatchObject({
      json: { object: 'list', data: [model] },
    });
    expect(await send(server, '/v1/models/tiny?x=1')).toMatchObject({ json: model });
    expect(await send(server, '/v1/models/big')).toMatchObject({
      status: 404,
      json: { error: { message: 'there is no model "big"; known: tiny', code: 'model_not_found' } },
    });
  });

  it('answer 503 until there is a model', async () => {
    const server = await openServer({
      ...{ host: '127.0.0.1', port: 0, apiKey: null, maxConcurrent: 1, maxWaiting: 0 },
    });
    expect(await send(server, '/health')).toMatchObject({
      status: 503,
      json: { status: 'loading' },
    });
    const early = await send(server, kChat, { body: chatBody() });
    expect(early).toMatchObject({ status: 503, json: { error: { code: 'loading' } } });
    expect(early.headers['retry-after']).toBe('5');
    await server.close();
  });
});

describe('a request is refused', () => {
  it.each<[string, Parameters<typeof send>[2], number, object]>([
    ['/v2', {}, 404, { code: 'not_found' }],
    ['/%zz', {}, 404, { code: 'not_found' }],
    ['/__proto__', { body: {} }, 404, { code: 'not_found' }],
    [kChat, {}, 405, { message: `${kChat} needs POST, got GET` }],
    ['/health', { body: {} }, 405, { message: '/health needs GET, got POST' }],
    [kChat, { body: '{}', headers: { 'Content-Type': 'text/plain' } }, 415, {}],
    [kChat, { body: '{' }, 400, { code: 'invalid_json' }],
    [kChat, { body: '[]' }, 400, { message: 'the body must be a JSON object' }],
    [kChat, { body: '' }, 400, { code: 'invalid_json' }],
    [kChat, { body: chatBody({ model: 'big' }) }, 404, { code: 'model_not_found', param: 'model' }],
    [kChat, { body: chatBody({ stop: '' }) }, 400, { param: 'stop' }],
    [
      kChat,
      { body: chatBody({ logit_bias: { 1: 1 } }) },
      400,
      { param: 'logit_bias', code: 'unsupported_field' },
    ],
    [
      kText,
      { body: { model: 'tiny', prompt: '' } },
      400,
      { message: expect.stringContaining('prompt has no tokens'), param: 'prompt' },
    ],
    [
      kText,
      { body: { model: 'tiny', prompt: [[1], [999]] } },
      400,
      { message: expect.stringContaining('prompt[1] has the id 999'), param: 'prompt' },
    ],
    ['/v1/models', { headers: { Host: 'evil.example' } }, 403, { code: 'wrong_host' }],
  ])('%s %j', async (path, sent, status, error) => {
    const { server, errors } = await start(answers('a'));
    const received = await send(server, path, sent);
    expect(received).toMatchObject({ status, json: { error } });
    expect(Object.keys(received.json.error as object)).toEqual([
      'message',
      'type',
      'param',
      'code',
    ]);
    expect(errors).toEqual([]);
    // The server answers the next one.
    expect(await send(server, kChat, { body: chatBody() })).toMatchObject({ status: 200 });
  });

  it('without the key, unless it asks for the state', async () => {
    const { server } = await start(answers('a'), { apiKey: 'secret' });
    expect(await send(server, kChat, { body: chatBody() })).toMatchObject({
      ...{ status: 401, headers: { 'www-authenticate': 'Bearer' } },
      json: { error: { type: 'authentication_error', code: 'invalid_api_key' } },
    });
    expect((await send(server, '/v1/models')).status).toBe(401);
    expect((await send(server, '/health')).status).toBe(200);
    const headers = { Authorization: 'Bearer secret' };
    expect((await send(server, kChat, { body: chatBody(), headers })).status).toBe(200);
  });

  it('where too many wait, with the time after which to try again', async () => {
    const { gate, open } = makeGate();
    const { server } = await start(endless(gate), { maxConcurrent: 1, maxWaiting: 1 });
    const body = chatBody({ max_tokens: 2 });
    const running = [send(server, kChat, { body }), send(server, kChat, { body })];
    await eventually(async () => {
      const refused = await send(server, kChat, { body });
      expect(refused).toMatchObject({ status: 429, json: { error: { code: 'server_busy' } } });
      expect(Number(refused.headers['retry-after'])).toBeGreaterThan(0);
    });
    open();
    for (const one of running) expect((await one).status).toBe(200);
  });

  it('with an error of the model, and one that it caused alone is logged', async () => {
    const { server, errors } = await start(() => new Float32Array(kVocabulary).fill(Number.NaN));
    expect(await send(server, kChat, { body: chatBody() })).toMatchObject({
      status: 500,
      json: { error: { type: 'server_error', code: 'ERR_NOT_FINITE' } },
    });
    expect(errors).toHaveLength(1);
    const bug = await start(() => {
      throw new Error('a secret');
    });
    const { json } = await send(bug.server, kChat, { body: chatBody() });
    expect(json).toMatchObject({ error: { code: 'internal_error' } });
    expect(JSON.stringify(json)).not.toContain('secret');
    expect(bug.errors).toMatchObject([{ message: 'a secret' }]);
  });

  it('within a stream that has begun by an event', async () => {
    let count = 0;
    const { server } = await start(() => {
      const logits = oneHot(97, kVocabulary);
      return ++count < 3 ? logits : logits.fill(Number.NaN);
    });
    const { status, text } = await send(server, kChat, { body: chatBody({ stream: true }) });
    expect(status).toBe(200);
    expect(eventsOf(text).at(-1)).toMatchObject({ error: { code: 'ERR_NOT_FINITE' } });
    expect(text).not.toContain('[DONE]');
  });
});

describe('a body that is too long', () => {
  const head = (more: string): string =>
    `POST ${kChat} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n${more}\r\n\r\n`;

  /** Sends a head and as much of a body as is taken; returns what came back and how much was sent. */
  async function flood(
    { server }: Scripted,
    start: string,
    part: Buffer,
  ): Promise<{ received: string; sent: number }> {
    const socket = await openSocket(server);
    socket.on('error', () => {});
    let received = '';
    socket.setEncoding('utf8').on('data', (text: string) => {
      received += text;
    });
    const closed = new Promise((resolve) => socket.once('close', resolve));
    socket.write(start);
    const pump = (): void => {
      while (!socket.destroyed && socket.bytesWritten < 2 ** 30 && socket.write(part));
    };
    socket.on('drain', pump);
    pump();
    await closed;
    return { received, sent: socket.bytesWritten - socket.writableLength };
  }

  it('is refused before it is read: of 1 GB nothing but what fits into the connection is sent', async () => {
    const scripted = await start(answers('a'));
    const before = process.memoryUsage().rss;
    const { received, sent } = await flood(
      scripted,
      head('Content-Length: 1000000000'),
      Buffer.alloc(1 << 16, ' '),
    );
    expect(received).toMatch(/^HTTP\/1.1 413 Payload Too Large\r\n/);
    expect(received).toContain('the body is longer than 8.00 MiB');
    expect(received).toMatch(/Connection: close/i);
    expect(sent).toBeLessThan(64 * 2 ** 20);
    expect(process.memoryUsage().rss - before).toBeLessThan(128 * 2 ** 20);
    expect(scripted.sessions).toHaveLength(0);
    expect((await send(scripted.server, '/health')).status).toBe(200);
  });

  it('is refused where it gets too long, if it does not say how long it is', async () => {
    const scripted = await start(answers('a'), { maxBodyBytes: 1000 });
    const part = Buffer.from(`400\r\n${' '.repeat(1024)}\r\n`);
    const { received, sent } = await flood(scripted, head('Transfer-Encoding: chunked'), part);
    expect(received).toMatch(/^HTTP\/1.1 413 /);
    expect(sent).toBeLessThan(64 * 2 ** 20);
    const small = await send(scripted.server, kChat, {
      body: chatBody({ user: 'x'.repeat(2000) }),
    });
    expect(small.status).toBe(413);
  });

  it('is not asked for by 100 Continue', async () => {
    const { server } = await start(answers('a'), { maxBodyBytes: 1000 });
    const ask = async (length: number, body: string): Promise<string> => {
      const socket = await openSocket(server);
      let received = '';
      const closed = new Promise((resolve) => socket.once('close', resolve));
      socket.setEncoding('utf8').on('data', (text: string) => {
        if (text.startsWith('HTTP/1.1 100')) socket.write(body);
        received += text;
        if (received.includes('"usage"')) socket.end();
      });
      socket.write(head(`Content-Length: ${length}\r\nExpect: 100-continue`));
      await closed;
      return received;
    };
    expect(await ask(1e9, '')).toMatch(/^HTTP\/1.1 413 /);
    const body = JSON.stringify(chatBody());
    expect(await ask(body.length, body)).toMatch(/^HTTP\/1.1 100 Continue\r\n\r\nHTTP\/1.1 200 OK/);
  });
});

it('a role that is misspelt is refused with the one that is meant, before anything is computed', async () => {
  const { server, sessions } = await start(answers('a'));
  const messages = [
    { role: 'user', content: 'a' },
    { role: 'asistant', content: 'b' },
    { role: 'user', content: 'c' },
  ];
  expect(await send(server, kChat, { body: chatBody({ messages }) })).toMatchObject({
    status: 400,
    json: {
      error: {
        param: 'messages[1].role',
        message: expect.stringMatching(
          /^messages\[1\]\.role must be one of .*assistant.* \(did you mean "assistant"\?\)/,
        ),
      },
    },
  });
  expect(sessions).toHaveLength(0);
  const own = messages.map((one) => ({ ...one, role: one.role.replace('asis', 'assis') }));
  expect((await send(server, kChat, { body: chatBody({ messages: own }) })).status).toBe(200);
});

describe('prompts that are too long', () => {
  // A token of the tiny tokenizer is a byte or a special token, and the tiny model's context has no end.
  it('are refused before they are computed, and by their characters before they are tokenized', async () => {
    const { server, sessions } = await start(answers('a'), { maxPromptTokens: 10 });
    const ask = (prompt: unknown) =>
      send(server, kText, { body: { model: 'tiny', prompt, max_tokens: 1 } });
    for (const prompt of [
      'x'.repeat(11),
      ['x'.repeat(6), 'y'.repeat(5)],
      [
        [1, 2, 3, 4, 5, 6],
        [1, 2, 3, 4, 5],
      ],
    ]) {
      expect(await ask(prompt)).toMatchObject({
        status: 413,
        json: {
          error: {
            code: 'prompt_too_long',
            param: 'prompt',
            message: expect.stringContaining('has 11 tokens in all'),
          },
        },
      });
    }
    const encode = vi.spyOn(Tokenizer.prototype, 'encode');
    const long = await ask('x'.repeat(200));
    expect(long).toMatchObject({ status: 413, json: { error: { code: 'prompt_too_long' } } });
    expect(long.json).toMatchObject({
      error: { message: expect.stringContaining('200 characters') },
    });
    const content = 'x'.repeat(200);
    const chat = await send(server, kChat, {
      body: chatBody({ messages: [{ role: 'user', content }] }),
    });
    expect(chat).toMatchObject({ status: 413, json: { error: { param: 'messages' } } });
    const named = await send(server, kChat, {
      body: chatBody({ messages: [{ role: 'user', content: 'a', name: content }] }),
    });
    expect(named).toMatchObject({ status: 413, json: { error: { param: 'messages' } } });
    // Fewer characters than there may be, in a row.
    for (const run of ['x'.repeat(41), ' '.repeat(41), `a ${'='.repeat(41)}`]) {
      expect((await ask(run)).json).toMatchObject({
        error: {
          code: 'prompt_too_long',
          message: expect.stringContaining('41 characters in a row'),
        },
      });
    }
    expect(encode).not.toHaveBeenCalled();
    encode.mockRestore();
    expect((await ask('x 1='.repeat(10))).json).toMatchObject({
      error: { message: expect.stringContaining('has 40 tokens in all') },
    });
    expect(sessions).toHaveLength(0);
    expect((await ask('x'.repeat(10))).status).toBe(200);
  });

  it('of megabytes do not hold up the state of the server', async () => {
    const { server } = await start(answers('a'));
    const body = chatBody({ messages: [{ role: 'user', content: 'a'.repeat(7 * 2 ** 20) }] });
    const begun = process.cpuUsage();
    const [long, health] = await Promise.all([
      send(server, kChat, { body }),
      send(server, '/health'),
    ]);
    const { user, system } = process.cpuUsage(begun);
    expect(health.status).toBe(200);
    expect(long).toMatchObject({ status: 413, json: { error: { code: 'prompt_too_long' } } });
    expect((user + system) / 1e6).toBeLessThan(3);
  });
});

describe('a client that', () => {
  it('leaves ends its generation, and frees its place', async () => {
    const { server, sessions } = await start(endless(), { maxConcurrent: 1, maxWaiting: 1 });
    for (const stream of [true, false]) {
      const socket = await openSocket(server);
      const body = JSON.stringify(chatBody({ stream, max_tokens: 100_000 }));
      socket.write(
        `POST ${kChat} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
      );
      await eventually(() => expect(sessions.at(-1)?.steps).toBeGreaterThan(3));
      const session = sessions.at(-1);
      socket.destroy();
      await eventually(() => expect(session?.isDisposed).toBe(true));
      sessions.length = 0;
    }
    expect(await send(server, kChat, { body: chatBody({ max_tokens: 1 }) })).toMatchObject({
      status: 200,
    });
  });

  it('leaves while it waits loses its place', async () => {
    const { gate, open } = makeGate();
    const { server, sessions } = await start(endless(gate), { maxConcurrent: 1, maxWaiting: 1 });
    const body = chatBody({ max_tokens: 1 });
    const first = send(server, kChat, { body });
    await eventually(() => expect(sessions).toHaveLength(1));
    const socket = await openSocket(server);
    const text = JSON.stringify(body);
    socket.write(
      `POST ${kChat} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: ${text.length}\r\n\r\n${text}`,
    );
    await eventually(async () => expect((await send(server, kChat, { body })).status).toBe(429));
    socket.destroy();
    const third = send(server, kChat, { body });
    await sleep(50);
    open();
    expect((await first).status).toBe(200);
    expect((await third).status).toBe(200);
    expect(sessions).toHaveLength(2);
  });

  it('never reads holds neither a place nor memory, and loses its connection', async () => {
    // An answer of megabytes, more than a connection's buffers take.
    const script: Script = () => oneHot(97, kVocabulary);
    const lines: RequestLine[] = [];
    const { server, sessions } = await start(script, {
      ...{ maxConcurrent: 1, maxWaiting: 4, stallMs: 1500 },
      onRequest: (line) => lines.push(line),
    });
    const socket = await openSocket(server);
    socket.pause();
    const closed = new Promise((resolve) => socket.once('close', resolve));
    socket.on('error', () => {});
    const body = JSON.stringify(
      chatBody({ stream: true, max_tokens: 6000, logprobs: true, top_logprobs: 20 }),
    );
    socket.write(
      `POST ${kChat} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n${body}`,
    );
    await eventually(() => expect(sessions).toHaveLength(1));
    // The next request waits for the generation alone, not for the reader.
    const next = await send(server, kChat, { body: chatBody({ max_tokens: 2 }) });
    expect(next.status).toBe(200);
    expect(sessions[0]?.isDisposed).toBe(true);
    await eventually(() => expect(lines).toHaveLength(2));
    expect(lines.filter(({ status }) => status === null)).toMatchObject([{ answer: null }]);
    socket.resume();
    await closed;
    expect((await send(server, '/health')).status).toBe(200);
  });
});

describe('a server', () => {
  it('names a port that is in use', async () => {
    const { server } = await start(answers('a'));
    const port = Number(new URL(server.url).port);
    const options = { host: '127.0.0.1', port, apiKey: null, maxConcurrent: 1, maxWaiting: 1 };
    const failure = openServer(options);
    await expect(failure).rejects.toThrow(ArgumentError);
    await expect(openServer(options)).rejects.toThrow(
      `port ${port} of 127.0.0.1 is in use by another program; choose another one with --port`,
    );
    await expect(openServer({ ...options, host: '203.0.113.7', apiKey: 'k' })).rejects.toThrow(
      'this machine does not have the address 203.0.113.7',
    );
  });

  it('needs a key where other machines reach it', async () => {
    const options = { host: '0.0.0.0', port: 0, apiKey: null, maxConcurrent: 1, maxWaiting: 1 };
    await expect(openServer(options)).rejects.toThrow('so that it needs a key');
  });

  it('lets answers end when it is closed, and refuses new ones', async () => {
    const { gate, open } = makeGate();
    const { server, sessions } = await start(endless(gate));
    const running = send(server, kChat, { body: chatBody({ max_tokens: 3, stream: true }) });
    await eventually(() => expect(sessions).toHaveLength(1));
    const closed = server.close();
    await expect(send(server, '/health')).rejects.toThrow();
    open();
    const { text } = await running;
    expect(eventsOf(text).at(-1)).toBe('[DONE]');
    await closed;
  });

  it('stops answers that do not end in time', async () => {
    const { server, sessions } = await start(endless(), { graceMs: 100 });
    const body = chatBody({ max_tokens: 100_000 });
    const whole = send(server, kChat, { body });
    const stream = send(server, kChat, { body: { ...body, stream: true } });
    await eventually(() => expect(sessions).toHaveLength(2));
    await server.close();
    expect(await whole).toMatchObject({ status: 503, json: { error: { code: 'stopping' } } });
    expect(eventsOf((await stream).text).at(-1)).toMatchObject({ error: { code: 'stopping' } });
    expect(sessions.every(({ isDisposed }) => isDisposed)).toBe(true);
  });
});
