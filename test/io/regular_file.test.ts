// Only regular files are read, and every refusal of the system is an error with code, path, reason and advice.
import { execFileSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type BaloraError, FormatError, NativeError } from '../../lib/errors.ts';
import { diskError } from '../../lib/io/files.ts';
import {
  isMissing,
  kMaxTextBytes,
  listFolder,
  openRegular,
  readBytes,
  readError,
  readSlices,
  readText,
  statPath,
} from '../../lib/io/regular_file.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-regular-'));
const at = (name: string): string => join(folder, name);
const server = createServer();
beforeAll(async () => {
  writeFileSync(at('file'), 'text é');
  symlinkSync(at('file'), at('link'));
  symlinkSync(at('link'), at('link to link'));
  linkSync(at('file'), at('second name'));
  symlinkSync(at('circle'), at('circle'));
  symlinkSync(at('nothing'), at('dangling'));
  mkdirSync(at('folder'));
  execFileSync('mkfifo', [at('pipe')]);
  symlinkSync(at('pipe'), at('link to pipe'));
  await once(server.listen(at('socket')), 'listening');
});
afterAll(() => {
  server.close();
  rmSync(folder, { recursive: true, force: true });
});

const failureOf = (path: string) =>
  readText(path).then(
    () => expect.unreachable(),
    (error: unknown) => error as BaloraError & { path: string },
  );

describe('regular files', () => {
  it.each(['file', 'link', 'link to link', 'second name'])('%s is read', async (name) => {
    expect(await readText(at(name))).toBe('text é');
    expect([...(await readBytes(at(name)))]).toEqual([...Buffer.from('text é')]);
  });

  it('are read in slices, whole or in part', async () => {
    const read = async (options: { start?: number; end?: number }) => {
      const slices: string[] = [];
      for await (const slice of readSlices(at('file'), { ...options, sliceBytes: 3 })) {
        slices.push(slice.toString('latin1'));
      }
      return slices;
    };
    expect(await read({})).toEqual(['tex', 't Ã', '©']);
    expect(await read({ start: 1, end: 6 })).toEqual(['ext', ' Ã']);
    expect(await read({ start: 100 })).toEqual([]);
  });

  it('above the limit are refused before they are read', async () => {
    writeFileSync(at('huge'), '');
    truncateSync(at('huge'), 2 ** 40);
    const error = await failureOf(at('huge'));
    expect(error).toBeInstanceOf(FormatError);
    expect(error.message).toBe(
      `${at('huge')}: has 1.00 TiB, and such a file may have 64.0 MiB; check that it is the right file`,
    );
    expect(kMaxTextBytes).toBe(2 ** 26);
    expect(await readText(at('file'), { limit: 7 })).toBe('text é');
    await expect(readText(at('file'), { limit: 6 })).rejects.toThrow(/has 7 B, and .* 6 B/);
  });
});

describe('anything else is refused at once', () => {
  it.each([
    ['pipe', 'is a pipe, not a regular file; write what comes through it to a file'],
    ['link to pipe', 'is a pipe, not a regular file'],
    ['socket', /is a socket, not a regular file|cannot be opened: .*ENXIO/],
    ['folder', 'is a folder, not a regular file; give the path of a file'],
    ['/dev/zero', 'is a device, not a regular file'],
    ['/dev/null', 'is a device, not a regular file'],
  ])('%s', async (name, message) => {
    const path = name.startsWith('/') ? name : at(name);
    const error = await failureOf(path);
    expect(error).toBeInstanceOf(FormatError);
    expect(error).toMatchObject({ code: 'ERR_FORMAT', path });
    expect(error.message).toMatch(message);
    await expect(openRegular(path)).rejects.toThrow(message);
    const slices = readSlices(path, { sliceBytes: 1 });
    await expect(slices.next()).rejects.toThrow(message);
  });
});

describe('what the system refuses', () => {
  it('is a full disk where a quota is used up, which Node knows by its number alone', () => {
    const code = 'Unknown system error -122';
    const error = Object.assign(new Error(code), { code, errno: -122, syscall: 'write' });
    expect(diskError('a/b', error)).toMatchObject({
      code: 'ERR_DISK_FULL',
      message: expect.stringContaining('a/b: cannot write: the disk quota is used up'),
    });
  });

  it.each([
    ['nothing', 'no such file; check the path'],
    ['dangling', 'no such file'],
    ['file/below', 'no such file'],
    ['circle', 'cannot be opened: it is a link that leads in circles (ELOOP); check the path'],
    ['x'.repeat(300), 'cannot be opened: the name is too long (ENAMETOOLONG)'],
  ])('%s', async (name, message) => {
    const error = await failureOf(at(name));
    expect(error).toBeInstanceOf(FormatError);
    expect(error.path).toBe(at(name));
    expect(error.message).toContain(`${at(name)}: ${message}`);
    expect(isMissing(error)).toBe(message.startsWith('no such file'));
  });

  it('also has its error where a path is only looked at, and for a folder', async () => {
    expect(await statPath(at('nothing'))).toBeNull();
    expect((await statPath(at('pipe')))?.isFIFO()).toBe(true);
    await expect(statPath(at('circle'))).rejects.toThrow(/ELOOP/);
    expect(await listFolder(at('folder'))).toEqual([]);
    await expect(listFolder(at('nothing'))).rejects.toThrow(/no such file/);
    await expect(listFolder(at('file'))).rejects.toThrow(/no such file|ENOTDIR/);
  });

  it('for want of permission has the reason', async () => {
    const closed = at('closed');
    writeFileSync(closed, '');
    chmodSync(closed, 0);
    // Root may read everything: the system's error is then made by hand.
    const error =
      process.geteuid?.() === 0
        ? readError(closed, systemError('EACCES'))
        : await failureOf(closed);
    expect(error).toBeInstanceOf(FormatError);
    expect((error as Error).message).toBe(
      `${closed}: cannot be opened: permission denied (EACCES); check the path and the permission to read it`,
    );
  });

  it('for a fault of the disk is another kind of error', () => {
    const error = readError('file', systemError('EIO'));
    expect(error).toBeInstanceOf(NativeError);
    expect(error).toMatchObject({ code: 'ERR_IO', path: 'file' });
    expect((error as Error).message).toMatch(
      /^file: cannot read: the disk reports an error \(EIO\); check the permission to read it, and/,
    );
    const other = new TypeError('not of the system');
    expect(readError('file', other)).toBe(other);
  });
});

function systemError(code: string): Error {
  return Object.assign(new Error(`${code}: refused, open`), { code, syscall: 'open' });
}
