/**
 * One server that speaks the Hub's protocol and is not trusted. The token goes to its own origin and only over https (or to this
 * machine), every redirect is checked before it is followed, and no answer is waited for without a limit.
 */
import { ArgumentError } from '../../errors.ts';
import { printable } from '../../shown.ts';
import { type Reply, request } from './connection.ts';

/** The server's address, the access token and the timeout. */
export interface EndpointOptions {
  hubUrl: string;
  /** Access token without surrounding white space; empty: none. */
  accessToken: string;
  /** Milliseconds that a server may take for 64 KiB of a file, or for all of a smaller answer. */
  timeoutMs: number;
  signal?: AbortSignal | undefined;
}

/** The answer to a request: with status 200, or 206 for a part of a file. */
export interface Answer {
  readonly headers: Headers;
  /** Address that the answer came from, after all redirects. */
  readonly url: URL;
  /** Its body, which may be read once. @throws HubError where the server stops or is too slow */
  chunks(): AsyncGenerator<Uint8Array>;
}

/** Options of a request. */
export interface RequestOptions {
  /** Text that begins the message of an error. */
  what: string;
  /** Whether the answer is large: then the timeout applies to each 64 KiB of it, otherwise to the whole. */
  large?: boolean;
  /** Number of bytes to skip at the beginning; unless it is 0, an answer with any other part than the rest is refused. */
  from?: number;
}

/** A failure of the server: it cannot be reached, refuses, or sends an answer that is not allowed. */
export class HubError extends Error {
  /** Kind of failure: the connection broke or was never made, or the server was too slow; undefined where it did answer. */
  readonly failure: 'broken' | 'slow' | undefined;
  /** Whether there was no answer, or one that the server is too busy, as opposed to an answer that refuses the request. */
  readonly unreachable: boolean;
  /** Whether there was an answer, and it is not of the form that the Hub's have. */
  readonly malformed: boolean;

  /** @param how status: the HTTP status of an answer that does not give what was asked for, such as a refusal or a redirect */
  constructor(
    message: string,
    {
      failure,
      status = 0,
      ...how
    }: { failure?: 'broken' | 'slow'; status?: number } & ErrorOptions = {},
  ) {
    super(message, how);
    this.failure = failure;
    this.malformed = failure === undefined && status === 0;
    this.unreachable = failure !== undefined || status >= 500 || status === 408 || status === 429;
  }
}

const kMaxRedirects = 10;
const kRedirects: readonly number[] = [301, 302, 303, 307, 308];
/** Number of bytes of a large answer to which the timeout applies. */
const kTimedBytes = 65_536;
const kMaxRefusalBytes = 65_536;
export const kMaxTimeoutMs = 2 ** 31 - 1;

export class Endpoint {
  /** Name of the server in messages. */
  readonly name: string;
  readonly #base: URL;

  /** Checks the address and the token. @throws ArgumentError for an address or a token that cannot be used, or not together */
  constructor(private readonly options: EndpointOptions) {
    this.#base = parseHubUrl(options.hubUrl);
    this.name = this.#base.href.replace(/\/$/, '');
    checkToken(options.accessToken, this.#base);
  }

  /** The address of a path on the server, which begins with a slash. */
  urlOf(path: string): URL {
    return new URL(this.name + path);
  }

  /**
   * Asks for an address on the server's own origin, and follows redirects that are safe.
   * @throws HubError for any answer but what was asked for; what the signal was aborted with
   */
  async get(address: URL, { what, large = false, from = 0 }: RequestOptions): Promise<Answer> {
    if (!isWeb(address) || address.origin !== this.#base.origin) {
      throw new HubError(
        `${what}: the server points to ${address.origin}, which is not ${this.name}`,
      );
    }
    const { timeoutMs, signal } = this.options;
    const wait = new AnswerTimeout(what, {
      timeoutMs,
      signal,
      portion: large ? kTimedBytes : Number.POSITIVE_INFINITY,
    });
    try {
      let url = address;
      for (let redirects = 0; redirects <= kMaxRedirects; ++redirects) {
        const reply = await this.#send(url, { wait, from });
        const answer = { headers: reply.headers, url, chunks: () => wait.bodyOf(reply) };
        if (isRest(reply, from)) return answer;
        if (!kRedirects.includes(reply.status)) throw await this.#refusal(what, reply, wait);
        reply.close();
        const { status } = reply;
        url = this.#redirected(what, {
          from: url,
          location: reply.headers.get('location'),
          status,
        });
      }
      throw new HubError(
        `${what}: more than ${kMaxRedirects} redirects, the last to ${url.origin}`,
        { status: kRedirects[0] as number },
      );
    } catch (error) {
      wait.end();
      throw error;
    }
  }

  #send(url: URL, { wait, from }: { wait: AnswerTimeout; from: number }): Promise<Reply> {
    const { accessToken } = this.options;
    const trusted = accessToken !== '' && url.origin === this.#base.origin;
    const headers = {
      // An uncompressed answer, so that ranges and sizes are those of the file itself.
      'Accept-Encoding': 'identity',
      'User-Agent': 'balora',
      ...(from > 0 && { Range: `bytes=${from}-` }),
      ...(trusted && { Authorization: `Bearer ${accessToken}` }),
    };
    return wait.until(() => request(url, { headers, signal: wait.signal }));
  }

  /** The address that a redirect leads to. @throws HubError where it is not safe to go there */
  #redirected(
    what: string,
    { from, location, status }: { from: URL; location: string | null; status: number },
  ): URL {
    if (location === null || !URL.canParse(location, from.href)) {
      throw new HubError(`${what}: a redirect without an address`, { status });
    }
    const url = new URL(location, from);
    const where = isWeb(url) ? url.origin : url.protocol;
    const refused = (reason: string): HubError =>
      new HubError(`${what}: a redirect to ${printable(where)} is not followed: ${reason}`, {
        status,
      });
    if (url.username !== '' || url.password !== '') throw refused('it holds a user name');
    if (!isWeb(url)) throw refused('it is no web address');
    if (url.origin === this.#base.origin) return url;
    if (isLoopback(url)) {
      if (isLoopback(this.#base)) return url;
      throw refused('it leads to this machine');
    }
    if (url.protocol !== 'https:') throw refused('it is not https');
    return url;
  }

  /** The reason that the server gives, in the forms of the Hub: a JSON object or a header. */
  async #refusal(what: string, reply: Reply, wait: AnswerTimeout): Promise<HubError> {
    const { status, headers } = reply;
    let said = headers.get('x-error-message') ?? '';
    try {
      const { error } = JSON.parse(
        (await readAll(wait.bodyOf(reply), { what, maxBytes: kMaxRefusalBytes })).toString(),
      ) as { error?: unknown };
      if (typeof error === 'string') said = error;
    } catch {
      // The body is a page for people, and the status says enough.
    }
    const reason = said && `, ${printable(withoutToken(said.trim(), this.options))}`;
    return new HubError(`${what}: status ${status}${reason}`, { status });
  }
}

/** Reads a whole body. @throws HubError if it has more than `maxBytes` bytes */
export async function readAll(
  chunks: AsyncIterable<Uint8Array>,
  { what, maxBytes }: { what: string; maxBytes: number },
): Promise<Buffer> {
  // Chunks may be of a byte each, and millions of them, so they are copied into one buffer.
  let all = Buffer.alloc(Math.min(maxBytes, kTimedBytes));
  let bytes = 0;
  for await (const chunk of chunks) {
    const after = bytes + chunk.length;
    if (after > maxBytes)
      throw new HubError(`${what}: the answer does not end within ${maxBytes} bytes`);
    if (after > all.length) {
      const larger = Buffer.alloc(Math.min(maxBytes, 2 * after));
      all.copy(larger, 0, 0, bytes);
      all = larger;
    }
    all.set(chunk, bytes);
    bytes = after;
  }
  return all.subarray(0, bytes);
}

/** The timeout of one answer. Only the time spent waiting for the server counts, not that spent on processing its bytes. */
class AnswerTimeout {
  readonly #controller = new AbortController();
  readonly #timeoutMs: number;
  readonly #portion: number;
  readonly #outer: AbortSignal | undefined;
  readonly #stop = (): void => this.#controller.abort(this.#outer?.reason);
  #waitedMs = 0;
  #bytes = 0;

  constructor(
    readonly what: string,
    options: { timeoutMs: number; portion: number; signal: AbortSignal | undefined },
  ) {
    this.#timeoutMs = options.timeoutMs;
    this.#portion = options.portion;
    this.#outer = options.signal;
    this.#outer?.addEventListener('abort', this.#stop);
    if (this.#outer?.aborted) this.#stop();
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  end(): void {
    this.#outer?.removeEventListener('abort', this.#stop);
  }

  /** Waits for `work`. @throws HubError where the server fails or is too slow; what the outer signal was aborted with */
  async until<T>(work: () => Promise<T>): Promise<T> {
    const began = performance.now();
    const timer = setTimeout(
      () => this.#controller.abort(this.#tooSlow()),
      Math.max(0, this.#timeoutMs - this.#waitedMs),
    );
    try {
      return await work();
    } catch (error) {
      if (this.signal.aborted) throw this.signal.reason;
      const reason = `${this.what}: ${printable(reasonOf(error))}`;
      throw new HubError(reason, { failure: 'broken', cause: error });
    } finally {
      clearTimeout(timer);
      this.#waitedMs += performance.now() - began;
    }
  }

  async *bodyOf({ body, close }: Reply): AsyncGenerator<Uint8Array> {
    try {
      while (true) {
        const { done, value } = await this.until(() => body.next());
        if (done) return;
        this.#bytes += value.length;
        if (this.#bytes >= this.#portion) this.#waitedMs = this.#bytes = 0;
        yield value;
      }
    } finally {
      this.end();
      close();
    }
  }

  #tooSlow(): HubError {
    const seconds = this.#timeoutMs / 1000;
    const much = this.#portion !== kTimedBytes ? 'the answer' : `${kTimedBytes} bytes of it`;
    const reason = `${this.what}: the server took more than ${seconds} s for ${much} (timeoutMs)`;
    return new HubError(reason, { failure: 'slow' });
  }
}

/** The text with the token removed, since a server may repeat what it was sent. */
export function withoutToken(
  text: string,
  { accessToken }: Pick<EndpointOptions, 'accessToken'>,
): string {
  return accessToken === '' ? text : text.replaceAll(accessToken, '(the token)');
}

/** Checks the Hub's address. @throws ArgumentError, which repeats no password */
function parseHubUrl(text: string): URL {
  const shown = printable(text.replace(/\/\/.*@/, '//...@'));
  const wrong = (reason: string): ArgumentError =>
    new ArgumentError(`the Hub's address (hubUrl, HF_ENDPOINT) "${shown}" ${reason}`);
  if (!URL.canParse(text)) throw wrong('is no URL; it looks like https://huggingface.co');
  const url = new URL(text);
  if (!isWeb(url)) throw wrong('must begin with https:// or http://');
  if (url.username !== '' || url.password !== '') {
    throw wrong('must hold no user name and no password: give a token (accessToken, HF_TOKEN)');
  }
  if (url.search !== '' || url.hash !== '') throw wrong('must hold no ? and no #');
  return url;
}

/** Checks the access token. @throws ArgumentError, which does not repeat the token */
function checkToken(token: string, base: URL): void {
  if (token === '') return;
  if (!/^[\x21-\x7e]+$/.test(token)) {
    throw new ArgumentError(
      'the access token (accessToken, HF_TOKEN) holds spaces or other characters that no token has; copy it again',
    );
  }
  if (base.protocol !== 'https:' && !isLoopback(base)) {
    throw new ArgumentError(
      `an access token is not sent to ${base.origin}, since anyone on the way could read it; use https ` +
        "(hubUrl, HF_ENDPOINT), or no token (unset HF_TOKEN, or accessToken: '')",
    );
  }
}

/** Whether an answer holds exactly the part of a file after its first `from` bytes. */
function isRest({ status, headers }: Reply, from: number): boolean {
  if (from === 0) return status === 200;
  return status === 206 && headers.get('content-range')?.startsWith(`bytes ${from}-`) === true;
}

function isWeb({ protocol }: URL): boolean {
  return protocol === 'https:' || protocol === 'http:';
}

/** Whether an address is this machine's own: 127.0.0.0/8, ::1 or localhost. URL has normalised other spellings to these. */
function isLoopback({ hostname }: URL): boolean {
  return /^127(\.\d{1,3}){3}$|^\[::1\]$|^localhost$/.test(hostname);
}

/**
 * The reason of a failure: Node calls a body that breaks off "aborted", and some errors have only a code, such as the one for
 * failures at each of several addresses.
 */
function reasonOf(error: unknown): string {
  const { message, name, code } = error as NodeJS.ErrnoException;
  if (code === 'ECONNRESET' && message === 'aborted') return 'the connection broke';
  return message || (code ?? name);
}
