import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { jsonErrorOffset } from '../../lib/data/json_position.ts';
import { JsonlFile } from '../../lib/data/jsonl.ts';
import { ArgumentError, FormatError } from '../../lib/errors.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-jsonl-'));
});
afterAll(() => rm(folder, { recursive: true }));

/** Lone surrogates cannot be written as UTF-8. */
const wellFormed = (text: string) => Buffer.from(text).toString();

async function withFile<T>(content: string | Uint8Array, use: (file: JsonlFile) => Promise<T>) {
  const path = join(folder, 'data.jsonl');
  await writeFile(path, content);
  const file = await JsonlFile.open(path);
  try {
    return await use(file);
  } finally {
    await file.close();
  }
}

const errorOf = (content: string | Uint8Array, index = 0) =>
  withFile(content, (file) =>
    file.row(index).then(
      () => null,
      (error: unknown) => error as FormatError,
    ),
  );

describe('JsonlFile', () => {
  it('reads rows in any order, whatever the line ends, blank lines and chunk borders', async () => {
    const rows = fc.array(fc.record({ id: fc.nat(), text: fc.string({ unit: 'binary' }) }), {
      minLength: 1,
      maxLength: 40,
    });
    const separators = fc.constantFrom('\n', '\r\n', '\n\n', '\n \t\r\n');
    await fc.assert(
      fc.asyncProperty(rows, separators, fc.boolean(), async (values, separator, last) => {
        const expected = values.map((v) => ({ ...v, text: wellFormed(v.text) }));
        const lines = expected.map((row) => JSON.stringify(row)).join(separator);
        await withFile(lines + (last ? separator : ''), async (file) => {
          expect(file.length).toBe(values.length);
          for (let i = values.length - 1; i >= 0; i--)
            expect(await file.row(i)).toEqual(expected[i]);
        });
      }),
      { numRuns: 40 },
    );
  });

  it('crosses the chunks of the index pass', async () => {
    const row = (i: number) => ({ i, text: 'é'.repeat((i * 7919) % 50_000) });
    const content = Array.from({ length: 100 }, (_, i) => JSON.stringify(row(i))).join('\n\n');
    await withFile(content, async (file) => {
      expect(file.length).toBe(100);
      for (const i of [99, 0, 31, 64]) expect(await file.row(i)).toEqual(row(i));
      const overlapping = [3, 0, 1, 99, 2, 40].map(async (i) => ({ i, row: await file.row(i) }));
      for (const { i, row: read } of await Promise.all(overlapping)) expect(read).toEqual(row(i));
      expect(await file.where(99)).toBe(`${file.path}:199`);
    });
  });

  it('skips a byte-order mark', async () => {
    await withFile('\ufeff{"a":1}', async (file) => expect(await file.row(0)).toEqual({ a: 1 }));
  });

  it('names file, line and column of damaged JSON', async () => {
    const error = await errorOf('{"a": 1}\n\n{"a": 1, "b" 2}\n', 1);
    expect(error).toBeInstanceOf(FormatError);
    expect(error?.message).toMatch(/data\.jsonl:3:14: not valid JSON/);
    expect(error?.path).toBe(join(folder, 'data.jsonl'));
    expect(error?.offset).toBe(10);
  });

  it('names the column of damaged UTF-8, and of a character cut off by the end of the file', async () => {
    const head = Buffer.from('{"a": "é');
    const bad = await errorOf(Buffer.concat([head, Buffer.from([0xff]), Buffer.from('"}')]));
    expect(bad?.message).toMatch(/data\.jsonl:1:9: not valid UTF-8/);
    const cut = await errorOf(Buffer.concat([head, Buffer.from([0xe2, 0x82])]));
    expect(cut?.message).toMatch(/data\.jsonl:1:9: not valid UTF-8/);
  });

  it('refuses rows that are not objects', async () => {
    expect((await errorOf('[1]\n[2]'))?.message).toMatch(
      /:1:1: a row must be a JSON object, got an array/,
    );
    expect((await errorOf('null'))?.message).toMatch(/got null/);
    expect((await errorOf('3'))?.message).toMatch(/got a number/);
  });

  it.each([
    '[{"a": 1}, {"a": 2}]',
    '[\n  {"a": 1},\n  {"a": 2}\n]',
    '[{"a": 1},\n{"a": 2}]',
    '\n [ {"a": 1},\n{"a": 2}]',
  ])('says what to do with an array: %j', async (content) => {
    expect((await errorOf(content))?.message).toMatch(
      /data\.jsonl:\d:1: this is a JSON array, and not one object a line; convert it: jq -c '\.\[\]'/,
    );
  });

  it('refuses a file that cannot be opened or has no rows, and a row that it lacks', async () => {
    await expect(JsonlFile.open(join(folder, 'none.jsonl'))).rejects.toThrow(/no such file/);
    await expect(JsonlFile.open(folder)).rejects.toThrow(/is a folder, not a regular file/);
    await writeFile(join(folder, 'empty.jsonl'), '\n  \n');
    await expect(JsonlFile.open(join(folder, 'empty.jsonl'))).rejects.toThrow(ArgumentError);
    await withFile('{}', (file) => expect(file.row(1)).rejects.toThrow(/has 1 rows, no row 1/));
  });

  it('refuses a line above 16 MiB by its number, before it has read the whole line', async () => {
    const path = join(folder, 'long.jsonl');
    const row = (bytes: number) => `{"a":"${'x'.repeat(bytes - 8)}"}`;
    await writeFile(path, `{"a": 1}\n\n${row(2 ** 24)}\n{"a": 2}`);
    const file = await JsonlFile.open(path);
    expect(file.length).toBe(3);
    expect((await file.row(1)).a).toHaveLength(2 ** 24 - 8);
    await file.close();
    await writeFile(path, `{"a": 1}\n\n${row(2 ** 24 + 1)}\n{"a": 2}`);
    const error = await JsonlFile.open(path).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(FormatError);
    expect(error).toMatchObject({ path, offset: 10 });
    expect((error as Error).message).toBe(
      `${path}:3: the row is longer than 16.0 MiB; divide its text over several rows, and check that rows end in line breaks`,
    );
    // Only the first 17 MiB of a line that never ends are read.
    await writeFile(path, '{"a": 1}\n');
    await truncate(path, 2 ** 40);
    await expect(JsonlFile.open(path)).rejects.toThrow(`${path}:2: the row is longer`);
  });

  it('allows any number of blanks between rows', async () => {
    const path = join(folder, 'blank.jsonl');
    await writeFile(path, `{"a": 1}\n${' '.repeat(2 ** 24 + 2 ** 20)}\n{"a": 2}`);
    const file = await JsonlFile.open(path);
    expect([await file.row(0), await file.row(1)]).toEqual([{ a: 1 }, { a: 2 }]);
    await file.close();
  });

  it('notices that the file has shrunk', async () => {
    await withFile('{"a": 1}\n{"a": 2}\n', async (file) => {
      await truncate(file.path, 12);
      await expect(file.row(1)).rejects.toThrow(/shrunk while in use/);
    });
  });

  it('stops indexing on abort', async () => {
    const path = join(folder, 'abort.jsonl');
    await writeFile(path, '{}');
    await expect(JsonlFile.open(path, { signal: AbortSignal.abort() })).rejects.toThrow(/abort/i);
  });
});

describe('jsonErrorOffset', () => {
  it('finds an error exactly where JSON.parse fails', () => {
    const pieces = fc.constantFrom(
      ...[
        '{',
        '}',
        '[',
        ']',
        ',',
        ':',
        '"a"',
        '"',
        '\\',
        '\\u12',
        '1',
        '-',
        '01',
        '1.5e3',
        '.',
        'e',
      ],
      ...['true', 'null', 'nul', ' ', '\n', '\u0001', 'é'],
    );
    const damaged = fc.array(pieces, { maxLength: 12 }).map((parts) => parts.join(''));
    const whole = fc.json();
    fc.assert(
      fc.property(fc.oneof(damaged, whole), (text) => {
        let valid = true;
        try {
          JSON.parse(text);
        } catch {
          valid = false;
        }
        expect(jsonErrorOffset(text) === null, JSON.stringify(text)).toBe(valid);
      }),
      { numRuns: 3000 },
    );
  });

  it.each([
    ['{"a" 1}', 5],
    ['{"a": 1,}', 8],
    ['[1 2]', 3],
    ['{"a": "x', 8],
    ['"\\q"', 1],
    ['{} x', 3],
    ['', 0],
    ['[1, tru]', 4],
    ['{a: 1}', 1],
  ])('%s stops at %i', (text, offset) => {
    expect(jsonErrorOffset(text)).toBe(offset);
  });

  it('does not overflow the stack', () => {
    expect(jsonErrorOffset('['.repeat(100_000))).toBe(100_000);
    expect(jsonErrorOffset(`"${'x'.repeat(5_000_000)}`)).toBe(5_000_001);
  });
});
