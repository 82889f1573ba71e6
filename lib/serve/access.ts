/** Who may use a server: by its address, the names by which it is called, and a key. */
import { createHash, timingSafeEqual } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import { BlockList, isIP } from 'node:net';
import { ArgumentError } from '../errors.ts';
import { ApiError } from './api_error.ts';

const kLoopback = new BlockList();
kLoopback.addSubnet('127.0.0.0', 8, 'ipv4');
kLoopback.addAddress('::1', 'ipv6');

/** Whether only programs of this machine can reach an address. */
export function isLoopback(host: string): boolean {
  const family = isIP(host);
  if (family === 0) return host.toLowerCase() === 'localhost';
  return kLoopback.check(host, family === 4 ? 'ipv4' : 'ipv6');
}

/** The rule by which a server lets requests in. */
export class Access {
  readonly #host: string;
  readonly #key: Buffer | null;

  /**
   * @param key the key that requests must have; null: none
   * @throws ArgumentError for no key at an address that other machines may reach
   */
  constructor(host: string, key: string | null) {
    if (key === null && !isLoopback(host)) {
      throw new ArgumentError(
        `at ${host} other machines may reach the server, so that it needs a key: set BALORA_API_KEY or pass --api-key, or leave --host ` +
          'out to serve this machine alone',
      );
    }
    if (key === '') throw new ArgumentError('the API key must not be empty; give it a text');
    this.#host = host.toLowerCase();
    this.#key = key === null ? null : digestOf(key);
  }

  /** Lets a request in. @throws ApiError (401, 403) */
  check({ headers }: IncomingMessage): void {
    if (this.#key === null) {
      this.#checkHost(headers.host ?? '');
      return;
    }
    const [, given = ''] = /^Bearer (.+)$/i.exec(headers.authorization ?? '') ?? [];
    if (timingSafeEqual(digestOf(given), this.#key)) return;
    throw new ApiError('the API key is missing or wrong; send Authorization: Bearer KEY', {
      ...{ status: 401, code: 'invalid_api_key' },
      headers: { 'WWW-Authenticate': 'Bearer' },
    });
  }

  /**
   * Refuses a name that is not this machine's. A page in a browser could otherwise reach a server without a key under a name of its own
   * that it has made to stand for 127.0.0.1.
   */
  #checkHost(given: string): void {
    const name = given
      .replace(/:\d+$/, '')
      .replace(/^\[(.*)\]$/, '$1')
      .toLowerCase();
    if (isLoopback(name) || name === this.#host) return;
    throw new ApiError(`the Host must be that of this machine, such as localhost, got ${given}`, {
      ...{ status: 403, code: 'wrong_host' },
    });
  }
}

function digestOf(text: string): Buffer {
  return createHash('sha256').update(text).digest();
}
