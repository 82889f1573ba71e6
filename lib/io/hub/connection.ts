/**
 * One request over http or https, by Node's own client rather than by fetch: a server that closes the connection while fetch holds
 * a body back ends the process with an AssertionError that nothing can catch (nodejs/undici#5360, fixed in undici 8 alone).
 */
import type { IncomingMessage } from 'node:http';

/** A server's answer, which may be a redirect. */
export interface Reply {
  readonly status: number;
  readonly headers: Headers;
  /** Its body, read as it is asked for. It throws where the connection breaks before its end. */
  readonly body: AsyncIterator<Uint8Array>;
  /** Closes the connection, even if the body has not been read to its end. */
  close(): void;
}

/**
 * Sends a request.
 * @throws what the connection failed with; an AbortError once the signal is aborted, which the body then throws as well
 */
export async function request(
  url: URL,
  { headers, signal }: { headers: Record<string, string>; signal: AbortSignal },
): Promise<Reply> {
  // Loaded by the first request: with node:http, Node 22 loads its fetch as well, which reserves gigabytes of addresses.
  const { get } = await (url.protocol === 'https:' ? import('node:https') : import('node:http'));
  return new Promise((resolve, reject) => {
    // Each request has a connection of its own, since the server may close a kept one just as it is used again.
    const sent = get(url, { headers, signal, agent: false }, (message) => {
      try {
        resolve(replyOf(message));
      } catch (error) {
        message.destroy();
        reject(error);
      }
    });
    sent.on('error', reject);
    // The event also covers a server that changes to another protocol, which is no error to Node.
    sent.on('close', () => reject(new Error('the connection was closed without an answer')));
  });
}

function replyOf(message: IncomingMessage): Reply {
  const headers = new Headers();
  const { rawHeaders } = message;
  for (let i = 0; i < rawHeaders.length; i += 2) {
    headers.append(rawHeaders[i] as string, rawHeaders[i + 1] as string);
  }
  message.on('error', () => {}); // the iterator throws it
  return {
    status: message.statusCode ?? 0,
    headers,
    body: message[Symbol.asyncIterator]() as AsyncIterator<Uint8Array>,
    close: () => message.destroy(),
  };
}
