// TSV, CSV and Parquet files as rows, and the errors of damaged ones.
import { mkdtemp, readFile, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { openRows } from '../../lib/data/open_rows.ts';
import type { RowSource } from '../../lib/data/rows.ts';
import { ArgumentError, FormatError, UnsupportedError } from '../../lib/errors.ts';
import { SideProcess } from '../../lib/io/side_process.ts';
import { fixturePath } from '../support/fixtures.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-rows-'));
});
afterAll(() => rm(folder, { recursive: true }));

async function written(name: string, content: string | Uint8Array): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, content);
  return path;
}
async function all(rows: RowSource): Promise<unknown[]> {
  const found: unknown[] = [];
  for (let i = 0; i < rows.length; i++) found.push(await rows.row(i));
  return found;
}

describe('TSV', () => {
  it('has columns named by its header; quotes, commas and blank lines have no special meaning', async () => {
    const path = await written('a.tsv', '\ufeffsentence\tlabel\r\n"a, b\t1\r\n\r\né\t0');
    const rows = await openRows(path);
    expect(await all(rows)).toEqual([
      { sentence: '"a, b', label: '1' },
      { sentence: 'é', label: '0' },
    ]);
    expect(await rows.where(1)).toBe(`${path}:4`);
  });

  it('has no header where the caller names the columns', async () => {
    const rows = await openRows(await written('b.tsv', '1\tx\n0\ty\n'), {
      columns: ['label', 'sentence'],
    });
    expect(await all(rows)).toEqual([
      { label: '1', sentence: 'x' },
      { label: '0', sentence: 'y' },
    ]);
  });

  it('with too few fields, or bytes that are no UTF-8, is an error that names the line', async () => {
    const path = await written('c.tsv', 'a\tb\n1\t2\n3\n');
    await expect((await openRows(path)).row(1)).rejects.toThrow(
      `${path}:3: 1 fields, but there are 2 columns (a, b)`,
    );
    const bad = await written(
      'd.tsv',
      Buffer.concat([Buffer.from('a\tb\n1\t2\n3\t'), Buffer.of(255)]),
    );
    await expect(openRows(bad)).rejects.toThrow(FormatError);
    await expect(openRows(bad)).rejects.toThrow(`${bad}:3: not valid UTF-8`);
  });

  it('without rows, missing, or with two columns of one name is refused, as is a row that it lacks', async () => {
    await expect(openRows(await written('e.tsv', 'a\tb\n'))).rejects.toThrow(/has no rows/);
    await expect(openRows(join(folder, 'none.tsv'))).rejects.toThrow(/no such file/);
    await expect(openRows(await written('f.tsv', 'a\ta\n1\t2\n'))).rejects.toThrow(
      /two columns are called "a"; rename one, or name the columns with columns: /,
    );
    const rows = await openRows(await written('g.tsv', 'a\n1\n'));
    await expect(rows.row(1)).rejects.toThrow(/has 1 rows, no row 1/);
  });
});

it.each(['tsv', 'csv'])(
  'a .%s file with a row above 16 MiB is refused by its line',
  async (end) => {
    const [separator, quote] = end === 'csv' ? [',', '"'] : ['\t', ''];
    const row = (length: number) => `${quote}${'x'.repeat(length)}${quote}${separator}1\n`;
    const path = await written(`long.${end}`, `a${separator}b\n${row(3)}${row(2 ** 24)}`);
    await expect(openRows(path)).rejects.toThrow(`${path}:3: the row is longer than 16.0 MiB`);
    const whole = await openRows(
      await written(`whole.${end}`, `a${separator}b\n${row(2 ** 24 - 5)}`),
    );
    expect((await whole.row(0)).a).toHaveLength(2 ** 24 - 5);
  },
);

it.each(['tsv', 'csv', 'jsonl', 'parquet'])('opening a .%s file can be aborted', async (end) => {
  const path =
    end === 'parquet' ? fixturePath('data/rows.parquet') : await written(`stop.${end}`, '{}\n1\n');
  const opening = openRows(path, { signal: AbortSignal.abort(new Error('enough')) });
  await expect(opening).rejects.toThrow(/^enough$/);
});

describe('CSV', () => {
  it('has quoted fields with commas, quotes and line ends', async () => {
    const path = await written('a.csv', 'n,text\r\n1,"a, ""b""\nc"\r\n\r\n2,plain\r\n');
    const rows = await openRows(path);
    expect(await all(rows)).toEqual([
      { n: '1', text: 'a, "b"\nc' },
      { n: '2', text: 'plain' },
    ]);
    expect(await rows.where(1)).toBe(`${path}:5`);
  });

  it('is recognised by its extension in capitals, too', async () => {
    const rows = await openRows(await written('A.CSV', 'n,text\n1,"a, b"\n'));
    expect(await all(rows)).toEqual([{ n: '1', text: 'a, b' }]);
  });

  it('with an unclosed quote is refused', async () => {
    const path = await written('b.csv', 'n,text\n1,"a\n2,b\n');
    await expect(openRows(path)).rejects.toThrow(`${path}:2: a quote is never closed`);
  });
});

describe('Parquet', () => {
  const path = fixturePath('data/rows.parquet');
  /** The file, whose first page says that a value comes a billion times: 03 07 becomes a run of 2^30 - 1 levels. */
  async function slowBytes(): Promise<Buffer> {
    const bytes = await readFile(path);
    expect(bytes.toString('hex', 0x19, 0x1b)).toBe('0307');
    bytes.set([0xfe, 0xff, 0xff, 0xff, 0x07], 0x19);
    return bytes;
  }

  it('gives the rows of every row group in any order, with 64-bit integers as numbers', async () => {
    const rows = await openRows(path);
    expect(rows.length).toBe(7);
    expect(await all(rows)).toEqual(
      Array.from({ length: 7 }, (_, i) => ({
        sentence: `row ${i} é`,
        label: i % 2,
        score: i / 2,
      })),
    );
    expect((await rows.row(0)).score).toBe(0);
    expect(await rows.where(5)).toBe(`${path} row 5`);
    await expect(rows.row(7)).rejects.toThrow(/has 7 rows, no row 7/);
    await rows.close();
  });

  it('gives rows of several groups to reads that overlap', async () => {
    const rows = await openRows(path);
    const order = [6, 0, 5, 1, 1, 3, 2, 4, 6];
    const found = await Promise.all(order.map((i) => rows.row(i)));
    expect(found.map(({ score }) => Number(score) * 2)).toEqual(order);
    await rows.close();
    expect((await rows.row(2)).score).toBe(1);
    await rows.close();
  });

  it.each([false, true])(
    'closed while rows are read is an error that says so (on their way: %s)',
    async (sent) => {
      // A row of this file is on its way for as long as it takes to count to a billion.
      const file = await written('closed.parquet', await slowBytes());
      const rows = await openRows(file);
      const asked = [rows.row(0), rows.row(6)].map((row) => row.catch((error: unknown) => error));
      // The second request waits for the first one.
      if (sent) await new Promise((resolve) => setImmediate(resolve));
      await rows.close();
      for (const error of await Promise.all(asked)) {
        expect(error).toBeInstanceOf(ArgumentError);
        expect((error as Error).message).toBe(
          `data: ${file} was closed while a row of it was being read; close it when its rows are there`,
        );
      }
    },
  );

  it('whose page says that a value comes a billion times is refused, while the event loop runs', async () => {
    const rows = await openRows(await written('run.parquet', await slowBytes()));
    let ticks = 0;
    const clock = setInterval(() => ticks++, 20);
    const error = await rows.row(0).catch((thrown: unknown) => thrown);
    clearInterval(clock);
    expect(error).toBeInstanceOf(FormatError);
    expect((error as Error).message).toMatch(
      /run\.parquet: reading it (ran out of memory|needed too long an array|took more than \d+ s): a page is damaged or too large; write it again/,
    );
    expect(ticks).toBeGreaterThan(5);
    await rows.close();
  });

  it('with any byte changed gives rows or an error, and never hangs', async () => {
    const original = await readFile(path);
    const damaged: string[] = [];
    for (let at = 4; at < original.length; at += 97) {
      const bytes = Buffer.from(original);
      bytes[at] = (bytes[at] as number) ^ 0xff;
      const file = await written('flipped.parquet', bytes);
      const rows = await openRows(file).catch((error: unknown) => error);
      if (rows instanceof Error) {
        expect([ArgumentError, FormatError, UnsupportedError], rows.message).toContain(
          rows.constructor,
        );
        damaged.push(rows.message);
        continue;
      }
      for (let i = 0; i < (rows as RowSource).length && i < 10; i++) {
        await (rows as RowSource).row(i).catch((error: unknown) => {
          expect(error).toBeInstanceOf(FormatError);
          damaged.push((error as Error).message);
        });
      }
      await (rows as RowSource).close();
    }
    expect(damaged.length).toBeGreaterThan(2);
  });

  it('that cannot be read, and whose columns are damaged, is an error of the file each time', async () => {
    const bytes = await readFile(path);
    // The column of the first row group that the schema does not have: its bytes are being read when that is found out.
    const at = bytes.indexOf('score', bytes.indexOf('score') + 1);
    bytes.write('scorf', at);
    const file = await written('torn.parquet', bytes);
    const rows = await openRows(file);
    await truncate(file, 100);
    // The process that reads goes on, so that the next error is one of the file, too.
    for (let i = 0; i < 8; i++) {
      const error = await rows.row(0).catch((thrown: unknown) => thrown);
      expect(error).toBeInstanceOf(FormatError);
      expect((error as Error).message).toContain(file);
    }
    await rows.close();
  });

  it('is read with a limit of time that its size allows for', async () => {
    const ask = vi.spyOn(SideProcess.prototype, 'ask');
    const rows = await openRows(path);
    await rows.row(0);
    await rows.close();
    const calls = ask.mock.calls.map(([, options]) => options);
    ask.mockRestore();
    expect(calls).toHaveLength(2);
    for (const { limitMs = 0, onEnd } of calls) {
      expect(limitMs).toBeGreaterThan(20_000);
      expect(limitMs).toBeLessThan(20_001);
      expect(onEnd('time')).toBeInstanceOf(FormatError);
      expect(onEnd('time').message).toMatch(
        /rows\.parquet: reading it took more than 21 s: a page is/,
      );
    }
  });

  it('refuses other files, and the option columns', async () => {
    const bad = await written('a.parquet', 'not a parquet file');
    await expect(openRows(bad)).rejects.toThrow(FormatError);
    await expect(openRows(bad)).rejects.toThrow(bad);
    await expect(openRows(join(folder, 'none.parquet'))).rejects.toThrow(FormatError);
    await expect(openRows(path, { columns: ['a'] })).rejects.toThrow(/names its own fields/);
  });
});

it('a file with any other extension is JSON Lines', async () => {
  const rows = await openRows(await written('a.jsonl', '{"a":1}\n{"a":2}\n'));
  expect(await all(rows)).toEqual([{ a: 1 }, { a: 2 }]);
  await rows.close();
});
