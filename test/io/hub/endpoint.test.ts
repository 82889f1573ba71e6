// The servers that a token is sent to, redirects that are followed, and timeouts.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import type { ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { ArgumentError, NativeError } from '../../../lib/errors.ts';
import { request } from '../../../lib/io/hub/connection.ts';
import { type ResolveOptions, resolveModel } from '../../../lib/io/hub.ts';
import { FakeHub, type Files, fakeCommit, honestRow } from '../../support/fake_hub.ts';

vi.mock('../../../lib/io/hub/connection.ts', { spy: true });

const kToken = 'hf_secret';
const folder = mkdtempSync(join(tmpdir(), 'balora-hub-endpoint-'));
const weights = Buffer.alloc(400_000, 'w');
const files: Files = { 'config.json': Buffer.from('{}'), 'model.safetensors': weights };
let hub: FakeHub;
let other: FakeHub;
let tries = 0;
let cacheDir: string;

beforeAll(async () => {
  hub = await FakeHub.start({ 'tiny/model': files });
  other = await FakeHub.start({ 'tiny/model': files });
});
afterAll(() => {
  hub.close();
  other.close();
  rmSync(folder, { recursive: true, force: true });
});
beforeEach(() => {
  hub.reset();
  other.reset();
  cacheDir = join(folder, `${++tries}`);
});
afterEach(() => {
  vi.mocked(request).mockRestore();
  vi.unstubAllEnvs();
});

const ask = (options: ResolveOptions = {}): Promise<string> =>
  resolveModel('tiny/model', { hubUrl: hub.url, cacheDir, accessToken: kToken, ...options });

async function messageOf(failure: Promise<unknown>, kind: typeof NativeError = NativeError) {
  const error = await failure.then(
    () => 'no error',
    (e: unknown) => e,
  );
  expect(error).toBeInstanceOf(kind);
  expect(JSON.stringify([String(error), (error as Error).stack])).not.toContain(kToken);
  return (error as Error).message;
}

/** Replaces the network by a function. `asked` lists the requests as "ORIGIN" or "ORIGIN with the token". */
function playNetwork(answer: (url: URL) => Response): { asked: string[] } {
  const asked: string[] = [];
  vi.mocked(request).mockImplementation(async (url, { headers }) => {
    asked.push(`${url.origin}${'Authorization' in headers ? ' with the token' : ''}`);
    const response = answer(url);
    const body = Readable.from([Buffer.from(await response.arrayBuffer())]);
    const { status } = response;
    return { status, headers: response.headers, body: body[Symbol.asyncIterator](), close() {} };
  });
  return { asked };
}

/** A hub that redirects the requests for the weights. */
function honestBut(location: string): (url: URL) => Response {
  const rows = Object.entries(files).map(([name, data]) => honestRow(name, data));
  return (url) => {
    if (url.pathname.includes('/revision/')) return Response.json({ sha: fakeCommit });
    if (url.pathname.includes('/tree/')) return Response.json(rows);
    if (url.pathname.endsWith('config.json')) return new Response('{}');
    if (url.host === 'hub.example' && url.pathname.includes('/resolve/')) {
      return new Response(null, { status: 302, headers: { location } });
    }
    return new Response(weights);
  };
}

describe('a token', () => {
  it('is sent over http only to this machine, over https to any', async () => {
    await ask();
    expect(hub.requests.every(({ authorization }) => authorization === `Bearer ${kToken}`)).toBe(
      true,
    );
    const { asked } = playNetwork(honestBut('https://cdn.example/w?signature=1'));
    for (const hubUrl of [
      'http://hub.example',
      'http://192.0.2.1:8080/mirror',
      'http://localhost.example',
      'http://128.0.0.1',
      'http://127.0.0.1.example',
      'http://[::2]',
    ]) {
      const message = await messageOf(ask({ hubUrl }), ArgumentError);
      expect(message).toMatch(
        /^an access token is not sent to http:\S+, since anyone on the way could read it; use https .*HF_TOKEN/,
      );
    }
    expect(asked).toEqual([]);
    for (const hubUrl of [
      'http://localhost:1',
      'http://127.1.2.3',
      'http://[::1]:2',
      'http://0x7f.1',
    ]) {
      await ask({ hubUrl, cacheDir: join(cacheDir, 'x') }).catch(() => {});
      expect(asked.splice(0)[0], hubUrl).toMatch(/ with the token$/);
    }
    // Without a token http is allowed.
    await ask({ hubUrl: 'http://hub.example', accessToken: '', cacheDir: join(cacheDir, 'y') });
    expect(asked.some((line) => line.includes('token'))).toBe(false);
  });

  it('from HF_TOKEN follows the same rules, and can be disabled', async () => {
    const { asked } = playNetwork(honestBut('https://cdn.example/w'));
    vi.stubEnv('HF_TOKEN', `${kToken}\n`);
    vi.stubEnv('HF_ENDPOINT', 'http://hub.example');
    await messageOf(resolveModel('tiny/model', { cacheDir }), ArgumentError);
    expect(asked).toEqual([]);
    await resolveModel('tiny/model', { cacheDir, accessToken: '' });
    vi.stubEnv('HF_ENDPOINT', 'https://hub.example/');
    await resolveModel('tiny/model', { cacheDir });
    expect(asked.at(-1)).toBe('https://hub.example with the token');
  });

  it('is in no error message, whatever its text or the answer of the server', async () => {
    for (const accessToken of [`${kToken} x`, `${kToken}\r\nX-Evil: 1`, `${kToken}ü`]) {
      const message = await messageOf(ask({ accessToken }), ArgumentError);
      expect(message).toMatch(/^the access token .* holds spaces or other characters/);
    }
    hub.intercept = (_path, response, request) => {
      response.writeHead(403, { 'content-type': 'application/json' });
      response.end(JSON.stringify({ error: `no\u001b[2J\nto ${request.headers.authorization}` }));
      return true;
    };
    expect(await messageOf(ask())).toMatch(
      /commit of main: status 403, no\\u001b\[2J\\nto Bearer \(the token\); check the connection/,
    );
    hub.intercept = (_path, response) => {
      response.writeHead(404, { 'x-error-message': `${kToken} ${'x'.repeat(1000)}` }).end('<html>');
      return true;
    };
    expect(await messageOf(ask())).toMatch(
      /status 404, \(the token\) x{150,200}\.\.\.; check the connection/,
    );
  });

  it('is not sent to another origin after a redirect', async () => {
    hub.intercept = (path, response) => {
      if (path.includes('/resolve/')) response.writeHead(302, { location: other.url + path }).end();
      return path.includes('/resolve/');
    };
    await ask();
    expect(other.requests).toHaveLength(2);
    expect(other.requests.every(({ authorization }) => authorization === undefined)).toBe(true);
    const { asked } = playNetwork(honestBut('https://cdn.example/w?signature=1'));
    await ask({ hubUrl: 'https://hub.example', cacheDir: join(cacheDir, 'x') });
    expect(asked.slice(-2)).toEqual(['https://hub.example with the token', 'https://cdn.example']);
  });

  it('is sent after a redirect within the origin, also a relative one', async () => {
    hub.intercept = (path, response) => {
      const old = path.startsWith('/api/models/tiny/model/revision');
      if (old) response.writeHead(307, { location: '/api/models/tiny/new/revision/main' }).end();
      return old;
    };
    hub.repos['tiny/new'] = files;
    await ask();
    expect(hub.requests[1]).toEqual({
      path: '/api/models/tiny/new/revision/main',
      authorization: `Bearer ${kToken}`,
    });
  });
});

describe('a redirect', () => {
  it.each([
    [
      'http://cdn.example/w',
      /a redirect to http:\/\/cdn\.example is not followed: it is not https/,
    ],
    ['http://hub.example/w', /to http:\/\/hub\.example is not followed: it is not https/],
    ['http://127.0.0.1:1/w', /it leads to this machine/],
    ['https://localhost/w', /it leads to this machine/],
    ['http://[::1]/w', /it leads to this machine/],
    ['https://user:hf_secret@cdn.example/w', /it holds a user name/],
    ['file:///etc/passwd', /a redirect to file: is not followed: it is no web address/],
    ['data:text/plain,x', /it is no web address/],
    ['blob:https://hub.example/w', /it is no web address/],
    ['http://[', /a redirect without an address/],
  ])('to %s is refused before anything is asked there', async (location, pattern) => {
    const { asked } = playNetwork(honestBut(location));
    const message = await messageOf(ask({ hubUrl: 'https://hub.example' }));
    expect(message).toMatch(pattern);
    expect(message).toMatch(/ model\.safetensors: /);
    expect(asked.every((line) => line === 'https://hub.example with the token')).toBe(true);
  });

  it('is followed ten times at most', async () => {
    hub.intercept = (path, response) => {
      if (path.includes('/tree/')) response.writeHead(302, { location: `${path}x` }).end();
      return path.includes('/tree/');
    };
    expect(await messageOf(ask())).toMatch(/list of files: more than 10 redirects/);
    expect(hub.requests).toHaveLength(12);
  });

  it('without a location is refused', async () => {
    hub.intercept = (_path, response) => {
      response.writeHead(302).end();
      return true;
    };
    expect(await messageOf(ask())).toMatch(/commit of main: a redirect without an address/);
  });
});

describe('a server', () => {
  const never = (_response: ServerResponse): void => {};
  const drip = (response: ServerResponse): void => {
    const timer = setInterval(() => response.write('w'), 20);
    response.on('close', () => clearInterval(timer));
  };
  it.each([
    ['/revision/', 'never answers', never, 'commit of main', 'the answer'],
    ['/revision/', 'answers by the byte', drip, 'commit of main', 'the answer'],
    ['/tree/', 'answers by the byte', drip, 'list of files', 'the answer'],
    ['model.safetensors', 'never answers', never, 'model.safetensors', '65536 bytes of it'],
    ['model.safetensors', 'answers by the byte', drip, 'model.safetensors', '65536 bytes of it'],
  ] as const)('whose %s %s is waited for no longer', async (place, _how, act, what, much) => {
    hub.intercept = (path, response) => {
      if (path.includes(place)) act(response);
      return path.includes(place);
    };
    expect(await messageOf(ask({ timeoutMs: 400 }))).toContain(
      `${what}: the server took more than 0.4 s for ${much} (timeoutMs)`,
    );
    const left = readdirSync(folder, { recursive: true }).map(String);
    expect(left.filter((name) => name.includes('incomplete'))).toEqual([]);
    // A cached model is used, as where no server answers.
    hub.intercept = () => false;
    const path = await ask();
    hub.intercept = () => true;
    expect(await ask({ timeoutMs: 100 })).toBe(path);
  });

  it('that is slow but keeps sending causes no timeout', async () => {
    hub.intercept = (path, response) => {
      if (!path.endsWith('model.safetensors')) return false;
      const portion = 100_000;
      for (let at = 0; at < weights.length; at += portion) {
        setTimeout(() => response.write(weights.subarray(at, at + portion)), 700 * (at / portion));
      }
      setTimeout(() => response.end(), 2200);
      return true;
    };
    const began = performance.now();
    await ask({ timeoutMs: 2000 });
    expect(performance.now() - began).toBeGreaterThan(2000);
  });

  it('is left at once at an abort', async () => {
    for (const place of ['/revision/', 'model.safetensors']) {
      const controller = new AbortController();
      hub.intercept = (path, response) => {
        if (!path.includes(place)) return false;
        response.write('w');
        setTimeout(() => controller.abort(new Error('enough')), 50);
        return true;
      };
      await expect(ask({ signal: controller.signal }), place).rejects.toThrow(/^enough$/);
    }
    hub.requests = [];
    await expect(ask({ signal: AbortSignal.abort(new Error('never')) })).rejects.toThrow(/^never$/);
    expect(hub.requests).toEqual([]);
    const left = readdirSync(folder, { recursive: true }).map(String);
    expect(left.filter((name) => name.includes('incomplete'))).toEqual([]);
  });
});

describe('an address', () => {
  it('must be http or https, without a password', async () => {
    const { asked } = playNetwork(() => new Response());
    for (const [hubUrl, pattern] of [
      ['huggingface.co', /"huggingface\.co" is no URL; it looks like https:\/\/huggingface\.co/],
      ['ftp://hub.example', /must begin with https:\/\/ or http:\/\//],
      [
        'https://me:hf_secret@hub.example',
        /"https:\/\/\.\.\.@hub\.example" must hold no user name/,
      ],
      ['https://hub.example/?a=b', /must hold no \? and no #/],
    ] as const) {
      expect(await messageOf(ask({ hubUrl }), ArgumentError)).toMatch(pattern);
    }
    for (const timeoutMs of [0, -1, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(await messageOf(ask({ timeoutMs }), ArgumentError)).toMatch(
        /timeoutMs must be a number > 0 and <= 2147483647, got /,
      );
    }
    expect(asked).toEqual([]);
  });

  it('may have a path', async () => {
    hub.prefix = '/a/mirror';
    await ask({ hubUrl: `${hub.url}/a/mirror/` });
    expect(hub.requests.map(({ path }) => path)).toEqual([
      '/a/mirror/api/models/tiny/model/revision/main',
      `/a/mirror/api/models/tiny/model/tree/${fakeCommit}`,
      `/a/mirror/tiny/model/resolve/${fakeCommit}/config.json`,
      `/a/mirror/tiny/model/resolve/${fakeCommit}/model.safetensors`,
    ]);
  });
});
