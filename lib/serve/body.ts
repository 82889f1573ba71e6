/** The bodies of requests: read up to a limit, and refused unread beyond it. */
import type { IncomingMessage } from 'node:http';
import { formatBytes } from '../io/format_bytes.ts';
import { isObject } from '../options/option.ts';
import { ApiError } from './api_error.ts';
import { ConnectionLost } from './event_stream.ts';
import type { Fields } from './request.ts';

/**
 * Reads a body as a JSON object. One that says it is longer than the limit is refused before it is read; one that does not, where it
 * becomes longer.
 * @param onRead called before the first byte is read
 * @throws ApiError: 413 for one that is too long, 415 for another type, 400 for what is no JSON object
 */
export async function readBody(
  request: IncomingMessage,
  { limit, onRead }: { limit: number; onRead: () => void },
): Promise<Fields> {
  // A page of another site can send other types to this server, without asking whether it may.
  const type = (request.headers['content-type'] ?? '').split(';')[0]?.trim().toLowerCase();
  if (type !== 'application/json') {
    throw new ApiError('the Content-Type must be application/json', { status: 415 });
  }
  if (Number(request.headers['content-length'] ?? 0) > limit) throw tooLong(limit);
  onRead();
  const bytes = await readBytes(request, limit);
  let value: unknown;
  try {
    value = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (error) {
    throw new ApiError(`the body is no JSON: ${(error as Error).message}`, {
      ...{ status: 400, code: 'invalid_json' },
    });
  }
  if (isObject(value)) return value;
  throw new ApiError('the body must be a JSON object', { status: 400, code: 'invalid_json' });
}

function readBytes(request: IncomingMessage, limit: number): Promise<Buffer> {
  return new Promise((resolve, reject) => {
    const parts: Buffer[] = [];
    let size = 0;
    const settle = (settled: () => void): void => {
      request.off('data', onData).off('end', onEnd).off('error', onLost).off('close', onLost);
      settled();
    };
    const onData = (part: Buffer): void => {
      size += part.length;
      if (size > limit) {
        request.pause();
        settle(() => reject(tooLong(limit)));
      } else parts.push(part);
    };
    const onEnd = (): void => settle(() => resolve(Buffer.concat(parts)));
    const onLost = (): void => settle(() => reject(new ConnectionLost()));
    request.on('data', onData).on('end', onEnd).on('error', onLost).on('close', onLost);
  });
}

function tooLong(limit: number): ApiError {
  return new ApiError(`the body is longer than ${formatBytes(limit)}`, {
    ...{ status: 413, code: 'body_too_large' },
  });
}
