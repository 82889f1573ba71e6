// JSON arrays as rows: the same rows as JSON.parse gives, and errors that name file, line and row.
import { mkdtemp, rm, truncate, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { JsonArrayFile } from '../../lib/data/json_array.ts';
import { openRows } from '../../lib/data/open_rows.ts';
import { ArgumentError, FormatError } from '../../lib/errors.ts';

let folder: string;
let path: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-json-'));
  path = join(folder, 'data.json');
});
afterAll(() => rm(folder, { recursive: true }));

async function withFile<T>(content: string | Uint8Array, use: (file: JsonArrayFile) => Promise<T>) {
  await writeFile(path, content);
  const file = await JsonArrayFile.open(path);
  try {
    return await use(file);
  } finally {
    await file.close();
  }
}

describe('a JSON array', () => {
  it('has the rows that JSON.parse gives, in any order and layout', async () => {
    const rows = fc.array(fc.dictionary(fc.string(), fc.jsonValue()), {
      minLength: 1,
      maxLength: 20,
    });
    const layouts = fc.constantFrom(undefined, 2, '\t');
    await fc.assert(
      fc.asyncProperty(rows, layouts, fc.boolean(), async (values, layout, windows) => {
        const text = JSON.stringify(values, null, layout);
        const content = windows ? `\ufeff${text.replaceAll('\n', '\r\n')}\r\n` : text;
        const expected = JSON.parse(Buffer.from(text).toString());
        await withFile(content, async (file) => {
          expect(file.length).toBe(values.length);
          for (let i = values.length - 1; i >= 0; i--) {
            expect(await file.row(i)).toEqual(expected[i]);
          }
        });
      }),
      { numRuns: 60 },
    );
  });

  it('crosses the chunks of the index pass, inside of escapes, too', async () => {
    const row = (i: number) => ({ i, text: '\\"]}é,'.repeat((i * 7919) % 40_000) });
    const values = Array.from({ length: 60 }, (_, i) => row(i));
    await withFile(JSON.stringify(values, null, 1), async (file) => {
      for (const i of [59, 0, 31, 32, 33]) expect(await file.row(i)).toEqual(row(i));
      expect(await file.where(1)).toBe(`${path}:6 (row 1)`);
    });
  });

  it('is recognised whatever the name of the file', async () => {
    for (const name of ['a.json', 'a.jsonl', 'a.data']) {
      const other = join(folder, name);
      await writeFile(other, '\ufeff \r\n [{"a": 1}, {"a": 2}]');
      const rows = await openRows(other);
      expect([rows.length, await rows.row(1)]).toEqual([2, { a: 2 }]);
      await rows.close();
    }
  });

  it('with an element that is damaged or no object is an error that names line and row', async () => {
    const error = (content: string | Uint8Array, index: number) =>
      withFile(content, (file) =>
        file.row(index).then(
          () => null,
          (thrown: unknown) => thrown as FormatError,
        ),
      );
    const bad = await error('[{"a": 1},\n{"a": 2,\n"b" 3}]', 1);
    expect(bad).toBeInstanceOf(FormatError);
    expect(bad?.message).toMatch(/data\.json:3 \(row 1\): not valid JSON .*correct this element/);
    expect((await error('[{}, 5]', 1))?.message).toMatch(
      /data\.json:1 \(row 1\): a row must be a JSON object, got a number/,
    );
    const latin = Buffer.concat([Buffer.from('[{"a": "'), Buffer.of(0xe9), Buffer.from('"}]')]);
    expect((await error(latin, 0))?.message).toMatch(
      /\(row 0\): not valid UTF-8; save the file as UTF-8/,
    );
  });

  it.each([
    ['[{"a": 1}, {"a": 2}', /after 2 rows, at byte 19: the array is never closed; write the file/],
    ['[{"a": 1},]', /after 1 rows, at byte 10: '\]' is in the place of an element/],
    ['[,{"a": 1}]', /at byte 1: ',' is in the place of an element/],
    ['[{"a": 1}]\n[{"a": 2}]', /at byte 11: there is more after the array/],
  ])('that is not whole is refused: %j', async (content, refusal) => {
    await writeFile(path, content);
    await expect(JsonArrayFile.open(path)).rejects.toThrow(FormatError);
    await expect(JsonArrayFile.open(path)).rejects.toThrow(refusal);
  });

  it('without elements, or missing, is refused, as is a row that it lacks', async () => {
    await writeFile(path, '[ ]');
    await expect(JsonArrayFile.open(path)).rejects.toThrow(ArgumentError);
    await expect(JsonArrayFile.open(join(folder, 'none'))).rejects.toThrow(/no such file/);
    await withFile('[{}]', (file) => expect(file.row(1)).rejects.toThrow(/has 1 rows, no row 1/));
  });

  it('may be larger than any row, which is refused by its number above 16 MiB', async () => {
    const row = (bytes: number) => `{"a":"${'x'.repeat(bytes - 8)}"}`;
    // 100 MB on one line.
    await writeFile(path, `[${Array.from({ length: 7 }, () => row(2 ** 24)).join(',')}]`);
    const file = await openRows(path);
    expect(file.length).toBe(7);
    expect((await file.row(6)).a).toHaveLength(2 ** 24 - 8);
    await file.close();
    await writeFile(path, `[{},${row(2 ** 24 + 1)}]`);
    await expect(openRows(path)).rejects.toThrow(`${path} row 1: the row is longer than 16.0 MiB`);
    await writeFile(path, '[{},{');
    await truncate(path, 2 ** 40);
    await expect(openRows(path)).rejects.toThrow(`${path} row 1: the row is longer`);
  });

  it('that shrinks while it is in use is an error', async () => {
    await withFile('[{"a": 1}, {"a": 2}]', async (file) => {
      await truncate(path, 8);
      await expect(file.row(1)).rejects.toThrow(/shrunk while in use; start again/);
    });
  });
});
