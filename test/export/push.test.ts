/** Pushing to a local server that speaks the Hub's protocol: which files arrive, what is refused, and that no message has the token. */
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { mkdir, mkdtemp, rm, symlink, writeFile } from 'node:fs/promises';
import { createServer, type IncomingMessage, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { pushFolder } from '../../lib/export/push.ts';
import { balora } from '../support/run_cli.ts';

const kToken = 'hf_secretSECRETsecret';

/** The requests of a push, answered as the Hub does; files named *.safetensors are stored in LFS. */
class PushedHub {
  readonly files = new Map<string, Buffer>();
  readonly lfs = new Map<string, Buffer>();
  readonly authorizations = new Set<string | undefined>();
  created: unknown = null;
  summary: unknown = null;
  /** Status and message of the answer to a commit; null: it is accepted. */
  refusal: [number, string] | null = null;
  private constructor(
    private readonly server: Server,
    readonly url: string,
  ) {}

  static async start(): Promise<PushedHub> {
    const server = createServer();
    await new Promise<void>((done) => server.listen(0, '127.0.0.1', done));
    const hub = new PushedHub(server, `http://127.0.0.1:${(server.address() as AddressInfo).port}`);
    server.on('request', async (request, response) => {
      const [status, body] = hub.answer(request, await bodyOf(request));
      response.writeHead(status, { 'content-type': 'application/json' });
      response.end(JSON.stringify(body));
    });
    return hub;
  }

  close(): void {
    this.server.close();
  }

  private answer({ url = '', method, headers }: IncomingMessage, body: Buffer): [number, unknown] {
    if (url.startsWith('/upload/')) {
      // A storage elsewhere, which has no business with the token.
      expect(headers.authorization).toBeUndefined();
      this.lfs.set(url.slice('/upload/'.length), body);
      return [200, {}];
    }
    this.authorizations.add(headers.authorization);
    if (method === 'GET') return this.created === null ? [404, { error: 'none' }] : [200, {}];
    const json = (): Record<string, unknown> => JSON.parse(body.toString());
    if (url === '/api/repos/create') {
      this.created = json();
      return [200, { url: `${this.url}/me/tuned`, name: 'me/tuned' }];
    }
    if (url === '/api/models/me/tuned/preupload/main') {
      const files = json().files as { path: string }[];
      const mode = (path: string) => (path.endsWith('.safetensors') ? 'lfs' : 'regular');
      return [200, { files: files.map(({ path }) => ({ path, uploadMode: mode(path) })) }];
    }
    if (url === '/me/tuned.git/info/lfs/objects/batch') {
      const objects = json().objects as { oid: string; size: number }[];
      const upload = (oid: string) => ({
        actions: { upload: { href: `${this.url}/upload/${oid}` } },
      });
      return [
        200,
        {
          transfer: 'basic',
          objects: objects.map(({ oid, size }) => ({ oid, size, ...upload(oid) })),
        },
      ];
    }
    if (url === '/api/models/me/tuned/commit/main') {
      if (this.refusal !== null) return [this.refusal[0], { error: this.refusal[1] }];
      for (const line of body.toString().trim().split('\n')) {
        const { key, value } = JSON.parse(line);
        if (key === 'header') this.summary = value.summary;
        if (key === 'file') this.files.set(value.path, Buffer.from(value.content, value.encoding));
        if (key === 'lfsFile') this.files.set(value.path, this.lfs.get(value.oid) as Buffer);
      }
      return [
        200,
        { success: true, commitOid: '0'.repeat(40), commitUrl: this.url, hookOutput: '' },
      ];
    }
    return [404, { error: `no such address: ${method} ${url}` }];
  }
}

async function bodyOf(request: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of request) chunks.push(chunk as Buffer);
  return Buffer.concat(chunks);
}

let folder: string;
let hub: PushedHub;
const kWeights = Buffer.from(Array.from({ length: 5000 }, (_, i) => i % 251));
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-push-'));
  await mkdir(join(folder, 'run', 'checkpoints'), { recursive: true });
  await mkdir(join(folder, 'initial'));
  await mkdir(join(folder, 'nothing'));
  for (const [name, content] of [
    ['adapter_model.safetensors', kWeights],
    ['adapter_config.json', '{"r": 2}'],
    ['README.md', '# é'],
    ['initial/adapter_config.json', '{}'],
    ['a/b/c/deep.txt', 'deep'],
    ['a/run/kept.txt', 'no record'],
    ['a/.hidden/mine.txt', 'mine'],
    ['a/b/.hidden', 'mine'],
    ['a/b/model.gguf.2147483646-0.tmp', 'half'],
    ['run/metrics.jsonl', 'of nobody else'],
    ['.hidden', 'mine'],
    ['model.safetensors.2147483646-0.tmp', 'half'],
  ] as const) {
    await mkdir(dirname(join(folder, name)), { recursive: true });
    await writeFile(join(folder, name), content);
  }
});
afterAll(() => rm(folder, { recursive: true }));
beforeEach(async () => {
  hub = await PushedHub.start();
  vi.stubEnv('HF_ENDPOINT', hub.url);
  vi.stubEnv('HF_TOKEN', kToken);
});
afterEach(() => {
  vi.unstubAllEnvs();
  hub.close();
});

const push = (...args: string[]) => balora(['push', ...args]);

describe('balora push', () => {
  it('makes the repository and pushes the files, but not the record of the run', async () => {
    const { code, out, err } = await push(
      folder,
      '--repo',
      'me/tuned',
      '--private',
      '--message',
      'First',
    );
    expect(err).not.toMatch(/error/);
    expect(out).toBe(`pushed to ${hub.url}/me/tuned\n`);
    expect(code).toBe(0);
    expect(hub.created).toMatchObject({ name: 'tuned', organization: 'me', visibility: 'private' });
    expect(hub.summary).toBe('First');
    expect([...hub.files.keys()].sort()).toEqual([
      ...['README.md', 'a/b/c/deep.txt', 'a/run/kept.txt'],
      ...['adapter_config.json', 'adapter_model.safetensors'],
      'initial/adapter_config.json',
    ]);
    expect(hub.files.get('adapter_model.safetensors')).toEqual(kWeights);
    expect(hub.files.get('README.md')?.toString()).toBe('# é');
    expect(hub.files.get('a/b/c/deep.txt')?.toString()).toBe('deep');
    expect([...hub.lfs.keys()]).toEqual([createHash('sha256').update(kWeights).digest('hex')]);
    expect([...hub.authorizations]).toEqual([`Bearer ${kToken}`]);
    expect(out + err).not.toContain(kToken);
    // A repository that exists is not made again.
    hub.created = 'before';
    expect((await push(folder, '--repo', 'me/tuned')).code).toBe(0);
    expect(hub.created).toBe('before');
  });

  it("shows the Hub's reason, without the token that it repeats", async () => {
    hub.refusal = [403, `the token ${kToken} may not write`];
    const { code, out, err } = await push(folder, '--repo', 'me/tuned');
    expect(code).toBe(1);
    expect(err).toMatch(
      /error: push to http:\/\/127.*\/me\/tuned: the token \(the token\) may not write/,
    );
    expect(out + err).not.toContain(kToken);
  });

  it('is refused before anything is sent: no token, no repository, no files, an address that is not safe', async () => {
    expect((await push(folder, '--repo', 'tuned')).err).toMatch(
      /must be a name on the Hub, owner\/name, got "tuned"/,
    );
    expect((await push(join(folder, 'nothing'), '--repo', 'me/tuned')).err).toMatch(
      /holds no files to push/,
    );
    expect((await push(join(folder, 'none'), '--repo', 'me/tuned')).err).toMatch(
      /holds no files to push/,
    );
    vi.stubEnv('HF_ENDPOINT', 'http://hub.example');
    expect((await push(folder, '--repo', 'me/tuned')).err).toMatch(
      /an access token is not sent to http:\/\/hub\.example/,
    );
    vi.stubEnv('HF_ENDPOINT', hub.url);
    vi.stubEnv('HF_TOKEN', '');
    expect((await push(folder, '--repo', 'me/tuned')).err).toMatch(
      /needs an access token .* set HF_TOKEN/,
    );
    expect(hub.authorizations.size).toBe(0);
  });
});

describe('links in a folder that is pushed', () => {
  let own: string;
  let key: string;
  beforeEach(async () => {
    const parent = await mkdtemp(join(tmpdir(), 'balora-push-links-'));
    own = join(parent, 'folder');
    await mkdir(join(own, 'sub', 'deep'), { recursive: true });
    await mkdir(join(parent, 'elsewhere'));
    key = join(parent, 'elsewhere', 'key');
    await writeFile(key, 'of nobody else');
    await writeFile(join(own, 'README.md'), '# own');
    await writeFile(join(own, 'sub', 'deep', 'notes.txt'), 'deep');
  });
  afterEach(() => rm(join(own, '..'), { recursive: true }));

  /** Pushes the folder, which must be refused before anything is sent. */
  async function refused(): Promise<string> {
    const { code, err } = await push(own, '--repo', 'me/tuned');
    expect(err).toContain('error: ');
    expect(code).toBe(1);
    expect([hub.authorizations.size, hub.files.size, hub.lfs.size]).toEqual([0, 0, 0]);
    return err;
  }

  it.each<[string, (own: string, key: string) => Promise<unknown>, string]>([
    ['to a file', (own, key) => symlink(key, join(own, 'notes.md')), 'notes.md'],
    ['of a relative path', (own) => symlink('../elsewhere/key', join(own, 'notes.md')), 'notes.md'],
    ['in a sub-folder', (own, key) => symlink(key, join(own, 'sub', 'notes.md')), 'sub/notes.md'],
    ['two folders deep', (own, key) => symlink(key, join(own, 'sub', 'deep', 'x')), 'sub/deep/x'],
    ['to a folder', (own) => symlink('../elsewhere', join(own, 'more')), 'more'],
    [
      'by way of a link in the folder',
      async (own, key) => {
        await symlink(key, join(own, '.second'));
        await symlink('.second', join(own, 'first'));
      },
      'first',
    ],
    ['to a file of the system', (own) => symlink('/proc/self/environ', join(own, 'env')), 'env'],
  ])('are refused where they lead out: %s', async (_, make, named) => {
    await make(own, key);
    const err = await refused();
    expect(err).toContain(`${join(own, named)}: is a link that leads out of the folder`);
    expect(err).toContain('put a copy in its place');
  });

  it.each<[string, (own: string) => unknown, RegExp]>([
    [
      'a link to nothing',
      (own) => symlink('nothing', join(own, 'x')),
      /x: is a link that leads to nothing/,
    ],
    [
      'a link to itself',
      (own) => symlink('x', join(own, 'x')),
      /x: cannot be opened: it is a link that leads in circles/,
    ],
    [
      'a link to a folder inside',
      (own) => symlink('sub', join(own, 'x')),
      /x: is a link to a folder/,
    ],
    [
      'a link to what is not pushed',
      async (own) => {
        await writeFile(join(own, '.env'), 'mine');
        await symlink('.env', join(own, 'x'));
      },
      /x: is a link to .*\.env, which is not pushed/,
    ],
    [
      'a pipe',
      (own) => execFileSync('mkfifo', [join(own, 'x')]),
      /x: is a pipe, not a regular file/,
    ],
    [
      'a device',
      (own) => symlink('/dev/zero', join(own, 'x')),
      /x: is a link that leads out of the folder/,
    ],
  ])('are refused: %s', async (_, make, message) => {
    await make(own);
    expect(await refused()).toMatch(message);
  });

  it('count as the file that they lead to where that is in the folder', async () => {
    await symlink('sub/deep/notes.txt', join(own, 'first'));
    await symlink('../first', join(own, 'sub', 'second'));
    // The folder itself may be a link, since the user named it.
    await symlink(own, join(own, '..', 'named'));
    const { code, err } = await push(join(own, '..', 'named'), '--repo', 'me/tuned');
    expect([code, err.includes('error')]).toEqual([0, false]);
    expect(Object.fromEntries([...hub.files].map(([name, bytes]) => [name, `${bytes}`]))).toEqual({
      'README.md': '# own',
      first: 'deep',
      'sub/deep/notes.txt': 'deep',
      'sub/second': 'deep',
    });
  });

  it("may be those of a snapshot in the Hub's cache to the blobs of its repository", async () => {
    const repository = join(own, '..', 'models--some--model');
    const snapshot = join(repository, 'snapshots', '0'.repeat(40));
    await mkdir(snapshot, { recursive: true });
    await mkdir(join(repository, 'blobs'));
    await writeFile(join(repository, 'blobs', 'hash'), 'of the repository');
    await symlink('../../blobs/hash', join(snapshot, 'README.md'));
    expect((await push(snapshot, '--repo', 'me/tuned')).code).toBe(0);
    expect(hub.files.get('README.md')?.toString()).toBe('of the repository');
    hub.files.clear();
    await symlink('../../../elsewhere/key', join(snapshot, 'notes.md'));
    const { code, err } = await push(snapshot, '--repo', 'me/tuned');
    expect(err).toContain('notes.md: is a link that leads out of the folder');
    expect([code, hub.files.size]).toEqual([1, 0]);
  });

  it.each<[string, (own: string, key: string) => void]>([
    [
      'a file becomes a link',
      (own, key) => {
        renameSync(join(own, 'README.md'), join(own, '..', 'away'));
        symlinkSync(key, join(own, 'README.md'));
      },
    ],
    [
      'a folder above it becomes a link',
      (own) => {
        renameSync(join(own, 'sub', 'deep'), join(own, '..', 'away'));
        writeFileSync(join(own, '..', 'elsewhere', 'notes.txt'), 'key!');
        symlinkSync('../../elsewhere', join(own, 'sub', 'deep'));
      },
    ],
    [
      'another file takes its place',
      (own) => {
        writeFileSync(join(own, 'new'), 'other');
        renameSync(join(own, 'new'), join(own, 'README.md'));
      },
    ],
  ])('are refused where they appear between check and read: %s', async (_, exchange) => {
    let told = 0;
    const pushed = pushFolder(own, {
      repo: 'me/tuned',
      onFile: () => {
        if (told++ === 0) exchange(own, key);
      },
    });
    await expect(pushed).rejects.toThrow(/(was changed or replaced|leads in circles)/);
    expect(hub.files.size).toBe(0);
  });

  it('sends a file in slices as it is, and an empty one', async () => {
    const large = Buffer.alloc(10_000_001, 'abcdefg');
    await writeFile(join(own, 'large.safetensors'), large);
    await writeFile(join(own, 'empty'), '');
    expect((await push(own, '--repo', 'me/tuned')).code).toBe(0);
    expect(hub.files.get('large.safetensors')?.equals(large)).toBe(true);
    expect(hub.files.get('empty')?.length).toBe(0);
  });
});
