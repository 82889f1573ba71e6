/** Outputs of exports: one writer at a time, whole or not at all, and what is overwritten. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  cpSync,
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
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { checkNewOutput, fillFolder, writeNewFile } from '../../lib/export/output.ts';
import { writeFileAtomic } from '../../lib/io/files.ts';
import { claimOutput } from '../../lib/train/output.ts';
import { Killed, withChanges } from '../support/killed_writes.ts';

let folder: string;
let output: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-output-'));
  output = join(folder, 'out');
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const kManifest = '.balora-export.json';
const put = (path: string, text: string): void => {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
};
/** All files of a folder with their contents, without the list of an export's files. */
const contents = (path: string): Record<string, string> =>
  Object.fromEntries(
    readdirSync(path, { recursive: true, withFileTypes: true })
      .filter((entry) => entry.isFile() && entry.name !== kManifest)
      .map((entry) => join(entry.parentPath, entry.name))
      .map((file): [string, string] => [file.slice(path.length + 1), readFileSync(file, 'utf8')])
      .sort(),
  );
/** Fills a folder with files of these names, each with the same text. */
const filling =
  (text: string, ...names: string[]) =>
  async (into: string): Promise<string> => {
    for (const name of names) {
      mkdirSync(dirname(join(into, name)), { recursive: true });
      await writeFileAtomic(join(into, name), text);
    }
    return text;
  };
const kLast = ['model.safetensors.index.json', 'config.json'];
const kThree = ['model-1.safetensors', 'model-2.safetensors', 'model-3.safetensors', ...kLast];
const kTwo = ['model-1.safetensors', 'model-2.safetensors', ...kLast];
const all = (text: string, names: readonly string[]): Record<string, string> =>
  Object.fromEntries([...names].sort().map((name) => [name, text]));

describe('two exports into one folder at once', () => {
  it.each([false, true])('have one winner, in one process (overwrite: %s)', async (overwrite) => {
    for (let round = 0; round < 5; round++) {
      const path = join(folder, `${round}`);
      if (overwrite) await fillFolder(path, filling('before', ...kThree), kLast);
      const ends = await Promise.allSettled(
        ['a', 'b', 'c'].map(async (text) => {
          await checkNewOutput(path, 'folder', { overwrite });
          return fillFolder(path, filling(text, ...(text === 'a' ? kThree : kTwo)), kLast, {
            overwrite,
          });
        }),
      );
      const won = ends.flatMap((end) => (end.status === 'fulfilled' ? [end.value] : []));
      const failed = ends.flatMap((end) => (end.status === 'rejected' ? [end.reason] : []));
      expect(won.length).toBeGreaterThan(0);
      if (!overwrite) expect(won).toHaveLength(1);
      for (const error of failed) {
        expect(error.code).toMatch(/^ERR_(INVALID_ARG|IO|ARGUMENT)/);
        expect(error.message).toContain(path);
      }
      const last = readFileSync(join(path, 'config.json'), 'utf8');
      expect(won).toContain(last);
      expect(contents(path)).toEqual(all(last, last === 'a' ? kThree : kTwo));
    }
  });

  const kProgram = `
    import { fillFolder, checkNewOutput } from 'LIB/export/output.js';
    import { writeFileAtomic } from 'LIB/io/files.js';
    import { join } from 'node:path';
    const [path, text] = process.argv.slice(2);
    await checkNewOutput(path, 'folder');
    process.stdout.write('ready');
    await new Promise((go) => process.stdin.once('data', go));
    try {
      await fillFolder(path, async (into) => {
        for (const name of ['model-1.safetensors', 'model-2.safetensors', 'config.json', text])
          await writeFileAtomic(join(into, name), text);
      }, ['config.json']);
      process.stdout.write('done');
    } catch (error) {
      process.stdout.write(error.name + ' ' + error.message);
    }
    process.exit(0);
  `.replaceAll('LIB', fileURLToPath(new URL('../../dist', import.meta.url)));

  it('have one winner, in two processes that both found the folder free', async () => {
    const program = join(folder, 'program.mjs');
    writeFileSync(program, kProgram);
    const children = ['a', 'b'].map((text) =>
      spawn(process.execPath, [program, output, text], { stdio: ['pipe', 'pipe', 'inherit'] }),
    );
    await Promise.all(children.map((child) => once(child.stdout, 'data')));
    const answers = children.map(async (child) => {
      const chunks: Buffer[] = [];
      child.stdout.on('data', (chunk) => chunks.push(chunk));
      await once(child, 'close');
      return Buffer.concat(chunks).toString();
    });
    for (const child of children) child.stdin.write('go');
    const ends = await Promise.all(answers);
    expect(
      ends.filter((end) => end === 'done'),
      ends.join(),
    ).toHaveLength(1);
    const winner = ends[0] === 'done' ? 'a' : 'b';
    expect(ends.find((end) => end !== 'done')).toMatch(
      /^ArgumentError output (folder )?.*out (is being written by process \d+ on|is not empty)/,
    );
    expect(contents(output)).toEqual(
      all(winner, ['model-1.safetensors', 'model-2.safetensors', 'config.json', winner]),
    );
  });

  it('names the process that is writing, and does nothing to its files', async () => {
    let during: unknown;
    await fillFolder(
      output,
      async (into) => {
        await filling('first', ...kTwo)(into);
        during = await checkNewOutput(output, 'folder').catch((error) => error);
        await expect(
          fillFolder(output, filling('second', ...kTwo), kLast, { overwrite: true }),
        ).rejects.toThrow(`is being written by process ${process.pid} on ${hostname()}`);
      },
      kLast,
    );
    expect(String(during)).toMatch(/is being written by process .* remove .*\.balora-lock if/);
    expect(contents(output)).toEqual(all('first', kTwo));
  });

  it('have one winner of a file, and leave no lock', async () => {
    const path = join(folder, 'tuned.gguf');
    const write = (end: string) => {
      const text = `GGUF ${end}`;
      return () => writeFileAtomic(path, text).then(() => text);
    };
    const ends = await Promise.allSettled(
      ['a', 'b'].map((text) => writeNewFile(path, write(text))),
    );
    const won = ends.flatMap((end) => (end.status === 'fulfilled' ? [end.value] : []));
    expect(won).toEqual([readFileSync(path, 'utf8')]);
    await expect(writeNewFile(path, write('c'))).rejects.toThrow(
      /tuned\.gguf exists; .*overwrite: true/,
    );
    expect(await writeNewFile(path, write('d'), { overwrite: true })).toBe('GGUF d');
    expect(readdirSync(folder)).toEqual(['tuned.gguf']);
  });

  it('is refused beside a run in the folder, and the run beside an export', async () => {
    const claimed = await claimOutput(output, { overwrite: false, resume: false });
    const both = fillFolder(output, filling('x', ...kTwo), kLast);
    await expect(both).rejects.toThrow(/is not empty \(run\)/);
    await claimed.release();
    const other = join(folder, 'other');
    await fillFolder(
      other,
      async (into) => {
        for (const overwrite of [false, true]) {
          await expect(claimOutput(other, { overwrite, resume: false })).rejects.toThrow(
            /is not empty|is in use/,
          );
        }
        await filling('x', ...kTwo)(into);
      },
      kLast,
    );
  });
});

describe('an export that was killed', () => {
  /** Runs without waiting for the disk. */
  const unsynced = (body: () => Promise<unknown>): Promise<number> =>
    withChanges(Number.POSITIVE_INFINITY, async () => {
      await body();
    });

  it.each([false, true])(
    'at any change does not block the next one (over another: %s)',
    async (over) => {
      const killed = async (path: string, allowed: number): Promise<number> => {
        if (over) await unsynced(() => fillFolder(path, filling('before', ...kThree), kLast));
        let error: unknown = null;
        const made = await withChanges(allowed, async () => {
          error = await fillFolder(path, filling('half', ...kTwo), kLast, { overwrite: over }).then(
            () => null,
            (reason) => reason,
          );
        });
        if (allowed < made) expect(error).toBeInstanceOf(Killed);
        return made;
      };
      const needed = await killed(join(folder, 'whole'), Number.POSITIVE_INFINITY);
      expect(contents(join(folder, 'whole'))).toEqual(all('half', kTwo));
      for (let allowed = 0; allowed < needed; allowed++) {
        const path = join(folder, `${allowed}`);
        await killed(path, allowed);
        let isWhole = false;
        if (existsSync(path)) {
          const list = join(path, kManifest);
          isWhole = existsSync(list) && JSON.parse(readFileSync(list, 'utf8')).complete;
          // The lock of a process that has ended: ids end far below this one.
          const lock = join(path, '.balora-lock');
          if (existsSync(lock)) {
            writeFileSync(lock, JSON.stringify({ pid: 2147483646, host: hostname() }));
          }
          const found = contents(path);
          const texts = kThree.filter((name) => name in found).map((name) => found[name]);
          // Where the files that are read first are there, no others of another export are beside them.
          if ('config.json' in found) expect(new Set(texts).size, `${allowed}`).toBe(1);
        }
        await unsynced(() =>
          fillFolder(path, filling('next', ...kTwo, 'more'), kLast, { overwrite: over || isWhole }),
        );
        expect(contents(path), `${allowed}`).toEqual(all('next', [...kTwo, 'more']));
      }
    },
  );
});

describe('the list of an export that was killed', () => {
  const refused = /out holds model-1\.safetensors, which no export of balora wrote there; remove/;
  const bothRefuse = async (): Promise<void> => {
    const before = contents(output);
    for (const overwrite of [false, true]) {
      const next = fillFolder(output, filling('next', ...kTwo), kLast, { overwrite });
      await expect(next).rejects.toThrow(refused);
      await expect(checkNewOutput(output, 'folder', { overwrite })).rejects.toThrow(refused);
    }
    expect(contents(output)).toEqual(before);
  };
  /** Kills an export when its first file is in its place. */
  const kill = async (): Promise<void> => {
    for (let allowed = 1; !existsSync(join(output, 'model-1.safetensors')); allowed++) {
      rmSync(output, { recursive: true, force: true });
      await withChanges(allowed, async () => {
        await fillFolder(output, filling('half', ...kTwo), kLast).catch(() => {});
      });
    }
    rmSync(join(output, '.balora-lock')); // that of this process, which lives
  };

  it('gives away no file that somebody has put in the place of one', async () => {
    await kill();
    writeFileSync(join(output, 'model-1.safetensors'), 'mine');
    await bothRefuse();
    rmSync(join(output, 'model-1.safetensors'));
    mkdirSync(join(output, 'model-1.safetensors'));
    await bothRefuse();
    rmSync(join(output, 'model-1.safetensors'), { recursive: true });
    await fillFolder(output, filling('next', ...kTwo), kLast);
    expect(contents(output)).toEqual(all('next', kTwo));
  });

  it('gives away nothing in a copy of the folder', async () => {
    await kill();
    const copy = join(folder, 'copy');
    cpSync(output, copy, { recursive: true, preserveTimestamps: true });
    rmSync(output, { recursive: true });
    renameSync(copy, output);
    await bothRefuse();
    for (const written of [undefined, [], [null], [{ path: 'model-1.safetensors' }]]) {
      const list = { complete: false, files: ['model-1.safetensors'], written };
      put(join(output, kManifest), JSON.stringify(list));
      await bothRefuse();
    }
  });
});

describe('overwrite', () => {
  it('replaces what an export wrote, in all its folders, and nothing else', async () => {
    await fillFolder(output, filling('old', ...kThree, 'sub/deep/a', 'sub/b'), kLast);
    put(join(output, 'notes.txt'), 'mine');
    put(join(output, 'sub', 'mine.txt'), 'mine');
    await expect(fillFolder(output, filling('new', ...kTwo), kLast)).rejects.toThrow(
      /is not empty .*or pass overwrite: true to replace what an export wrote there/,
    );
    await checkNewOutput(output, 'folder', { overwrite: true });
    await fillFolder(output, filling('new', ...kTwo, 'sub/b', 'other/c'), kLast, {
      overwrite: true,
    });
    expect(contents(output)).toEqual({
      ...all('new', [...kTwo, 'sub/b', 'other/c']),
      ...{ 'notes.txt': 'mine', 'sub/mine.txt': 'mine' },
    });
    expect(existsSync(join(output, 'sub', 'deep'))).toBe(false);
  });

  it('leaves the earlier export as it was where the new one fails', async () => {
    await fillFolder(output, filling('old', ...kThree), kLast);
    const failing = async (into: string): Promise<void> => {
      await filling('new', ...kTwo)(into);
      throw new Error('no more');
    };
    await expect(fillFolder(output, failing, kLast, { overwrite: true })).rejects.toThrow(
      'no more',
    );
    expect(contents(output)).toEqual(all('old', kThree));
  });

  it('is refused where files of others would be replaced, or mixed with the new ones', async () => {
    const over = (names: readonly string[]) =>
      fillFolder(output, filling('new', ...names), kLast, { overwrite: true });
    put(join(output, 'model.safetensors'), 'mine');
    await expect(over(kTwo)).rejects.toThrow(/holds model\.safetensors, which no export of balora/);
    rmSync(join(output, 'model.safetensors'));
    put(join(output, 'README.md'), 'mine');
    await expect(over([...kTwo, 'README.md'])).rejects.toThrow(/holds README\.md, which no export/);
    await over(kTwo);
    expect(contents(output)).toEqual({ ...all('new', kTwo), 'README.md': 'mine' });
    put(join(output, 'run', 'config.json'), '{}');
    await expect(over(kTwo)).rejects.toThrow(/is that of a run/);
  });

  describe('is refused for what the output is made of', () => {
    const check = (path: string, kind: 'file' | 'folder', ...sources: string[]) =>
      checkNewOutput(path, kind, { overwrite: true, sources: [null, ...sources] });
    const at = (...names: string[]) => join(folder, ...names);
    const refused = /of which it is made/;

    it('where that is a file', async () => {
      put(at('model.gguf'), 'GGUF weights');
      const model = at('model.gguf');
      await expect(check(at('.', 'model.gguf'), 'file', model)).rejects.toThrow(
        /would replace .*model\.gguf, of which it is made/,
      );
      await expect(check(folder, 'folder', model)).rejects.toThrow(refused);
      put(at('other.gguf'), 'GGUF other');
      await check(at('other.gguf'), 'file', model);
    });

    it('where that is a folder that the output lies in', async () => {
      for (const name of ['model.safetensors', 'config.json', 'tokenizer.json', 'sub/model.gguf']) {
        put(at('base', name), 'GGUF');
        await expect(check(at('base', name), 'file', at('base')), name).rejects.toThrow(
          /lies in .*base, of which it is made/,
        );
      }
      await expect(check(at('base', 'new.gguf'), 'file', at('base'))).rejects.toThrow(refused);
      await expect(check(at('base', 'new'), 'folder', at('base'))).rejects.toThrow(refused);
      await check(at('base-tuned.gguf'), 'file', at('base'));
      await check(at('base..'), 'folder', at('base'));
    });

    it('under any of its names', async () => {
      put(at('store', 'weights'), 'GGUF weights');
      mkdirSync(at('base'));
      symlinkSync(at('store', 'weights'), at('base', 'model.gguf'));
      symlinkSync(at('base'), at('alias'));
      const cases = [
        [at('store', 'weights'), 'file', at('base')],
        [at('alias', 'new.gguf'), 'file', at('base')],
        [at('base', 'new.gguf'), 'file', at('alias')],
        [at('alias', 'new', 'deep'), 'folder', at('base')],
        [at('store'), 'folder', at('alias')],
        [at('alias'), 'folder', at('base')],
      ] as const;
      for (const [path, kind, source] of cases) {
        await expect(check(path, kind, source), `${path} ${source}`).rejects.toThrow(refused);
      }
    });
  });

  it('of a file replaces a GGUF file alone', async () => {
    const path = join(folder, 'file');
    const over = () => writeNewFile(path, () => writeFileAtomic(path, 'new'), { overwrite: true });
    for (const text of ['', 'GGU', 'precious', 'xGGUF', '{"__metadata__": {}}']) {
      put(path, text);
      const refused = /file is no GGUF file, so no export of balora wrote it; remove it, or choose/;
      await expect(over(), text).rejects.toThrow(refused);
      await expect(checkNewOutput(path, 'file', { overwrite: true }), text).rejects.toThrow(
        refused,
      );
      expect(readFileSync(path, 'utf8')).toBe(text);
    }
    put(path, 'GGUF');
    await checkNewOutput(path, 'file', { overwrite: true });
    await over();
    expect(readFileSync(path, 'utf8')).toBe('new');
    put(join(folder, 'other.gguf'), 'GGUF');
    rmSync(path);
    symlinkSync(join(folder, 'other.gguf'), path);
    await expect(over()).rejects.toThrow(/is no regular file/);
  });

  it('believes no list of files outside the folder', async () => {
    put(join(folder, 'outside'), 'mine');
    for (const file of ['../outside', '/etc/hosts', 'a/../../outside']) {
      put(join(output, kManifest), JSON.stringify({ complete: false, files: [file] }));
      await expect(fillFolder(output, filling('x', ...kTwo), kLast)).rejects.toThrow(
        /\.balora-export\.json: is no list of files of an export/,
      );
    }
    expect(readFileSync(join(folder, 'outside'), 'utf8')).toBe('mine');
  });
});
