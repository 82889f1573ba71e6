// Answers of a hostile server about a repository: commits, names, sizes and hashes that lead outside of the cache, or lists that
// never end.
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { FormatError } from '../../../lib/errors.ts';
import { resolveModel } from '../../../lib/io/hub.ts';
import { FakeHub, fakeCommit, honestRow, type Row, sendJson } from '../../support/fake_hub.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-hub-api-'));
const files = {
  'config.json': Buffer.from('{}'),
  'model.safetensors': Buffer.from('weights'),
};
let hub: FakeHub;
let tries = 0;
let cacheDir: string;

beforeAll(async () => {
  hub = await FakeHub.start({ 'tiny/model': files, 'tiny/gguf': { 'a.gguf': Buffer.from('a') } });
});
afterAll(() => {
  hub.close();
  rmSync(folder, { recursive: true, force: true });
});
beforeEach(() => {
  hub.reset();
  cacheDir = join(folder, `${++tries}`, 'cache');
});

const ask = (name = 'tiny/model', options: { revision?: string } = {}): Promise<string> =>
  resolveModel(name, { hubUrl: hub.url, cacheDir, accessToken: '', ...options });

/** Every path below the folder of this test. */
function written(): string[] {
  const root = join(folder, `${tries}`);
  return existsSync(root) ? readdirSync(root, { recursive: true }).map(String).sort() : [];
}

/** Changes the row of the weights in the list of files. */
function listWeightsAs(change: Partial<Row>): void {
  hub.listed = (rows) =>
    rows.map((row) => (/safetensors|gguf/.test(row.path) ? { ...row, ...change } : row));
}

async function expectRefusal(pattern: RegExp, name?: string): Promise<void> {
  const failure = ask(name);
  await expect(failure).rejects.toThrow(FormatError);
  await expect(failure).rejects.toThrow(pattern);
}

describe('the commit', () => {
  it('must be 40 lower-case hex digits, otherwise nothing is written', async () => {
    for (const sha of [
      '../../../planted',
      `${fakeCommit}/../../../planted`,
      fakeCommit.toUpperCase(),
      fakeCommit.slice(1),
      `${fakeCommit}\n`,
      '',
      7,
      null,
      undefined,
      [fakeCommit],
    ]) {
      hub.sha = sha;
      await expectRefusal(/commit of main: sha must be 40 lower-case hex digits, got /);
      expect(written(), String(sha)).toEqual([]);
    }
  });

  it('must be the requested one', async () => {
    const revision = fakeCommit.replaceAll('0', 'f');
    await expect(ask('tiny/model', { revision })).rejects.toThrow(
      `commit of ${revision}: the server gives ${fakeCommit}`,
    );
    expect(written()).toEqual([]);
    expect(await ask('tiny/model', { revision: fakeCommit })).toContain(fakeCommit);
  });

  it('must come as JSON of limited size', async () => {
    const answers: [RegExp, string | null, string?][] = [
      [/commit of main: http:\S+ answers something else than JSON \(text\/html\)/, '<html>'],
      [/sha must be 40/, '"text"'],
      [/sha must be 40/, 'null'],
      [/sha must be 40/, '[]'],
      [/commit of main: the answer does not end within 16777216 bytes/, null],
      [/commit of main: the answer does not end within 16777216 bytes/, null, fakeCommit],
    ];
    for (const [pattern, body] of answers) {
      hub.intercept = (_path, response) => {
        response.setHeader('content-type', 'text/html');
        if (body !== null) response.end(body);
        else sendWithoutEnd(response);
        return true;
      };
      await expectRefusal(pattern);
      expect(written()).toEqual([]);
    }
  });
});

describe('the list of files', () => {
  it('must name no file outside of the snapshot', async () => {
    const names: [string, RegExp][] = [
      ['../planted.gguf', /".." is a part of it/],
      ['../../../../planted.gguf', /".." is a part of it/],
      ['sub/../../planted.gguf', /".." is a part of it/],
      ['./planted.gguf', /"." is a part of it/],
      [join(folder, 'planted.gguf'), /a part of it is empty/],
      ['sub//planted.gguf', /a part of it is empty/],
      ['..\\planted.gguf', /it holds a backslash/],
      ['C:planted.gguf', /it names a drive/],
      ['pla\0nted.gguf', /it holds invisible characters/],
      ['pla\u202ented.gguf', /it holds invisible characters/],
      ['pla\u001b[2Jnted.gguf', /it holds invisible characters/],
      [`${'x'.repeat(300)}.gguf`, /a part of it is longer than 255 bytes/],
      [`${'x/'.repeat(600)}.gguf`, /it is longer than 1024 bytes/],
    ];
    for (const [path, problem] of names) {
      listWeightsAs({ path });
      const error = await ask('tiny/gguf').catch((e: unknown) => e);
      expect(error, path).toBeInstanceOf(FormatError);
      expect(String(error)).toMatch(/the server lists a file ".*, which is refused: /);
      expect(String(error)).toMatch(problem);
      // biome-ignore lint/suspicious/noControlCharactersInRegex: those that a terminal obeys
      expect(String(error)).not.toMatch(/[\u0000-\u001f\u202e]/);
      expect(written(), path).toEqual([]);
    }
    expect(readdirSync(folder)).not.toContain('planted.gguf');
  });

  it('must have valid hashes', async () => {
    const lfs = honestRow('a.gguf', Buffer.from('weights')).lfs as object;
    for (const oid of ['../../../../planted', 'A'.repeat(64), 'a'.repeat(63), '', 3, null]) {
      listWeightsAs({ lfs: { ...lfs, oid } });
      await expectRefusal(/model\.safetensors: lfs\.oid must be 64 lower-case hex digits, got /);
      listWeightsAs({ lfs: undefined, oid });
      await expectRefusal(/model\.safetensors: oid must be 40 lower-case hex digits, got /);
    }
    // The hash of a Xet file's chunks is not a hash of its bytes.
    listWeightsAs({ lfs: undefined, oid: undefined, xetHash: 'a'.repeat(64) });
    await expectRefusal(/model\.safetensors: oid must be 40 lower-case hex digits, got nothing/);
    expect(written()).toEqual([]);
  });

  it('must have valid sizes', async () => {
    for (const size of [-1, 1.5, 1e300, '7', null, undefined]) {
      listWeightsAs({ size });
      await expectRefusal(/model\.safetensors: size must be a whole number of bytes, got /);
      expect(written()).toEqual([]);
    }
  });

  it('must not make a text file or a message of unlimited size', async () => {
    hub.listed = (rows) =>
      rows.map((row) => (row.path === 'config.json' ? { ...row, size: 2 ** 40 } : row));
    await expectRefusal(/config\.json: 1099511627776 bytes are more than 67108864/);
    hub.listed = (rows) => [
      ...rows,
      ...Array.from({ length: 50 }, (_, i) => ({ ...rows[0], path: `b\u001b[2J${i}.gguf` })),
    ];
    const message = await ask('tiny/gguf').catch((e: unknown) => String(e));
    expect(message).toMatch(
      /name one: tiny\/gguf\/a\.gguf, tiny\/gguf\/b\\u001b\[2J0\.gguf, .*, and 11 more$/,
    );
    expect(written()).toEqual([]);
  });

  it('must be an array; rows that are no files are ignored', async () => {
    for (const other of [{ error: 'no' }, null, 'text', 3]) {
      hub.listed = () => other;
      await expectRefusal(/list of files: must be an array/);
    }
    hub.listed = (rows) => [
      null,
      3,
      'x',
      { type: 'file' },
      { type: 'directory', path: 'x' },
      ...rows,
    ];
    expect(await ask()).toContain(fakeCommit);
  });

  it('may have several pages, but only on the same server', async () => {
    const pages = (link: string): void => {
      hub.intercept = (path, response, request) => {
        if (!path.includes('/tree/') || request.url?.includes('page=2')) return false;
        response.setHeader('link', link);
        sendJson(response, []);
        return true;
      };
    };
    pages(`<${hub.url}/api/models/tiny/model/tree/${fakeCommit}?page=2>; rel="next"`);
    expect(await ask()).toContain(fakeCommit);
    const other = await FakeHub.start();
    try {
      pages(`<${other.url}/api/models/tiny/model/tree/${fakeCommit}>; rel="next"`);
      await expectRefusal(/list of files: the server points to http:\S+, which is not http:/);
      pages('<http://[::bad>; rel="next"');
      await expectRefusal(/list of files: the next page has no address/);
      pages('<file:///etc/passwd>; rel="next"');
      await expectRefusal(/list of files: the server points to /);
      expect(other.requests).toEqual([]);
    } finally {
      other.close();
    }
  });

  it('must end', async () => {
    hub.intercept = (path, response) => {
      if (!path.includes('/tree/')) return false;
      response.setHeader('link', `<${hub.url}${path}>; rel="next"`);
      sendJson(response, []);
      return true;
    };
    await expectRefusal(/list of files: more than 100 pages/);
    expect(hub.requests.length).toBeLessThan(110);
    hub.intercept = (path, response) => {
      if (path.includes('/tree/')) sendWithoutEnd(response);
      return path.includes('/tree/');
    };
    await expectRefusal(/list of files: the answer does not end within 16777216 bytes/);
    // The total size of all pages is limited, too.
    hub.intercept = (path, response) => {
      if (!path.includes('/tree/')) return false;
      response.setHeader('link', `<${hub.url}${path}>; rel="next"`);
      sendJson(response, ['x'.repeat(2 ** 23)]);
      return true;
    };
    await expectRefusal(/list of files: the answer does not end within \d{7} bytes/);
  });
});

/** Sends JSON without an end. */
function sendWithoutEnd(response: import('node:http').ServerResponse): void {
  const chunk = Buffer.alloc(1 << 20, ' ');
  const more = (): void => {
    while (!response.destroyed && response.write(chunk));
  };
  response.on('drain', more);
  more();
}
