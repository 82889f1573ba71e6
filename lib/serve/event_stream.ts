/**
 * Sending at the speed of the reader: what a client has not taken waits in its connection, and nothing is added to it. A client that
 * takes nothing for a while loses its connection.
 */
import type { ServerResponse } from 'node:http';
import { printableJson } from '../shown.ts';

/** The connection was closed by the client, or for its taking nothing. */
export class ConnectionLost extends Error {
  constructor() {
    super('the connection is closed');
    this.name = 'ConnectionLost';
  }
}

/**
 * Waits until a response can take more, or has been taken in whole.
 * @param stallMs time without any progress after which the connection is closed
 * @throws ConnectionLost
 */
export function waitFor(
  response: ServerResponse,
  event: 'drain' | 'finish',
  stallMs: number,
): Promise<void> {
  if (response.destroyed || response.closed) return Promise.reject(new ConnectionLost());
  return new Promise((resolve, reject) => {
    const settle = (settled: () => void): void => {
      response.off(event, onEvent);
      response.off('close', onClose);
      response.off('timeout', onTimeout);
      response.setTimeout(0);
      settled();
    };
    // A response that is destroyed with its connection says that it is finished.
    const isLost = (): boolean => response.destroyed || response.socket?.destroyed === true;
    const onEvent = (): void => settle(() => (isLost() ? reject(new ConnectionLost()) : resolve()));
    const onClose = (): void => settle(() => reject(new ConnectionLost()));
    const onTimeout = (): void => void response.destroy();
    response.once(event, onEvent);
    response.once('close', onClose);
    response.once('timeout', onTimeout);
    response.setTimeout(stallMs);
  });
}

/** Server-sent events, one after the other. */
export class EventStream {
  constructor(
    private readonly response: ServerResponse,
    private readonly stallMs: number,
  ) {}

  /** Whether anything was sent, so that the status cannot change. */
  get hasBegun(): boolean {
    return this.response.headersSent;
  }

  /** Sends an event, and waits until the client has room for another. @throws ConnectionLost */
  async send(data: object | string): Promise<void> {
    const response = this.response;
    if (!response.headersSent) {
      response.writeHead(200, {
        'Content-Type': 'text/event-stream; charset=utf-8',
        'Cache-Control': 'no-cache',
        // Proxies such as nginx would collect events.
        'X-Accel-Buffering': 'no',
      });
    }
    if (response.destroyed) throw new ConnectionLost();
    const text = typeof data === 'string' ? data : printableJson(data);
    if (!response.write(`data: ${text}\n\n`)) await waitFor(response, 'drain', this.stallMs);
  }

  /** Ends the stream, and waits until the client has taken all of it. @throws ConnectionLost */
  async end(): Promise<void> {
    const finished = waitFor(this.response, 'finish', this.stallMs);
    this.response.end();
    await finished;
  }
}
