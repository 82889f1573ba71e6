// The shared cache: it admits only files with the expected hash, does not follow links that lead outside, and has the layout of
// Python's huggingface_hub.
import { createHash } from 'node:crypto';
import {
  chmodSync,
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  realpathSync,
  renameSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { FormatError } from '../../../lib/errors.ts';
import { resolveModel } from '../../../lib/io/hub.ts';
import { FakeHub, type Files, fakeCommit, gitSha1 } from '../../support/fake_hub.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-hub-cache-'));
const files: Files = {
  'config.json': Buffer.from('{"hidden_size": 8}'),
  'model.safetensors': Buffer.alloc(300_000, 'weights'),
};
const weights = files['model.safetensors'] as Buffer;
let hub: FakeHub;
let tries = 0;
let cacheDir: string;
let repo: string;
let snapshot: string;

beforeAll(async () => {
  hub = await FakeHub.start({
    'tiny/model': files,
    'tiny/deep': { 'sub/a.gguf': Buffer.from('a'), 'b.gguf': Buffer.from('b') },
  });
});
afterAll(() => {
  hub.close();
  rmSync(folder, { recursive: true, force: true });
});
beforeEach(() => {
  hub.reset();
  cacheDir = join(folder, `${++tries}`, 'cache');
  repo = join(cacheDir, 'models--tiny--model');
  snapshot = join(repo, 'snapshots', fakeCommit);
});
afterEach(() => vi.unstubAllEnvs());

const ask = ({
  name = 'tiny/model',
  ...options
}: {
  offline?: boolean;
  revision?: string;
  name?: string;
} = {}) =>
  resolveModel(name, {
    hubUrl: hub.url,
    cacheDir,
    accessToken: '',
    ...options,
  });
const downloads = (): string[] =>
  hub.requests.filter(({ path }) => path.includes('/resolve/')).map(({ path }) => path);
const sha256 = (data: Buffer): string => createHash('sha256').update(data).digest('hex');

/** Makes the server send this data for a file. */
function sendAs(name: string, data: Buffer): void {
  hub.intercept = (path, response) => {
    if (path.endsWith(name)) response.end(data);
    return path.endsWith(name);
  };
}

function flipped(data: Buffer | undefined): Buffer {
  const copy = Buffer.from(data as Buffer);
  copy[copy.length >> 1] = (copy[copy.length >> 1] as number) ^ 1;
  return copy;
}

/** Writes a cache as `huggingface_hub.snapshot_download` leaves it. */
function layOutAsPython({ links }: { links: boolean }): void {
  mkdirSync(join(repo, 'refs'), { recursive: true });
  writeFileSync(join(repo, 'refs', 'main'), fakeCommit);
  mkdirSync(join(repo, 'blobs'));
  mkdirSync(snapshot, { recursive: true });
  mkdirSync(join(repo, '.no_exist', fakeCommit), { recursive: true });
  for (const [name, data] of Object.entries(files)) {
    const hash = name.endsWith('.json') ? gitSha1(data) : sha256(data);
    if (!links) writeFileSync(join(snapshot, name), data);
    else {
      writeFileSync(join(repo, 'blobs', hash), data);
      symlinkSync(`../../blobs/${hash}`, join(snapshot, name));
    }
  }
}

describe('a download', () => {
  it('is named by its hash, as in Python', async () => {
    expect(await ask()).toBe(snapshot);
    const config = files['config.json'] as Buffer;
    expect(readdirSync(join(repo, 'blobs')).sort()).toEqual(
      [gitSha1(config), sha256(weights)].sort(),
    );
    expect(readlinkSync(join(snapshot, 'config.json'))).toBe(`../../blobs/${gitSha1(config)}`);
    expect(readlinkSync(join(snapshot, 'model.safetensors'))).toBe(
      `../../blobs/${sha256(weights)}`,
    );
    expect(readdirSync(join(repo, 'refs'))).toEqual(['main']);
    expect(readFileSync(join(repo, 'refs', 'main'), 'utf8')).toBe(fakeCommit);
  });

  it.each([
    ['model.safetensors', 'SHA-256'],
    ['config.json', "git's SHA-1"],
  ])('is refused with a bit flipped, %s', async (name, kind) => {
    sendAs(name, flipped(files[name]));
    const failure = ask();
    await expect(failure).rejects.toThrow(FormatError);
    await expect(failure).rejects.toThrow(`${name}: ${kind} of what came is `);
    expect(existsSync(join(snapshot, name))).toBe(false);
    for (const blob of readdirSync(join(repo, 'blobs'))) {
      expect(gitSha1(readFileSync(join(repo, 'blobs', blob)))).toBe(blob);
    }
    expect(existsSync(join(repo, 'refs'))).toBe(false);
    hub.reset();
    expect(readFileSync(join(await ask(), name))).toEqual(files[name]);
  });

  it('is refused with another size than announced', async () => {
    sendAs('model.safetensors', weights.subarray(0, 1000));
    await expect(ask()).rejects.toThrow('model.safetensors ended after 1000 of 300000 bytes');
    sendAs('model.safetensors', Buffer.concat([weights, Buffer.from('!')]));
    await expect(ask()).rejects.toThrow('model.safetensors is longer than its 300000 bytes');
    // The connection closes before the promised length.
    hub.intercept = (path, response) => {
      if (!path.endsWith('model.safetensors')) return false;
      response.writeHead(200, { 'content-length': weights.length });
      response.write(weights.subarray(0, 1000), () => response.socket?.end());
      return true;
    };
    await expect(ask()).rejects.toThrow(
      /cannot be fetched .*model\.safetensors: the connection broke/,
    );
    expect(readdirSync(join(repo, 'blobs'))).toHaveLength(1);
  });

  it('stops where the server sends more than announced', async () => {
    let sent = 0;
    hub.intercept = (path, response) => {
      if (!path.endsWith('model.safetensors')) return false;
      const more = (): void => {
        while (!response.destroyed && response.write(weights)) sent += weights.length;
      };
      response.on('drain', more);
      more();
      return true;
    };
    await expect(ask()).rejects.toThrow('model.safetensors is longer than its 300000 bytes');
    expect(sent).toBeLessThan(2 ** 26);
    expect(readdirSync(join(repo, 'blobs'))).toHaveLength(1);
  });

  it('continues after a broken connection, if the server supports ranges', async () => {
    const ranges: unknown[] = [];
    const breakOff = (start: (from: number) => number, every: number): void => {
      hub.intercept = (path, response, request) => {
        if (!path.endsWith('model.safetensors')) return false;
        ranges.push(request.headers.range);
        const from = start(Number(/\d+/.exec(request.headers.range ?? '0')?.[0]));
        response.writeHead(from === 0 ? 200 : 206, {
          'content-length': weights.length - from,
          'content-range': `bytes ${from}-${weights.length - 1}/${weights.length}`,
        });
        const end = from + every;
        response.write(weights.subarray(from, end), () =>
          end < weights.length ? response.socket?.end() : response.end(),
        );
        return true;
      };
    };
    breakOff((from) => from, 120_000); // some of these bytes may be lost
    await ask();
    expect(ranges[0]).toBeUndefined();
    expect(ranges.at(-1)).toMatch(/^bytes=[1-9]\d{4,5}-$/);
    expect(readFileSync(join(snapshot, 'model.safetensors'))).toEqual(weights);

    rmSync(repo, { recursive: true });
    ranges.length = 0;
    breakOff((from) => from, 1000);
    await expect(ask()).rejects.toThrow(/model\.safetensors: the connection broke/);
    expect(ranges).toHaveLength(6);
    breakOff((from) => Math.max(0, from - 1), 120_000); // a range that was not requested
    await expect(ask()).rejects.toThrow(/model\.safetensors: the connection broke/);
    expect(readdirSync(join(repo, 'blobs'))).toHaveLength(1);
  });

  it('removes the files of a killed process, not those that another process may be writing', async () => {
    const name = 'b0c1d2e3-0123-4567-89ab-0123456789ab';
    const blobs = join(repo, 'blobs');
    mkdirSync(blobs, { recursive: true });
    const left = [`${name}.incomplete`, `${name.replace('b', 'c')}.incomplete`, 'abc.incomplete'];
    for (const file of left) writeFileSync(join(blobs, file), 'part');
    const old = Date.now() / 1000 - 2 * 24 * 3600;
    utimesSync(join(blobs, left[0] as string), old, old);
    utimesSync(join(blobs, left[2] as string), old, old);
    await ask();
    expect(left.filter((file) => existsSync(join(blobs, file)))).toEqual(left.slice(1));
  });

  it('keeps existing files, and replaces those of another size', async () => {
    await ask();
    hub.requests = [];
    await ask();
    expect(downloads()).toEqual([]);
    truncateSync(realpathSync(join(snapshot, 'model.safetensors')), 1000);
    await ask();
    expect(downloads()).toEqual([`/tiny/model/resolve/${fakeCommit}/model.safetensors`]);
    expect(readFileSync(join(snapshot, 'model.safetensors'))).toEqual(weights);
  });

  it('replaces a link to another blob', async () => {
    await ask();
    const link = join(snapshot, 'config.json');
    const blob = join(repo, 'blobs', 'f'.repeat(40));
    writeFileSync(blob, flipped(files['config.json']));
    rmSync(link);
    symlinkSync(blob, link);
    await ask();
    expect(readFileSync(link)).toEqual(files['config.json']);
  });
});

describe('an existing cache', () => {
  it.each([{ links: true }, { links: false }])('is read as Python left it, %o', async (how) => {
    layOutAsPython(how);
    expect(await ask({ offline: true })).toBe(snapshot);
    expect(hub.requests).toEqual([]);
    expect(await ask()).toBe(snapshot);
    expect(downloads()).toEqual([]);
    expect(lstatSync(join(snapshot, 'config.json')).isSymbolicLink()).toBe(how.links);
  });

  it('may be read-only, or behind links', async () => {
    layOutAsPython({ links: true });
    const far = join(folder, `${tries}`, 'far');
    renameSync(repo, far);
    symlinkSync(far, repo); // links above the snapshot are the owner's choice
    const every = ['', 'refs', 'blobs', 'snapshots', `snapshots/${fakeCommit}`];
    for (const name of every) chmodSync(join(far, name), 0o555);
    expect(await ask()).toBe(snapshot);
    expect(await ask({ offline: true })).toBe(snapshot);
    for (const name of every) chmodSync(join(far, name), 0o755);
  });

  it('is refused where a link leads outside, with the name of the link', async () => {
    layOutAsPython({ links: true });
    const outside = join(folder, `${tries}`, 'outside');
    const places: [string, string][] = [
      [join(snapshot, 'model.safetensors'), weights.toString()],
      [join(snapshot, 'vocab.txt'), 'of no use to the model'],
      [realpathSync(join(snapshot, 'config.json')), '{}'],
      [join(repo, 'blobs'), ''],
      [join(repo, 'snapshots'), ''],
      [snapshot, ''],
      [join(repo, 'refs', 'main'), fakeCommit],
      [join(repo, 'refs'), ''],
    ];
    for (const [path, text] of places) {
      const kept = `${path}.kept`;
      const there = existsSync(path);
      rmSync(outside, { recursive: true, force: true });
      if (text !== '') writeFileSync(outside, text);
      else cpSync(path, outside, { recursive: true, verbatimSymlinks: true });
      if (there) renameSync(path, kept);
      symlinkSync(outside, path);
      for (const offline of [true, false]) {
        const failure = ask({ offline });
        await expect(failure, path).rejects.toThrow(FormatError);
        await expect(failure).rejects.toThrow(
          /leads out of its place in the Hub's cache, to .*; remove it, and it is fetched again$/,
        );
      }
      rmSync(path);
      if (there) renameSync(kept, path);
    }
    expect(await ask({ offline: true })).toBe(snapshot);
  });

  it('has no valid blob where that is a link to the outside, even of the right size', async () => {
    const outside = join(folder, `${tries}`, 'outside');
    mkdirSync(join(repo, 'blobs'), { recursive: true });
    symlinkSync(outside, join(repo, 'blobs', sha256(weights)));
    for (const bytes of [weights.length, 7]) {
      writeFileSync(outside, Buffer.alloc(bytes));
      await expect(ask()).rejects.toThrow(/blobs\/[0-9a-f]{64}: leads out of its place/);
      expect(readFileSync(outside)).toEqual(Buffer.alloc(bytes));
    }
  });

  it('is not written through a link to the outside', async () => {
    const outside = join(folder, `${tries}`, 'outside');
    for (const place of ['blobs', 'snapshots', `snapshots/${fakeCommit}`, 'refs']) {
      rmSync(repo, { recursive: true, force: true });
      mkdirSync(join(repo, 'snapshots'), { recursive: true });
      mkdirSync(outside, { recursive: true });
      rmSync(join(repo, place), { recursive: true, force: true });
      symlinkSync(outside, join(repo, place));
      await expect(ask(), place).rejects.toThrow(/leads out of its place/);
      expect(readdirSync(outside), place).toEqual([]);
    }
    // A link in the place of a file is replaced.
    rmSync(repo, { recursive: true });
    mkdirSync(snapshot, { recursive: true });
    mkdirSync(join(repo, 'blobs'));
    mkdirSync(join(repo, 'refs'));
    const nowhere = join(outside, 'nowhere');
    symlinkSync(nowhere, join(snapshot, 'config.json'));
    symlinkSync(nowhere, join(repo, 'blobs', sha256(weights)));
    symlinkSync(nowhere, join(repo, 'refs', 'main'));
    expect(await ask()).toBe(snapshot);
    expect(readdirSync(outside)).toEqual([]);
    expect(lstatSync(join(repo, 'refs', 'main')).isFile()).toBe(true);
  });

  it('can contain a single file of a subfolder', async () => {
    const name = 'tiny/deep/sub/a.gguf';
    const path = await ask({ name });
    expect(path).toBe(
      join(cacheDir, 'models--tiny--deep', 'snapshots', fakeCommit, 'sub', 'a.gguf'),
    );
    expect(readlinkSync(path)).toMatch(/^\.\.\/\.\.\/\.\.\/blobs\/[0-9a-f]{64}$/);
    expect(await ask({ name, offline: true })).toBe(path);
    // A folder that is a link is not followed.
    const outside = join(folder, `${tries}`, 'outside');
    mkdirSync(outside);
    rmSync(join(path, '..'), { recursive: true });
    symlinkSync(outside, join(path, '..'));
    await expect(ask({ name })).rejects.toThrow(/sub: leads out of its place/);
    expect(readdirSync(outside)).toEqual([]);
  });

  it('is ignored where a ref is no commit', async () => {
    layOutAsPython({ links: true });
    const ref = join(repo, 'refs', 'main');
    const elsewhere = join(folder, `${tries}`, 'elsewhere');
    cpSync(snapshot, elsewhere, { recursive: true, dereference: true });
    for (const text of ['../../../elsewhere', elsewhere, '']) {
      writeFileSync(ref, text);
      const failure = ask({ offline: true });
      await expect(failure).rejects.toThrow(FormatError);
      await expect(failure).rejects.toThrow(/main: holds no commit \(40 hex digits\); remove it$/);
    }
    expect(await ask()).toBe(snapshot);
    expect(readFileSync(ref, 'utf8')).toBe(fakeCommit);
  });
});

describe('the folder of the cache', () => {
  it('is given by the variables of huggingface_hub, in their order', async () => {
    const kept = { hubUrl: hub.url, accessToken: '' };
    const empty = { HF_HUB_CACHE: '', HUGGINGFACE_HUB_CACHE: '', HF_HOME: '', XDG_CACHE_HOME: '' };
    const base = join(folder, `${tries}`);
    for (const [variable, place] of [
      ['HF_HUB_CACHE', 'a'],
      ['HUGGINGFACE_HUB_CACHE', 'b'],
      ['HF_HOME', 'c/hub'],
      ['XDG_CACHE_HOME', 'd/huggingface/hub'],
      ['HOME', 'e/.cache/huggingface/hub'],
    ] as const) {
      for (const [name, value] of Object.entries(empty)) vi.stubEnv(name, value);
      vi.stubEnv(variable, join(base, place.slice(0, 1)));
      expect(await resolveModel('tiny/model', kept)).toBe(
        join(base, place, 'models--tiny--model', 'snapshots', fakeCommit),
      );
    }
  });
});
