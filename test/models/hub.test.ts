// The Hub, played by a server on 127.0.0.1: which files are fetched, the shared cache's layout, offline use, failures.
import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { ArgumentError, NativeError } from '../../lib/errors.ts';
import { AutoModelForCausalLM, resolveModel } from '../../lib/models/index.ts';
import { architecture } from './golden.ts';

const kSha = '0123456789abcdef0123456789abcdef01234567';
const folder = mkdtempSync(join(tmpdir(), 'balora-hub-'));
let server: Server;
let hubUrl: string;
let requests: string[] = [];
let broken = false;
let cut = '';

/** Repositories of the fake Hub: file name to contents. */
const repos: Record<string, Record<string, Buffer>> = {
  'tiny/sharded': Object.fromEntries(
    readdirSync(architecture('llama-sharded/model')).map((name) => [
      name,
      readFileSync(join(architecture('llama-sharded/model'), name)),
    ]),
  ),
  'tiny/ggufs': {
    'a.Q4.gguf': Buffer.from('a'),
    'b.Q8.gguf': Buffer.from('b'),
    'README.md': Buffer.from('r'),
  },
  'tiny/none': { 'pytorch_model.bin': Buffer.from('x') },
};
const extras = {
  'README.md': Buffer.from('not fetched'),
  'pytorch_model.bin': Buffer.from('nor this'),
};
Object.assign(repos['tiny/sharded'] as object, extras);

beforeAll(async () => {
  server = createServer((request, response) => {
    const url = decodeURIComponent((request.url ?? '').split('?')[0] as string);
    requests.push(url);
    if (broken) {
      response.writeHead(503).end('down');
      return;
    }
    const [, api, tree, resolved] =
      /^\/api\/models\/([^/]+\/[^/]+)(?:\/revision\/[^/]+)?$|^\/api\/models\/([^/]+\/[^/]+)\/tree\/|^\/([^/]+\/[^/]+)\/resolve\//.exec(
        url,
      ) ?? [];
    const files = repos[api ?? tree ?? resolved ?? ''];
    if (files === undefined) {
      response
        .writeHead(404, { 'content-type': 'application/json' })
        .end('{"error":"Repository not found"}');
    } else if (api !== undefined) {
      response.setHeader('content-type', 'application/json');
      response.end(
        JSON.stringify({
          _id: '1',
          id: api,
          sha: kSha,
          private: false,
          downloads: 0,
          gated: false,
          likes: 0,
          lastModified: '2026-01-01',
        }),
      );
    } else if (tree !== undefined) {
      response.setHeader('content-type', 'application/json');
      const rows = Object.entries(files).map(([path, data]) => ({
        type: 'file',
        oid: createHash('sha1').update(path).digest('hex'),
        size: data.length,
        path,
      }));
      response.end(JSON.stringify(rows));
    } else {
      const data = files[url.split(`/resolve/${kSha}/`)[1] as string];
      if (data === undefined) {
        response.writeHead(404, { 'X-Error-Code': 'EntryNotFound' }).end();
        return;
      }
      const range = /bytes=(\d+)-(\d+)/.exec(request.headers.range ?? '');
      const [from, to] = range ? [Number(range[1]), Number(range[2]) + 1] : [0, data.length];
      const whole = data.subarray(from, to);
      const body = url.endsWith(cut || '/') ? whole.subarray(0, whole.length / 2) : whole;
      response.writeHead(range ? 206 : 200, {
        ETag: `"${url.length}"`,
        'Content-Length': body.length,
        ...(range && {
          'Content-Range': `bytes ${from}-${Math.min(to, data.length) - 1}/${data.length}`,
        }),
      });
      response.end(body);
    }
  });
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
  hubUrl = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
});
afterAll(() => {
  server.close();
  rmSync(folder, { recursive: true, force: true });
});
beforeEach(() => {
  requests = [];
  broken = false;
  cut = '';
});

const cache = (name: string): string => join(folder, name);

describe('a model id', () => {
  it('is fetched into the cache, loaded, and found there again', async () => {
    const cacheDir = cache('load');
    const model = await AutoModelForCausalLM.fromPretrained('tiny/sharded', { hubUrl, cacheDir });
    expect(model.nameOrPath).toBe('tiny/sharded');
    expect(model.vocabSize).toBe(97);
    const snapshot = join(cacheDir, 'models--tiny--sharded', 'snapshots', kSha);
    expect(model.folder).toBe(snapshot);
    expect(readdirSync(snapshot).sort()).toEqual(
      readdirSync(architecture('llama-sharded/model')).sort(),
    );
    expect(readFileSync(join(cacheDir, 'models--tiny--sharded', 'refs', 'main'), 'utf8')).toBe(
      kSha,
    );

    requests = [];
    expect(await resolveModel('tiny/sharded', { hubUrl, cacheDir })).toBe(snapshot);
    expect(requests.filter((url) => url.includes('/resolve/'))).toEqual([]);
    requests = [];
    expect(await resolveModel('tiny/sharded', { hubUrl, cacheDir, offline: true })).toBe(snapshot);
    expect(requests).toEqual([]);
    broken = true;
    expect(await resolveModel('tiny/sharded', { hubUrl, cacheDir })).toBe(snapshot);
  });

  it('may name one file of several', async () => {
    const cacheDir = cache('gguf');
    const error = await resolveModel('tiny/ggufs', { hubUrl, cacheDir }).catch((e: unknown) => e);
    expect(error).toBeInstanceOf(ArgumentError);
    expect(String(error)).toMatch(
      /several GGUF files; name one: tiny\/ggufs\/a\.Q4\.gguf, tiny\/ggufs\/b\.Q8\.gguf/,
    );
    const path = await resolveModel('tiny/ggufs/b.Q8.gguf', { hubUrl, cacheDir });
    expect(readFileSync(path, 'utf8')).toBe('b');
    expect(requests.some((url) => url.includes('a.Q4.gguf'))).toBe(false);
  });
});

describe('what goes wrong', () => {
  it('names an id that does not exist, with the server', async () => {
    const failure = resolveModel('tiny/missing', { hubUrl, cacheDir: cache('x') });
    await expect(failure).rejects.toThrow(NativeError);
    await expect(failure).rejects.toThrow(
      /tiny\/missing: cannot be fetched from http:\/\/127\.0\.0\.1:\d+: .*not found/i,
    );
  });

  it('names a server that does not answer', async () => {
    const dead = 'http://127.0.0.1:9';
    await expect(
      resolveModel('tiny/sharded', { hubUrl: dead, cacheDir: cache('y') }),
    ).rejects.toThrow(/cannot be fetched from http:\/\/127\.0\.0\.1:9/);
    expect(existsSync(cache('y'))).toBe(false);
  });

  it('does not take a download that was cut off for the file', async () => {
    const cacheDir = cache('cut');
    cut = 'model-00002-of-00004.safetensors';
    await expect(resolveModel('tiny/sharded', { hubUrl, cacheDir })).rejects.toThrow(
      /model-00002-of-00004\.safetensors ended after \d+ of \d+ bytes/,
    );
    const files = readdirSync(cacheDir, { recursive: true }).map(String);
    expect(files.filter((name) => /incomplete|00002/.test(name))).toEqual([]);
    cut = '';
    const said: string[] = [];
    const onDownload = (path: string, bytes: number): void =>
      void said.push(`${path} ${bytes > 0}`);
    await AutoModelForCausalLM.fromPretrained('tiny/sharded', { hubUrl, cacheDir, onDownload });
    expect(said[0]).toBe(`${'model-00002-of-00004.safetensors'} true`);
  });

  it('says what a repository lacks, and what offline mode lacks', async () => {
    await expect(resolveModel('tiny/none', { hubUrl, cacheDir: cache('z') })).rejects.toThrow(
      /neither safetensors nor GGUF/,
    );
    await expect(
      resolveModel('tiny/sharded', { cacheDir: cache('w'), offline: true }),
    ).rejects.toThrow(/not in the cache .*offline mode is on/);
  });

  it('takes nothing else for an id', async () => {
    for (const name of [
      './nowhere',
      '/no/such/place',
      'a/b/c',
      '../../no/such/file',
      'plain',
      'a b/c',
      '',
    ]) {
      await expect(resolveModel(name, { hubUrl, cacheDir: cache('v') }), name).rejects.toThrow(
        ArgumentError,
      );
    }
    expect(requests).toEqual([]);
    writeFileSync(join(folder, 'here'), '');
    expect(await resolveModel(join(folder, 'here'))).toBe(join(folder, 'here'));
  });
});
