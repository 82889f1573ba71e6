// Who may use a server: addresses that need a key, keys, and the names by which a server without a key is called.
import type { IncomingMessage } from 'node:http';
import { describe, expect, it } from 'vitest';
import { Access, isLoopback } from '../../lib/serve/access.ts';

const request = (headers: Record<string, string>): IncomingMessage =>
  ({ headers }) as unknown as IncomingMessage;

describe('Access', () => {
  it.each([
    ['127.0.0.1', true],
    ['127.8.0.1', true],
    ['::1', true],
    ['localhost', true],
    ['0.0.0.0', false],
    ['::', false],
    ['192.168.0.7', false],
    ['::ffff:192.168.0.7', false],
    ['example.com', false],
  ])('sees whether only this machine reaches %s', (host, expected) => {
    expect(isLoopback(host)).toBe(expected);
    if (expected) new Access(host, null);
    else {
      expect(() => new Access(host, null)).toThrow(
        `at ${host} other machines may reach the server, so that it needs a key: set BALORA_API_KEY or pass --api-key`,
      );
    }
    new Access(host, 'key');
    expect(() => new Access(host, '')).toThrow('the API key must not be empty');
  });

  it('lets in who has the key', () => {
    const access = new Access('0.0.0.0', 'secret');
    access.check(request({ authorization: 'Bearer secret', host: 'anything' }));
    access.check(request({ authorization: 'bearer secret' }));
    const wrong: Record<string, string>[] = [
      {},
      { authorization: 'secret' },
      { authorization: 'Bearer secre' },
      { authorization: 'Bearer secret2' },
    ];
    for (const headers of wrong) {
      expect(() => access.check(request(headers))).toThrow(
        expect.objectContaining({ status: 401, code: 'invalid_api_key' }),
      );
    }
  });

  it('without a key lets in who calls it by a name of this machine', () => {
    const access = new Access('127.0.0.1', null);
    for (const host of ['127.0.0.1:8080', 'localhost', 'LOCALHOST:1', '[::1]:8080']) {
      access.check(request({ host }));
    }
    for (const host of ['evil.example:8080', '127.0.0.1.evil.example', '', '192.168.0.7']) {
      expect(() => access.check(request({ host }))).toThrow(
        expect.objectContaining({ status: 403, code: 'wrong_host' }),
      );
    }
  });
});
