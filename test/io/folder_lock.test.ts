import { spawnSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { hostname, tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { acquireLock, livingHolder } from '../../lib/io/folder_lock.ts';

interface Mount {
  mayMount(): boolean;
  mountSmall(folder: string, kiB: number): boolean;
  remount(folder: string, options: string): boolean;
  unmount(folder: string): unknown;
}
// The script has no types.
const path = '../../scripts/support/mount.mjs';
const { mayMount, mountSmall, remount, unmount } = (await import(path)) as Mount;

let folder: string;
let lock: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-lock-'));
  lock = join(folder, 'lock');
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const acquire = () => acquireLock(lock, ({ pid }) => new Error(`in use by ${pid}`));
const dead = () => spawnSync(process.execPath, ['-e', '']).pid;
const textOf = (pid: number, more: object = {}) =>
  JSON.stringify({ pid, host: hostname(), started: '1', ...more });

describe('a lock', () => {
  it.skipIf(!mayMount())(
    'on a disk that became read-only is named when it is released (needs root)',
    async () => {
      mountSmall(folder, 64);
      try {
        const held = await acquire();
        remount(folder, 'ro');
        await expect(held.release()).rejects.toMatchObject({
          code: 'ERR_IO',
          message: expect.stringMatching(
            /lock: cannot write: the file system is read-only \(EROFS\)/,
          ),
        });
        expect(readdirSync(folder)).toEqual(['lock']);
      } finally {
        unmount(folder);
      }
    },
  );

  it('has one holder, and leaves nothing but itself', async () => {
    const held = await acquire();
    expect(await held.isHeld()).toBe(true);
    expect(JSON.parse(readFileSync(lock, 'utf8'))).toMatchObject({ pid: process.pid });
    await expect(acquire()).rejects.toThrow(`in use by ${process.pid}`);
    expect(readdirSync(folder)).toEqual(['lock']);
    await held.release();
    expect(readdirSync(folder)).toEqual([]);
  });

  it.each(['', '{"pi', 'null', '{"pid":"1"}'])('that reads %j is refused by name', async (text) => {
    writeFileSync(lock, text);
    await expect(acquire()).rejects.toThrow(
      /lock does not name the process.*; remove it if there is/,
    );
    await expect(livingHolder(lock)).rejects.toThrow(/does not name the process/);
    expect(readFileSync(lock, 'utf8')).toBe(text);
  });

  it.each(['link', 'link to nothing', 'large file', 'folder'])(
    'that is a %s is refused by name, and not read',
    async (kind) => {
      const other = join(folder, 'other');
      writeFileSync(other, textOf(process.pid));
      if (kind === 'link') symlinkSync(other, lock);
      else if (kind === 'link to nothing') symlinkSync(join(folder, 'nothing'), lock);
      else if (kind === 'folder') mkdirSync(lock);
      else writeFileSync(lock, textOf(process.pid, { more: 'x'.repeat(4096) }));
      const refused = /lock does not name the process that holds it; remove it if there is/;
      await expect(livingHolder(lock)).rejects.toThrow(refused);
      await expect(acquire()).rejects.toThrow(refused);
      expect(readdirSync(folder).sort()).toEqual(['lock', 'other']);
    },
  );

  it('in whose place there is a link is not held any more', async () => {
    const held = await acquire();
    renameSync(lock, join(folder, 'moved'));
    symlinkSync(join(folder, 'moved'), lock);
    expect(await held.isHeld()).toBe(false);
    await held.release();
    expect(readdirSync(folder).sort()).toEqual(['lock', 'moved']);
  });

  it('that names a thread which is none counts as held', async () => {
    const held = await acquire();
    const own = JSON.parse(readFileSync(lock, 'utf8')) as object;
    await held.release();
    writeFileSync(lock, JSON.stringify({ ...own, thread: { id: { toString: 1 }, started: '1' } }));
    await expect(acquire()).rejects.toThrow(`in use by ${process.pid}`);
  });

  it('of a process that died is taken over, and so is that of one that died while taking it over', async () => {
    writeFileSync(lock, textOf(dead()));
    const first = await acquire();
    expect(readdirSync(folder)).toEqual(['lock']);
    await first.release();
    const text = textOf(dead());
    const digest = createHash('sha256').update(text).digest('hex').slice(0, 16);
    writeFileSync(lock, text);
    writeFileSync(`${lock}.${digest}`, textOf(dead(), { token: 'successor' }));
    const second = await acquire();
    expect(readdirSync(folder)).toEqual(['lock']);
    await second.release();
    // The successor lives, and the lock's own name still has the dead one.
    writeFileSync(lock, text);
    writeFileSync(`${lock}.${digest}`, JSON.stringify({ pid: process.ppid, host: hostname() }));
    await expect(acquire()).rejects.toThrow(`in use by ${process.ppid}`);
  });

  it('that somebody else removed and took is neither held nor released', async () => {
    const first = await acquire();
    rmSync(lock);
    const second = await acquire();
    expect(await first.isHeld()).toBe(false);
    await first.release();
    expect(await second.isHeld()).toBe(true);
    await second.release();
  });

  it.skipIf(!existsSync('/proc/thread-self'))(
    'of a thread that has ended is taken over',
    async () => {
      await (await acquire()).release();
      const held = await acquire();
      const mine = JSON.parse(readFileSync(lock, 'utf8'));
      await held.release();
      expect(mine.thread.id).toBeGreaterThan(0);
      // A thread that this process does not have, and one whose number was given to another thread.
      for (const thread of [
        { id: 2 ** 22 - 1, started: mine.thread.started },
        { id: mine.thread.id, started: '1' },
      ]) {
        writeFileSync(lock, JSON.stringify({ ...mine, thread }));
        expect(await livingHolder(lock)).toBeNull();
        await (await acquire()).release();
      }
      writeFileSync(lock, JSON.stringify(mine));
      await expect(acquire()).rejects.toThrow(/in use/);
    },
  );

  it('of another machine is held', async () => {
    writeFileSync(lock, textOf(1, { host: 'elsewhere' }));
    await expect(acquire()).rejects.toThrow('in use by 1');
  });
});
