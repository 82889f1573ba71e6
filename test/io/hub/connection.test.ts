// HTTP connections, including those that a server misuses: each gives an error that can be caught, or none.
import { createServer, type Server, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { type Reply, request } from '../../../lib/io/hub/connection.ts';

let server: Server;
let address: URL;
let answer: (socket: Socket) => void;
let heads: string[] = [];

beforeAll(async () => {
  server = createServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', (head) => {
      heads.push(String(head));
      answer(socket);
    });
  });
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  address = new URL(`http://127.0.0.1:${(server.address() as { port: number }).port}/a?b=c`);
});
afterAll(() => server.close());
beforeEach(() => {
  heads = [];
});

const ask = (signal = new AbortController().signal): Promise<Reply> =>
  request(address, { headers: { Range: 'bytes=3-' }, signal });

async function bytesOf({ body }: Reply, pause = 0): Promise<number> {
  let bytes = 0;
  for (let next = await body.next(); !next.done; next = await body.next()) {
    bytes += next.value.length;
    await sleep(pause);
  }
  return bytes;
}

const head = (...lines: string[]): string => `${lines.join('\r\n')}\r\n\r\n`;

describe('a connection', () => {
  it('sends the request, and returns status, headers and body', async () => {
    answer = (socket) =>
      socket.end(
        `${head('HTTP/1.1 206 Partial', 'ETag: "x"', 'a: 1', 'A: 2', 'Content-Length: 2')}hi`,
      );
    const reply = await ask();
    expect(heads[0]).toMatch(/^GET \/a\?b=c HTTP\/1\.1\r\nRange: bytes=3-\r\n/);
    expect(reply.status).toBe(206);
    expect([reply.headers.get('etag'), reply.headers.get('a')]).toEqual(['"x"', '1, 2']);
    expect(await bytesOf(reply)).toBe(2);
  });

  it.each([
    ['with a length', (n: number) => [`Content-Length: ${n}`]],
    ['up to its end', () => []],
  ])(
    'that the server closes behind a body %s loses nothing for a slow reader',
    async (_, length) => {
      for (const bytes of [0, 1, 65_535, 65_536, 65_537, 300_000, 1_000_001]) {
        answer = (socket) => {
          socket.write(head('HTTP/1.1 200 OK', 'Connection: close', ...length(bytes)));
          socket.end(Buffer.alloc(bytes, 'w'));
        };
        const reply = await ask();
        await sleep(20);
        expect(await bytesOf(reply, 3)).toBe(bytes);
      }
    },
  );

  it('is closed without an error where its body is never read', async () => {
    answer = (socket) => {
      socket.write(head('HTTP/1.1 200 OK', 'Content-Length: 9000000'));
      socket.end(Buffer.alloc(400_000));
    };
    await ask();
    (await ask()).close();
    await sleep(100);
  });

  it.each([
    ['nothing', ''],
    ['no HTTP', 'hello\r\n\r\n'],
    ['half a header', 'HTTP/1.1 200 OK\r\nContent-Le'],
    ['another protocol', head('HTTP/1.1 101 Switching', 'Connection: upgrade', 'Upgrade: x')],
    ['a header without end', `HTTP/1.1 200 OK\r\nx: ${'y'.repeat(100_000)}`],
  ])('that answers %s is an error', async (_, text) => {
    answer = (socket) => socket.end(text);
    await expect(ask()).rejects.toThrow(/\w/);
  });

  it('that breaks off within a body is an error of the reader', async () => {
    for (const stop of [(s: Socket) => s.end(), (s: Socket) => s.resetAndDestroy()]) {
      answer = (socket) => {
        socket.write(`${head('HTTP/1.1 200 OK', 'Content-Length: 10')}half`);
        setTimeout(stop, 30, socket);
      };
      await expect(ask().then((reply) => bytesOf(reply))).rejects.toMatchObject({
        code: 'ECONNRESET',
      });
    }
  });

  it('ends with its signal, before and after the answer', async () => {
    for (const text of ['', `${head('HTTP/1.1 200 OK', 'Content-Length: 10')}half`]) {
      const controller = new AbortController();
      answer = (socket) => {
        socket.write(text || 'HTTP');
        setTimeout(() => controller.abort(), 30);
      };
      await expect(ask(controller.signal).then((reply) => bytesOf(reply))).rejects.toThrow();
    }
  });
});
