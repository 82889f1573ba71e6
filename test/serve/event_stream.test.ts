// Sending at the speed of the reader: one that is slow gets everything, one that takes nothing loses its connection.
import { createServer, get, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { ConnectionLost, EventStream, waitFor } from '../../lib/serve/event_stream.ts';

/** More than the buffers of a connection take. */
const kSize = 96 * 2 ** 20;

/** The result of a handler, for a response that a client reads by `read`, in parts of a few kilobytes. */
async function serve<T>(
  handle: (response: ServerResponse) => Promise<T>,
  read: (part: Buffer) => Promise<void>,
): Promise<T> {
  let settle: (made: Promise<T>) => void = () => {};
  const made = new Promise<T>((resolve) => {
    settle = resolve;
  });
  const server = createServer((_, response) => settle(handle(response)));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  let ended = (): void => {};
  const reading = new Promise<void>((resolve) => {
    ended = resolve;
  });
  const request = get({ port, host: '127.0.0.1', agent: false }, async (response) => {
    try {
      for await (const part of response) await read(part);
    } catch {
      // The connection was closed.
    }
    ended();
  });
  request.on('error', () => {});
  try {
    const result = await made;
    await reading;
    return result;
  } finally {
    request.destroy();
    server.closeAllConnections();
    server.close();
  }
}

const never = (): Promise<void> => new Promise(() => {});

describe('waitFor', () => {
  const whole = async (response: ServerResponse): Promise<string> => {
    const finished = waitFor(response, 'finish', 300);
    response.end(Buffer.alloc(kSize, 97));
    await finished;
    return 'finished';
  };

  it('closes the connection of a client that reads nothing', async () => {
    await expect(serve(whole, never)).rejects.toThrow(ConnectionLost);
  });

  it('waits for one that reads slowly, for longer than the limit in all', async () => {
    let read = 0;
    const begun = performance.now();
    const slow = async (part: Buffer): Promise<void> => {
      read += part.length;
      if (read % 2 ** 20 < part.length) await sleep(10);
    };
    expect(await serve(whole, slow)).toBe('finished');
    expect(performance.now() - begun).toBeGreaterThan(300);
  });

  it('is rejected at once for a connection that is closed', async () => {
    const gone = async (response: ServerResponse): Promise<void> => {
      response.destroy();
      await waitFor(response, 'drain', 1e6);
    };
    await expect(serve(gone, never)).rejects.toThrow(ConnectionLost);
  });
});

describe('EventStream', () => {
  it('sends no more than a reader takes', async () => {
    let sent = 0;
    const flood = async (response: ServerResponse): Promise<void> => {
      const events = new EventStream(response, 300);
      expect(events.hasBegun).toBe(false);
      const text = 'x'.repeat(1 << 16);
      for (; sent < 4 * kSize; sent += text.length) {
        await events.send(text);
        expect(response.writableLength).toBeLessThan(1 << 17);
      }
    };
    await expect(serve(flood, never)).rejects.toThrow(ConnectionLost);
    expect(sent).toBeGreaterThan(0);
    expect(sent).toBeLessThan(kSize);
  });

  it('ends when everything was taken', async () => {
    let text = '';
    const send = async (response: ServerResponse): Promise<void> => {
      const events = new EventStream(response, 5000);
      await events.send({ a: 1 });
      await events.send('[DONE]');
      await events.end();
    };
    await serve(send, async (part) => {
      text += part.toString();
    });
    expect(text).toBe('data: {"a":1}\n\ndata: [DONE]\n\n');
  });
});
