// Disk failures in the Hub's cache have the disk's error codes and name the path, whatever the network does.
import { existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { resolveModel } from '../../../lib/io/hub.ts';
import { FakeHub } from '../../support/fake_hub.ts';

/** The call that fails from now on, and the code that it fails with. */
const disk = vi.hoisted(() => ({ call: '', code: '' }));
vi.mock('node:fs/promises', async (original) => {
  const real = await original<Record<string, (...args: unknown[]) => Promise<unknown>>>();
  const failing = ['mkdir', 'rename', 'symlink', 'writeFile', 'open', 'readdir', 'stat', 'rm'];
  const wrapped = failing.map((call) => [
    call,
    async (...args: unknown[]) => {
      // The name of the model is looked for as a path first.
      if (disk.call !== call || args[0] === 'tiny/model') return real[call]?.(...args);
      const message = `${disk.code}: by the test, ${call} '${args[0]}'`;
      throw Object.assign(new Error(message), { code: disk.code, errno: -1, syscall: call });
    },
  ]);
  return { ...real, ...Object.fromEntries(wrapped) };
});

const folder = mkdtempSync(join(tmpdir(), 'balora-hub-disk-'));
let hub: FakeHub;
let tries = 0;
let cacheDir: string;
beforeAll(async () => {
  hub = await FakeHub.start({
    'tiny/model': { 'config.json': Buffer.from('{}'), 'model.safetensors': Buffer.alloc(100) },
  });
});
afterAll(() => {
  hub.close();
  rmSync(folder, { recursive: true, force: true });
});
beforeEach(() => {
  disk.call = '';
  cacheDir = join(folder, `${++tries}`);
});

const ask = (options: { cacheDir?: string; offline?: boolean } = {}): Promise<unknown> =>
  resolveModel('tiny/model', { hubUrl: hub.url, cacheDir, accessToken: '', ...options }).then(
    () => 'no error',
    ({ code, message }) => ({ code, message }),
  );

describe("a failure of the cache's disk", () => {
  it.each([
    ['mkdir', 'ENOSPC', 'ERR_DISK_FULL', /cannot write: no space left on the disk \(ENOSPC\)/],
    ['mkdir', 'EROFS', 'ERR_IO', /cannot write: the file system is read-only \(EROFS\)/],
    ['mkdir', 'EACCES', 'ERR_IO', /cannot write: permission denied \(EACCES\)/],
    ['mkdir', 'EIO', 'ERR_IO', /cannot write: the disk reports an error \(EIO\)/],
    ['open', 'EDQUOT', 'ERR_DISK_FULL', /cannot write: the disk quota is used up/],
    ['open', 'EMFILE', 'ERR_IO', /cannot write: this process has too many files open \(EMFILE\)/],
    ['rename', 'EACCES', 'ERR_IO', /cannot write: permission denied/],
    ['rename', 'EXDEV', 'ERR_IO', /cannot write: EXDEV: by the test/],
    ['symlink', 'EPERM', 'ERR_IO', /cannot write: permission denied \(EPERM\)/],
    ['writeFile', 'ENOSPC', 'ERR_DISK_FULL', /refs\/main: cannot write: no space left/],
    ['readdir', 'EACCES', 'ERR_IO', /cannot write: permission denied/],
    ['stat', 'EIO', 'ERR_IO', /cannot (read|write): the disk reports an error \(EIO\)/],
  ])('in %s (%s) is %s', async (call, code, expected, message) => {
    mkdirSync(cacheDir, { recursive: true });
    Object.assign(disk, { call, code });
    const failure = await ask();
    expect(failure).toEqual({
      code: expected,
      message: expect.stringMatching(message),
    });
    expect((failure as Error).message).toContain(cacheDir);
    expect((failure as Error).message).not.toContain(hub.url);
    disk.call = '';
    const left = readdirSync(cacheDir, { recursive: true }).map(String);
    expect(left.filter((name) => name.endsWith('.incomplete'))).toEqual([]);
    expect(await ask()).toBe('no error'); // nothing that was left stands in the way
  });

  it('is the same one without the network', async () => {
    expect(await ask()).toBe('no error');
    for (const call of ['stat', 'readdir']) {
      Object.assign(disk, { call, code: 'EACCES' });
      expect(await ask({ offline: true })).toEqual({
        code: 'ERR_IO',
        message: expect.stringMatching(/models--tiny--model.*: cannot read: permission denied/),
      });
    }
  });

  it('is named where a file stands in the place of a folder', async () => {
    const file = join(folder, 'file');
    writeFileSync(file, '');
    for (const place of [file, join(file, 'below')]) {
      expect(await ask({ cacheDir: place })).toEqual({
        code: 'ERR_IO',
        message: expect.stringContaining(`${file}: cannot write: EEXIST`),
      });
    }
  });

  it.runIf(existsSync('/proc/self'))('ends where no folder can be made', async () => {
    expect(await ask({ cacheDir: '/proc/balora/cache' })).toEqual({
      code: 'ERR_IO',
      message: expect.stringContaining(
        '/proc/balora: cannot write: no such file or folder (ENOENT)',
      ),
    });
  });
});
