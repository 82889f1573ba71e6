/**
 * The HTTP server: routes, who may use it, limits, and its end. See docs/decisions/http-server.md for why it is Node's own.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo, Socket } from 'node:net';
import { ArgumentError } from '../errors.ts';
import { type OpenSession, openSession } from '../generate/open_session.ts';
import { baseChange } from '../models/base_files.ts';
import { printableJson } from '../shown.ts';
import { Access } from './access.ts';
import { Answer, type AnswerNumbers, sendJson } from './answer.ts';
import { ApiError, apiErrorOf } from './api_error.ts';
import { readBody } from './body.ts';
import { chatCompletions } from './chat_completions.ts';
import { completions } from './completions.ts';
import type { Endpoint } from './endpoint.ts';
import { ConnectionLost } from './event_stream.ts';
import { promptLimits } from './prompt_limits.ts';
import type { RequestLine } from './request_line.ts';
import { checkNames, describeModel, modelNamed, type ServedModels } from './served_models.ts';
import { Slots } from './slots.ts';

/** Options of {@link openServer}. */
export interface ServerOptions {
  readonly host: string;
  /** 0: a free one. */
  readonly port: number;
  /** The key that requests must have; null: none, for this machine alone. */
  readonly apiKey: string | null;
  /** Requests that are answered at the same time. */
  readonly maxConcurrent: number;
  /** Requests that wait for that; more are refused. */
  readonly maxWaiting: number;
  /** Largest body of a request in bytes. Default 8 MiB. */
  readonly maxBodyBytes?: number;
  /** Milliseconds after which a client that takes nothing of its answer loses its connection. Default 30 seconds. */
  readonly stallMs?: number;
  /** Most tokens that the prompts of a request have together. Default: four times the model's context. */
  readonly maxPromptTokens?: number | undefined;
  /** Milliseconds that answers have to end when the server is closed. Default one second. */
  readonly graceMs?: number;
  /** Called after each request. */
  readonly onRequest?: (line: RequestLine) => void;
  /** Called with an error that is no fault of the request. */
  readonly onError?: (error: unknown) => void;
  /** Opens the sessions of generations. Default: those of generate(). */
  readonly open?: OpenSession;
}

const kMaxBodyBytes = 8 * 2 ** 20;
const kStallMs = 30_000;
const kGraceMs = 1000;
/** Time for a request to come in whole, for its head to do so, and between two looks at the clock. */
const kRequestMs = 60_000;
const kHeadersMs = 10_000;
const kCheckMs = 1000;
/** Connections at the same time. Of more, those whose request has not come in whole give way, the oldest first. */
const kMostConnections = 1024;
/** Time in which answers that the end of the server stopped can be sent. */
const kEndMs = 500;
/** Bodies up to this size are read to their end when a request is refused, so that its connection can go on. */
const kSmallBody = 64 * 1024;
/** Time in which a client whose body is not read can read why. */
const kLingerMs = 1000;

const kPosts: Readonly<Record<string, Endpoint>> = {
  '/v1/chat/completions': chatCompletions,
  '/v1/completions': completions,
};

/**
 * Opens a server, which answers 503 until it is given models ({@link ApiServer.serve}).
 * @throws ArgumentError for a port that is in use, an address that this machine does not have, or no key at one that others may reach
 */
export async function openServer(options: ServerOptions): Promise<ApiServer> {
  const access = new Access(options.host, options.apiKey);
  const server = new ApiServer(options, access);
  await server.listen();
  return server;
}

/** A request that is being answered. */
interface Exchange {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  readonly path: string;
  /** Whether the client waits to be told that it may send the body. */
  readonly expectsContinue: boolean;
  readonly signal: AbortSignal;
}

/** A running server; see {@link openServer}. */
export class ApiServer {
  readonly #slots: Slots;
  readonly #server: Server;
  /** The controllers that stop requests. */
  readonly #active = new Set<AbortController>();
  readonly #connections = new Set<Socket>();
  /** Those on which no request has come in whole, be they idle or half sent, the oldest first. */
  readonly #unanswered = new Set<Socket>();
  readonly #created = Math.floor(Date.now() / 1000);
  #served: ServedModels | null = null;
  #isStopping = false;

  /** @internal */
  constructor(
    private readonly options: ServerOptions,
    private readonly access: Access,
  ) {
    const { maxConcurrent: concurrent, maxWaiting: waiting } = options;
    this.#slots = new Slots({ concurrent, waiting });
    this.#server = createServer({
      ...{ requestTimeout: kRequestMs, headersTimeout: kHeadersMs, keepAliveTimeout: 5000 },
      connectionsCheckingInterval: kCheckMs,
    });
    this.#server.on('connection', (socket: Socket) => this.#accept(socket));
    this.#server.on('request', (request, response) => void this.#handle(request, response, false));
    this.#server.on(
      'checkContinue',
      (request, response) => void this.#handle(request, response, true),
    );
  }

  /** @internal */
  listen(): Promise<void> {
    const { host, port } = this.options;
    return new Promise((resolve, reject) => {
      const onError = (error: NodeJS.ErrnoException): void =>
        reject(listenError(error, host, port));
      this.#server.once('error', onError);
      this.#server.listen(port, host, () => {
        this.#server.off('error', onError);
        this.#server.on('error', (error) => this.options.onError?.(error));
        resolve();
      });
    });
  }

  /** The address of the server, without a path. */
  get url(): string {
    const { port } = this.#server.address() as AddressInfo;
    const { host } = this.options;
    return `http://${host.includes(':') ? `[${host}]` : host}:${port}`;
  }

  /** Begins to answer with models. @throws ArgumentError for two of the same name */
  serve(served: ServedModels): void {
    checkNames(served.models);
    this.#served = served;
  }

  /**
   * Stops the server: no connection is accepted any more, and answers that have not ended after `graceMs` are stopped. It is resolved
   * once no generation runs and all connections are closed.
   */
  async close(): Promise<void> {
    if (this.#isStopping) return;
    this.#isStopping = true;
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeIdleConnections();
    const timer = setTimeout(() => {
      for (const controller of this.#active) controller.abort(stopping());
      setTimeout(() => this.#server.closeAllConnections(), kEndMs).unref();
    }, this.options.graceMs ?? kGraceMs);
    await closed;
    clearTimeout(timer);
  }

  /** Takes a connection, in the place of another one where there are too many. */
  #accept(socket: Socket): void {
    const forget = (gone: Socket): void => {
      this.#connections.delete(gone);
      this.#unanswered.delete(gone);
    };
    this.#connections.add(socket);
    this.#unanswered.add(socket);
    socket.once('close', () => forget(socket));
    if (this.#connections.size <= kMostConnections) return;
    const [oldest] = this.#unanswered as Iterable<Socket> as [Socket];
    forget(oldest);
    oldest.destroy();
  }

  /** Keeps the connection of a request that has come in whole until its answer has been sent. */
  #hold({ socket }: IncomingMessage, response: ServerResponse): void {
    this.#unanswered.delete(socket);
    response.once('close', () => {
      if (this.#connections.has(socket)) this.#unanswered.add(socket);
    });
  }

  /** Answers a request; no error leaves it. */
  async #handle(
    request: IncomingMessage,
    response: ServerResponse,
    expectsContinue: boolean,
  ): Promise<void> {
    const begun = performance.now();
    const controller = new AbortController();
    this.#active.add(controller);
    response.on('close', () => controller.abort(new ConnectionLost()));
    response.on('error', () => {});
    request.on('error', () => {});
    if (this.#isStopping) response.setHeader('Connection', 'close');
    const path = pathOf(request);
    let answer: AnswerNumbers | null = null;
    let isLost = false;
    try {
      const { signal } = controller;
      answer = await this.#route({ request, response, path, expectsContinue, signal });
    } catch (error) {
      isLost = error instanceof ConnectionLost;
      this.#fail(error, request, response);
    } finally {
      this.#active.delete(controller);
      if (this.#isStopping) this.#server.closeIdleConnections();
    }
    this.options.onRequest?.({
      ...{ method: request.method ?? '', path, answer },
      status: isLost ? null : response.statusCode,
      seconds: (performance.now() - begun) / 1000,
    });
  }

  async #route(exchange: Exchange): Promise<AnswerNumbers | null> {
    const { request, response, path } = exchange;
    const endpoint = Object.hasOwn(kPosts, path) ? kPosts[path] : undefined;
    const isGet = path === '/health' || path === '/v1/models' || path.startsWith('/v1/models/');
    if (endpoint === undefined && !isGet) {
      const known = ['/health', '/v1/models', ...Object.keys(kPosts)].join(', ');
      throw new ApiError(`there is no ${path}; known: ${known}`, {
        status: 404,
        code: 'not_found',
      });
    }
    const method = isGet ? 'GET' : 'POST';
    if (request.method !== method) {
      throw new ApiError(`${path} needs ${method}, got ${request.method}`, {
        ...{ status: 405, headers: { Allow: method } },
      });
    }
    if (path === '/health') {
      const status = this.#state;
      sendJson(response, status === 'ok' ? 200 : 503, { status });
      return null;
    }
    this.access.check(request);
    if (endpoint !== undefined) return this.#answer(endpoint, exchange);
    sendJson(response, 200, this.#models(path));
    return null;
  }

  get #state(): 'ok' | 'loading' | 'stopping' | 'base changed' {
    if (this.#isStopping) return 'stopping';
    if (this.#served === null) return 'loading';
    return baseChange(this.#served.model) === null ? 'ok' : 'base changed';
  }

  /** The models that answer requests. @throws ApiError (503) before there is a model, and while the server stops */
  get #ready(): ServedModels {
    if (this.#isStopping) throw stopping();
    if (this.#served !== null) return this.#served;
    throw new ApiError('the model is being loaded; try again later', {
      ...{ status: 503, code: 'loading', headers: { 'Retry-After': '5' } },
    });
  }

  /** The list of models, or one of them. */
  #models(path: string): object {
    const { models } = this.#ready;
    const base = models[0]?.id ?? '';
    const describe = (model: (typeof models)[number]) => describeModel(model, this.#created, base);
    const [, id] = /^\/v1\/models\/(.*)$/.exec(path) ?? [];
    if (id === undefined) return { object: 'list', data: models.map(describe) };
    return describe(modelNamed(models, id));
  }

  async #answer(endpoint: Endpoint, exchange: Exchange): Promise<AnswerNumbers> {
    const { request, response, expectsContinue, signal } = exchange;
    const {
      maxBodyBytes: limit = kMaxBodyBytes,
      stallMs = kStallMs,
      open = openSession,
    } = this.options;
    const served = this.#ready;
    const onRead = (): void => {
      if (expectsContinue) response.writeContinue();
    };
    const fields = await readBody(request, { limit, onRead });
    this.#hold(request, response);
    const read = endpoint.read(fields);
    const limits = promptLimits(served, this.options.maxPromptTokens);
    const context = { served, open, signal, stallMs, slots: this.#slots, limits };
    return new Answer(endpoint, read, context).send(response);
  }

  /** Tells the client of an error, where it is there and nothing has been sent. */
  #fail(error: unknown, request: IncomingMessage, response: ServerResponse): void {
    if (error instanceof ConnectionLost) return;
    const told = apiErrorOf(error);
    if (told.status >= 500 && told.status !== 503) this.options.onError?.(error);
    if (response.headersSent || response.destroyed) return;
    const { status, body, headers } = told;
    if (request.complete || Number(request.headers['content-length'] ?? Infinity) <= kSmallBody) {
      request.resume();
      sendJson(response, status, body, headers);
      return;
    }
    refuseBody(request, response, { status, body, headers });
  }
}

/**
 * Sends an error without reading the body, and closes the connection. If it were closed at once, the bytes that have arrived and are not
 * read would make the system drop the answer, so the client gets time to read it; what it sends meanwhile stays in its own buffers.
 */
function refuseBody(
  request: IncomingMessage,
  response: ServerResponse,
  { status, body, headers }: Pick<ApiError, 'status' | 'body' | 'headers'>,
): void {
  request.pause();
  const text = printableJson(body);
  response.writeHead(status, {
    'Content-Type': 'application/json; charset=utf-8',
    'Content-Length': String(Buffer.byteLength(text)),
    Connection: 'close',
    ...headers,
  });
  // The answer is written without end(), after which Node would read the rest of the body and close the connection.
  response.write(text);
  const { socket } = request;
  const timer = setTimeout(() => socket.destroy(), kLingerMs);
  socket.once('close', () => clearTimeout(timer));
}

function stopping(): ApiError {
  return new ApiError('the server is being stopped', { status: 503, code: 'stopping' });
}

/** The path of a request, decoded; as it stands where it cannot be. */
function pathOf({ url = '/' }: IncomingMessage): string {
  const path = url.split('?')[0] as string;
  try {
    return decodeURIComponent(path);
  } catch {
    return path;
  }
}

function listenError(error: NodeJS.ErrnoException, host: string, port: number): Error {
  const reasons: Readonly<Record<string, string>> = {
    EADDRINUSE: `port ${port} of ${host} is in use by another program; choose another one with --port`,
    EACCES: `port ${port} is one of those that need more rights; choose one from 1024 on with --port`,
    EADDRNOTAVAIL: `this machine does not have the address ${host}; choose one that it has with --host`,
    ENOTFOUND: `there is no address of the name ${host}; give one of this machine's with --host`,
  };
  const reason = reasons[error.code ?? ''];
  return reason === undefined ? error : new ArgumentError(reason, { cause: error });
}
