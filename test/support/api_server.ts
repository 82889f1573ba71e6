/** Servers for tests: one whose model is a script, and requests to it that show everything that comes back. */
import { type IncomingHttpHeaders, request } from 'node:http';
import { connect, type Socket } from 'node:net';
import type { OpenSession } from '../../lib/generate/open_session.ts';
import { type ApiServer, openServer, type ServerOptions } from '../../lib/serve/server.ts';
import { oneHot, type Script, ScriptedSession } from './scripted_session.ts';
import { TinyModel } from './tiny_model.ts';
import { tinyTokenizer } from './tiny_tokenizer.ts';

export const kVocabulary = 262; // of the tiny tokenizer
const model = new TinyModel({ vocabulary: kVocabulary });
const tokenizer = tinyTokenizer();

/** A script that writes a text after a prompt, which ends with the template's beginning of an answer, and then ends. */
export function answers(text: string): Script {
  const ids = [...tokenizer.encode(text), tokenizer.eosId as number];
  const start = tokenizer.encode('<start>assistant\n');
  return (given) => {
    const begun = given.lastIndexOf(start[0] as number) + start.length;
    return oneHot(ids[given.length - begun] as number, kVocabulary);
  };
}

/** A server, and the sessions that it has opened. */
export interface Scripted {
  readonly server: ApiServer;
  readonly sessions: ScriptedSession[];
  /** Errors that the server has reported. */
  readonly errors: unknown[];
}

/** Opens a server on a free port, whose generations run by a script. */
export async function scriptedServer(
  script: Script,
  options: Partial<ServerOptions> = {},
): Promise<Scripted> {
  const sessions: ScriptedSession[] = [];
  const errors: unknown[] = [];
  const open: OpenSession = () => {
    const session = new ScriptedSession(script);
    sessions.push(session);
    return session;
  };
  const server = await openServer({
    ...{ host: '127.0.0.1', port: 0, apiKey: null, maxConcurrent: 2, maxWaiting: 2, open },
    onError: (error) => errors.push(error),
    ...options,
  });
  server.serve({
    generator: model,
    model,
    tokenizer,
    models: [{ id: 'tiny', adapter: undefined }],
  });
  return { server, sessions, errors };
}

/** A response with its body as text. */
export interface Received {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  readonly text: string;
  /** The body where it is JSON. */
  readonly json: Record<string, unknown>;
}

/** A request: by default a GET, or a POST of JSON. */
export interface Sent {
  readonly method?: string;
  readonly headers?: Record<string, string>;
  readonly body?: unknown;
}

/** Sends a request by a connection of its own. */
export function send(server: ApiServer, path: string, sent: Sent = {}): Promise<Received> {
  const { body, method = body === undefined ? 'GET' : 'POST', headers = {} } = sent;
  const text = typeof body === 'string' ? body : JSON.stringify(body);
  return new Promise((resolve, reject) => {
    const type = body === undefined ? {} : { 'Content-Type': 'application/json' };
    const out = request(`${server.url}${path}`, {
      method,
      agent: false,
      headers: { ...type, ...headers },
    });
    out.on('error', reject).on('response', (response) => {
      let all = '';
      response.setEncoding('utf8').on('data', (part: string) => {
        all += part;
      });
      response.on('error', reject).on('end', () => {
        const isJson = response.headers['content-type']?.startsWith('application/json') === true;
        const json = isJson ? (JSON.parse(all) as Record<string, unknown>) : {};
        resolve({ status: response.statusCode ?? 0, headers: response.headers, text: all, json });
      });
    });
    out.end(text);
  });
}

/** A chat request. */
export const chatBody = (more: object = {}): object => ({
  ...{ model: 'tiny', messages: [{ role: 'user', content: 'a' }], ...more },
});

/** The events of a stream, parsed; `[DONE]` as a text. */
export function eventsOf(text: string): unknown[] {
  return text
    .split('\n\n')
    .filter((event) => event !== '')
    .map((event) => {
      const data = event.replace(/^data: /, '');
      return data === '[DONE]' ? data : JSON.parse(data);
    });
}

/** Opens a connection on which a test writes and reads by itself. */
export function openSocket(server: ApiServer): Promise<Socket> {
  const { hostname, port } = new URL(server.url);
  return new Promise((resolve, reject) => {
    const socket = connect(Number(port), hostname, () => resolve(socket));
    socket.once('error', reject);
  });
}
