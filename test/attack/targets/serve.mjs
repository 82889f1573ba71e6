// The HTTP server: bodies that are changed or of another kind, headers, damaged and half requests, slow ones, several in one connection,
// and clients that leave. Each is answered as HTTP demands or its connection closed; nobody gets in without the key, and the server goes on.
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { connect } from 'node:net';
import { setTimeout as wait } from 'node:timers/promises';
import { AdapterModel, AutoModelForCausalLM, setMemoryLimit, Tokenizer } from 'balora';
import { openSession } from '../../../dist/generate/open_session.js';
import { ArgumentError } from '../../../dist/errors.js';
import { requestText } from '../../../dist/serve/request_line.js';
import { openServer } from '../../../dist/serve/server.js';
import { isPrintable } from '../../../dist/shown.js';
import { Finding, require } from '../finding.mjs';
import { anyJson, mutateBytes, mutateJson, mutateText } from '../mutations.mjs';
import { kTokenizers } from '../tokenizers.mjs';

const kKey = 'a key that is right';
const kBodyLimit = 1 << 16;
/** Time for an answer to come, and for what a client leaves behind to go. */
const kAnswerMs = 60_000;
const kGoneMs = 30_000;
/** Time without an answer, and between two parts of one, after which none is expected. */
const kSilentMs = { first: 40, next: 10 };
const kConfig = {
  ...{ model_type: 'llama', hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2 },
  ...{ num_key_value_heads: 1, vocab_size: 264, max_position_embeddings: 64, rms_norm_eps: 1e-5, hidden_act: 'silu' },
};

const kPaths = ['/v1/chat/completions', '/v1/completions', '/v1/models', '/v1/models/tiny', '/health'];
const kBodies = {
  '/v1/chat/completions': {
    ...{ model: 'tiny', messages: [{ role: 'system', content: 'x' }, { role: 'user', content: [{ type: 'text', text: 'the cat' }] }] },
    ...{ max_tokens: 4, temperature: 0.5, top_p: 0.9, seed: 1, stop: ['a', 'bc'], n: 1, stream: false, logprobs: true, top_logprobs: 2 },
  },
  '/v1/completions': {
    ...{ model: 'adapter', prompt: ['the cat', 'Call me'], max_tokens: 3, min_tokens: 1, top_k: 5, logprobs: 1, n: 2, user: 'me' },
    ...{ stream: true, stream_options: { include_usage: true }, repetition_penalty: 1.1 },
  },
};

/** A line of the log: method, path, status and time, and the numbers of an answer. */
const kLine = /^[A-Z-]+ \S+ (\d{3}|left) {2}[\d.]+ s( {2}\w+: \d+ prompt tokens, \d+ new ones)?$/;

const plainHeader = (text) => text.replace(/[^\x20-\x7e]/g, '');

/** The bytes of a request. */
function requestOf({ method = 'POST', path, version = '1.1', headers = {}, body = '' }) {
  const bytes = Buffer.from(body);
  const all = { Host: 'localhost', Authorization: `Bearer ${kKey}`, 'Content-Type': 'application/json', Connection: 'close', 'Content-Length': bytes.length, ...headers };
  const lines = Object.entries(all).flatMap(([name, value]) => [value].flat().map((one) => (one === null ? [] : `${name}: ${one}`)));
  return Buffer.concat([Buffer.from([`${method} ${path} HTTP/${version}`, ...lines.flat(), '', ''].join('\r\n'), 'latin1'), bytes]);
}

const anyRequest = (random, change = {}) => {
  const path = random.chance(0.85) ? random.pick(Object.keys(kBodies)) : random.pick(kPaths);
  const body = kBodies[path];
  return requestOf({ method: body ? 'POST' : 'GET', path, body: body ? JSON.stringify(body) : '', ...change });
};

/** Changes of the headers. */
const kHeaders = [
  (random) => ({ 'Content-Length': random.pick([0, -1, 1, 5, 1e9, '0x10', '4, 4', '', 'x', 2 ** 53, null]) }),
  (random) => ({ 'Transfer-Encoding': random.pick(['chunked', 'gzip', 'chunked, chunked', 'identity', plainHeader(random.text())]), 'Content-Length': random.pick([null, 5]) }),
  (random) => ({ Host: random.pick(['evil.example', '', '127.0.0.1:99', '[::1]', 'localhost.evil.example', ['localhost', 'evil'], null, plainHeader(random.text())]) }),
  (random) => ({ Authorization: random.pick([null, 'Bearer', 'Bearer wrong', 'Basic eDp5', `Bearer ${kKey.slice(1)}`, plainHeader(random.text())]) }),
  (random) => ({ Expect: random.pick(['100-continue', '200-ok', plainHeader(random.text())]) }),
  (random) => ({ Connection: random.pick(['close', 'keep-alive', 'Upgrade', plainHeader(random.text())]), Upgrade: 'websocket' }),
  (random) => ({ 'Content-Type': random.pick(['text/plain', null, plainHeader(random.text())]), 'Content-Encoding': random.pick(['gzip', 'br', null]) }),
  (random) => ({ [random.pick(['X-A', 'Cookie', 'Accept'])]: 'x'.repeat(random.pick([10, 1000, 20_000, 70_000])) }),
  (random) => Object.fromEntries(random.several(0, 300, (i) => [`X-${i}`, i])),
];

/** Requests that are complete, whose answers must be, too: the server closes the connection behind them. */
const kWhole = ['body', 'large', 'crowd'];

/** Inputs of every kind: what is sent in which parts, and what becomes of the connection then. */
const kKinds = {
  body: (random) => {
    const path = random.pick(Object.keys(kBodies));
    const changed = random.pick([
      () => JSON.stringify(mutateJson(random, kBodies[path])),
      () => JSON.stringify(mutateJson(random, kBodies[path])),
      () => JSON.stringify(mutateJson(random, kBodies[path])),
      () => mutateText(random, JSON.stringify(kBodies[path])),
      () => mutateBytes(random, Buffer.from(JSON.stringify(kBodies[path]))),
      () => JSON.stringify(anyJson(random)),
      () => JSON.stringify({ ...kBodies[path], messages: undefined, prompt: undefined, ...anyPrompt(random) }),
    ])();
    return { parts: [requestOf({ path, body: changed })] };
  },
  headers: (random) => ({ parts: [anyRequest(random, { headers: random.pick(kHeaders)(random) })] }),
  line: (random) => {
    const [method, version] = [random.pick(['GET', 'POST', 'PUT', 'OPTIONS', 'HEAD', 'CONNECT', 'TRACE', 'get', '']), random.pick(['1.1', '1.1', '1.0', '0.9', '2.0', 'x'])];
    const path = random.pick([...kPaths, '/', '*', '//health', '/v1/models/%2e%2e', '/v1/models/%', '/v1/../health', '/x%0a%1b%5b2JGET%20/health%20200', '/%c2%9b1m%e2%80%ae', '/\u009b\u0085', 'http://x/health', `/${'a'.repeat(20_000)}`, `/${encodeURIComponent(random.text().toWellFormed())}`]);
    return { parts: [anyRequest(random, { method, version, path })] };
  },
  damaged: (random) => ({ parts: [mutateBytes(random, anyRequest(random), random.pick([60, 200, 1000]))] }),
  half: (random) => {
    const bytes = anyRequest(random);
    return { parts: [bytes.subarray(0, random.below(bytes.length))], then: random.pick(['end', 'destroy', 'leave']) };
  },
  slow: (random) => {
    const bytes = random.chance(0.7) ? anyRequest(random) : mutateBytes(random, anyRequest(random), 200);
    const cuts = random.several(1, 6, () => random.below(bytes.length)).sort((a, b) => a - b);
    return { parts: [0, ...cuts].map((from, i) => bytes.subarray(from, cuts[i] ?? bytes.length)), pauseMs: random.pick([0, 1, 5]) };
  },
  chunked: (random) => {
    const path = random.pick(Object.keys(kBodies));
    const body = JSON.stringify(kBodies[path]);
    const at = random.below(body.length);
    const size = (text) => random.chance(0.85) ? Buffer.byteLength(text).toString(16) : random.pick(['-1', 'fffffffffffffffff', '0', 'zz', '', '7fffffff']);
    const chunk = (text) => `${size(text)}${random.chance(0.1) ? ';a=b' : ''}\r\n${text}\r\n`;
    const head = requestOf({ path, headers: { 'Content-Length': null, 'Transfer-Encoding': 'chunked' } });
    const end = random.pick(['0\r\n\r\n', '0\r\n\r\n', '0\r\nX: y\r\n\r\n', '']);
    return { parts: [Buffer.concat([head, Buffer.from(chunk(body.slice(0, at)) + chunk(body.slice(at)) + end)])] };
  },
  large: (random) => ({ parts: [requestOf({ path: '/v1/completions', body: Buffer.alloc(random.pick([kBodyLimit, kBodyLimit + 1, 1 << 20]), 32) })] }),
  leave: (random) => {
    const path = random.pick(Object.keys(kBodies));
    const body = { ...kBodies[path], max_tokens: 40, temperature: 0, stop: null, stream: random.chance(0.8) };
    return { parts: [requestOf({ path, body: JSON.stringify(body) })], then: 'destroy', afterBytes: random.pick([0, 0, 1, 100, 1000]) };
  },
  several: (random) => ({ parts: [Buffer.concat(random.several(2, 5, () => (random.chance(0.9) ? anyRequest(random) : mutateBytes(random, anyRequest(random)))))] }),
  crowd: (random) => ({ parts: [anyRequest(random)], times: random.integer(2, 12) }),
};

const anyPrompt = (random) =>
  random.pick([
    () => ({ messages: random.several(0, 3, () => ({ role: random.pick(['user', 'tool', 'developer']), content: random.pick([random.text(), null, anyJson(random)]) })) }),
    () => ({ prompt: random.several(0, 3, () => random.several(0, 4, () => random.number())) }),
    () => ({ prompt: random.text() }),
    () => ({ prompt: 'a'.repeat(random.pick([60, 64, 1000, 20_000])) }),
  ])();

const kFrequent = ['body', 'body', 'body', 'body', 'headers', 'damaged', 'slow'];

function input(random) {
  const kind = random.pick([...kFrequent, ...Object.keys(kKinds)]);
  const hasKey = random.chance(0.5);
  return { kind, hasKey, ...kKinds[kind](random) };
}

/** Sends what an input says, and gives what came back until the connection ended or nothing more is to come. */
async function exchange(port, { kind, parts, pauseMs = null, then = 'end', afterBytes = null }) {
  const socket = connect(port, '127.0.0.1');
  const received = [];
  let count = 0;
  const closed = new Promise((resolve) => socket.once('close', resolve));
  socket.on('error', () => {}); // the server may close a connection at any moment
  socket.on('data', (bytes) => {
    received.push(bytes);
    count += bytes.length;
    if (afterBytes !== null && count >= afterBytes) socket.destroy();
  });
  await once(socket, 'connect');
  if (afterBytes === 0) setTimeout(() => socket.destroy(), 1);
  for (const [i, part] of parts.entries()) {
    if (i > 0 && pauseMs !== null) await wait(pauseMs);
    if (socket.destroyed) break;
    socket.write(part);
  }
  if (afterBytes === null && then === 'destroy') socket.destroy();
  if (then === 'leave') setTimeout(() => socket.destroy(), 5);
  // The server need not answer a client that closes its half of the connection, so it is closed when nothing more comes.
  if (then === 'end' && !kWhole.includes(kind)) await endWhenSilent(socket, () => count);
  const ended = await Promise.race([closed.then(() => true), wait(kAnswerMs, false, { ref: false })]);
  socket.destroy();
  require(ended, () => `the connection is open after ${kAnswerMs} ms; it gave ${Buffer.concat(received).toString('latin1').slice(0, 300)}`);
  return Buffer.concat(received);
}

/** Closes this half of a connection when so long nothing has come. */
async function endWhenSilent(socket, received) {
  for (let before = -1; received() !== before && !socket.destroyed; ) {
    before = received();
    await wait(before === 0 ? kSilentMs.first : kSilentMs.next);
  }
  if (!socket.destroyed) socket.end();
}

/** The responses in the bytes that a connection gave: status, headers, body; the last one may be cut where the client left. */
function responsesOf(bytes, isCut) {
  const responses = [];
  for (let rest = bytes; rest.length > 0; ) {
    const end = rest.indexOf('\r\n\r\n');
    if (end < 0 && isCut) break;
    const [line = '', ...lines] = rest.toString('latin1', 0, Math.max(0, end)).split('\r\n');
    const [, status] = /^HTTP\/1\.[01] (\d{3})( .*)?$/.exec(line) ?? [];
    require(status !== undefined, () => `no HTTP response: ${rest.toString('latin1', 0, 200)}`);
    rest = rest.subarray(end + 4);
    if (status === '100') continue;
    const headers = Object.fromEntries(lines.map((one) => [one.slice(0, one.indexOf(':')).toLowerCase(), one.slice(one.indexOf(':') + 1).trim()]));
    const [body, used] = headers['transfer-encoding'] === 'chunked' ? unchunked(rest, isCut) : lengthOf(rest, headers, isCut);
    responses.push({ status: Number(status), headers, body: body?.toString('utf8') ?? null });
    rest = rest.subarray(used);
  }
  return responses;
}

function lengthOf(bytes, headers, isCut) {
  const length = Number(headers['content-length'] ?? (headers.connection === 'close' ? bytes.length : 0));
  if (bytes.length >= length) return [bytes.subarray(0, length), length];
  // The answer to HEAD has a length and no body.
  require(isCut || bytes.length === 0, () => `a body of ${bytes.length} bytes instead of ${length}`);
  return [null, bytes.length];
}

function unchunked(bytes, isCut) {
  const chunks = [];
  for (let at = 0; ; ) {
    const end = bytes.indexOf('\r\n', at);
    if (end < 0) {
      require(isCut, 'a stream without its end');
      return [null, bytes.length];
    }
    const size = Number.parseInt(bytes.toString('latin1', at, end), 16);
    if (size === 0) return [Buffer.concat(chunks), end + 4];
    chunks.push(bytes.subarray(end + 2, end + 2 + size));
    at = end + 4 + size;
  }
}

/** Checks one response of the server, or of Node in front of it. */
function checkResponse({ status, headers, body }, sent) {
  require([200, 400, 401, 403, 404, 405, 408, 413, 414, 415, 417, 429, 431, 503].includes(status), () => `status ${status}: ${body}`);
  if (body === null || body === '') return;
  require(isPrintable(body.replaceAll('\n', '')), () => `a response with invisible characters: ${JSON.stringify(body)}`);
  if (headers['content-type']?.startsWith('text/event-stream')) {
    const events = body.split('\n\n').filter(Boolean);
    require(events.every((event) => event.startsWith('data: ')), () => `events ${body.slice(0, 300)}`);
    const parsed = events.map((event) => (event === 'data: [DONE]' ? null : JSON.parse(event.slice(6))));
    require(parsed.at(-1) === null && parsed.slice(0, -1).every((event) => event?.error === undefined), () => `a stream that fails: ${body.slice(-300)}`);
    return;
  }
  const json = JSON.parse(body);
  if (status === 200) return;
  const { message, type } = json.error ?? {};
  require(status === 503 || (typeof message === 'string' && typeof type === 'string'), () => `an error without its text: ${body}`);
  const [unclear] = /\bundefined\b|\[object Object\]|\n\s+at /.exec(message ?? '') ?? [];
  if (unclear !== undefined && !sent.includes(unclear)) throw new Finding(message, 'unclear message');
}

/** Whether a response gave something that needs the key or this machine's name. */
const isInside = ({ status, body }) => status === 200 && body !== null && /"object":|^data: /.test(body);

async function run(given, { servers, errors, lines, sessions }) {
  const { kind, hasKey, times = 1 } = given;
  const { server, port } = servers[hasKey ? 'locked' : 'open'];
  const files = readdirSync('/proc/self/fd').length;
  errors.length = 0;
  lines.length = 0;
  const sent = Buffer.concat(given.parts).toString('latin1');
  const isCut = !kWhole.includes(kind);
  const all = await Promise.all(Array.from({ length: times }, () => exchange(port, given)));
  const responses = all.flatMap((bytes) => responsesOf(bytes, isCut));
  require(isCut || responses.length === times, () => `${responses.length} responses to ${times} requests`);
  for (const response of responses) {
    checkResponse(response, sent);
    if (hasKey) require(!isInside(response) || sent.includes(`earer ${kKey}`), 'an answer without the key');
    else if (kind === 'headers') require(!isInside(response) || /\r\nHost: (localhost|127\.0\.0\.1:99|\[::1\])\r\n/.test(sent), 'an answer to another name');
  }
  // A client can neither forge a line of the log nor a field of one.
  for (const line of lines) require(isPrintable(line) && kLine.test(line), () => `a line of the log: ${JSON.stringify(line)}`);
  await gone(() => sessions.opened === sessions.disposed, () => `${sessions.opened - sessions.disposed} generations go on`);
  require(errors.length === 0, () => `the server reports ${errors[0]?.stack ?? errors[0]}`);
  const health = await fetch(`${server.url}/health`, { headers: { Connection: 'close' } });
  require(health.status === 200 && (await health.json()).status === 'ok', () => `the server is ${health.status} afterwards`);
  await gone(() => readdirSync('/proc/self/fd').length <= files, 'connections stay open');
  // The attack counts it as refused.
  if (responses.every(({ status }) => status >= 400)) throw new ArgumentError('the server refused the request, or nothing came of it');
}

/** Waits until a condition holds. */
async function gone(holds, message) {
  for (const until = performance.now() + kGoneMs; !holds(); await wait(2)) {
    require(performance.now() < until, message);
  }
}

/** A session that counts. */
const counted = (sessions) => (model, options) => {
  const session = openSession(model, options);
  sessions.opened++;
  const dispose = session.dispose.bind(session);
  let isOpen = true;
  session.dispose = () => {
    if (isOpen) sessions.disposed++;
    isOpen = false;
    dispose();
  };
  return session;
};

export default {
  what: 'the HTTP server: bodies, headers, damaged, half, slow and left requests',
  share: 1.5,
  open: async () => {
    setMemoryLimit(2 ** 28);
    const model = await AutoModelForCausalLM.fromConfig(kConfig, { seed: 3 });
    const generator = await AdapterModel.create(model, { r: 2, loraAlpha: 2 }, { name: 'adapter' });
    const { json, config } = kTokenizers[0];
    const tokenizer = Tokenizer.fromJson(json, config);
    const models = [{ id: 'tiny', adapter: null }, { id: 'adapter', adapter: 'adapter' }];
    const [errors, lines, sessions] = [[], [], { opened: 0, disposed: 0 }];
    const start = async (apiKey) => {
      const server = await openServer({
        ...{ host: '127.0.0.1', port: 0, apiKey, maxConcurrent: 4, maxWaiting: 6, maxBodyBytes: kBodyLimit },
        ...{ onError: (error) => errors.push(error), onRequest: (line) => lines.push(requestText(line)), open: counted(sessions) },
      });
      server.serve({ generator, model, tokenizer, models });
      await fetch(`${server.url}/health`, { headers: { Connection: 'close' } }).then((response) => response.text());
      return { server, port: Number(new URL(server.url).port) };
    };
    return { servers: { locked: await start(kKey), open: await start(null) }, errors, lines, sessions };
  },
  close: ({ servers }) => Promise.all(Object.values(servers).map(({ server }) => server.close())),
  input,
  run,
  missing: () => (process.platform === 'linux' ? null : 'it counts open files in /proc'),
};
