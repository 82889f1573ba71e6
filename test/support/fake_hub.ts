// A fake Hugging Face hub on 127.0.0.1, whose answers a test can replace by hostile ones.
import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';

export const fakeCommit = '0123456789abcdef0123456789abcdef01234567';

/** The files of a repository by name. */
export type Files = Record<string, Buffer>;
export type Row = Record<string, unknown> & { path: string };

interface FakeRequest {
  /** Path of the request, decoded, without the query. */
  path: string;
  authorization: string | undefined;
}

/** The row of a file in the hub's list; weights are in LFS. */
export function honestRow(path: string, data: Buffer): Row {
  const size = data.length;
  if (!/\.(safetensors|gguf)$/.test(path)) return { type: 'file', path, size, oid: gitSha1(data) };
  const oid = createHash('sha256').update(data).digest('hex');
  const pointer = Buffer.from(
    `version https://git-lfs.github.com/spec/v1\noid sha256:${oid}\nsize ${size}\n`,
  );
  const lfs = { oid, size, pointerSize: pointer.length };
  return { type: 'file', path, size, oid: gitSha1(pointer), lfs };
}

/** The hash of a file in git. */
export function gitSha1(data: Buffer): string {
  return createHash('sha1').update(`blob ${data.length}\0`).update(data).digest('hex');
}

export class FakeHub {
  requests: FakeRequest[] = [];
  /** Called first with each request; returns true where it has answered. */
  intercept: (path: string, response: ServerResponse, request: IncomingMessage) => boolean = () =>
    false;
  sha: unknown = fakeCommit;
  /** Prefix of all paths. */
  prefix = '';
  /** Changes the list of files before it is sent. */
  listed: (rows: Row[]) => unknown = (rows) => rows;

  private constructor(
    private readonly server: Server,
    readonly repos: Record<string, Files>,
  ) {}

  static async start(repos: Record<string, Files> = {}): Promise<FakeHub> {
    const server = createServer();
    const hub = new FakeHub(server, repos);
    server.on('request', (request, response) => hub.answer(request, response));
    await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
    return hub;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  /** Restores the original answers, and forgets the requests. */
  reset(): void {
    this.requests = [];
    this.intercept = () => false;
    this.sha = fakeCommit;
    this.prefix = '';
    this.listed = (rows) => rows;
  }

  close(): void {
    this.server.closeAllConnections();
    this.server.close();
  }

  private answer(request: IncomingMessage, response: ServerResponse): void {
    const path = decodeURIComponent((request.url ?? '').split('?')[0] as string);
    // A kept connection could be closed here at the moment at which the client uses it again.
    response.setHeader('connection', 'close');
    this.requests.push({ path, authorization: request.headers.authorization });
    if (this.intercept(path, response, request)) return;
    const [, info, tree, resolved, file = ''] =
      /^\/api\/models\/([^/]+\/[^/]+)(?:\/revision\/.+)?$|^\/api\/models\/([^/]+\/[^/]+)\/tree\/|^\/([^/]+\/[^/]+)\/resolve\/[^/]+\/(.+)$/.exec(
        path.slice(this.prefix.length),
      ) ?? [];
    const files = this.repos[tree ?? info ?? resolved ?? ''];
    if (files === undefined) {
      response.writeHead(404, { 'content-type': 'application/json' });
      response.end('{"error":"Repository not found"}');
    } else if (tree !== undefined) {
      const rows = Object.entries(files).map(([name, data]) => honestRow(name, data));
      sendJson(response, this.listed(rows));
    } else if (info !== undefined) {
      sendJson(response, { _id: '1', id: info, sha: this.sha });
    } else {
      sendFile(response, files[file], request.headers.range);
    }
  }
}

export function sendJson(response: ServerResponse, value: unknown): void {
  response.setHeader('content-type', 'application/json');
  response.end(JSON.stringify(value));
}

/** Sends a file, or the requested range of it. */
function sendFile(response: ServerResponse, data: Buffer | undefined, ranges?: string): void {
  if (data === undefined) {
    response.writeHead(404, { 'X-Error-Code': 'EntryNotFound' }).end();
    return;
  }
  const range = /bytes=(\d+)-(\d+)/.exec(ranges ?? '');
  const [from, to] = range ? [Number(range[1]), Number(range[2]) + 1] : [0, data.length];
  const body = data.subarray(from, to);
  response.writeHead(range ? 206 : 200, {
    ETag: `"${gitSha1(data)}"`,
    'Content-Length': body.length,
    ...(range && {
      'Content-Range': `bytes ${from}-${Math.min(to, data.length) - 1}/${data.length}`,
    }),
  });
  response.end(body);
}
