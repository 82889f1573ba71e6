// GGUF files: metadata against the reference's listing and @huggingface/gguf, and exact values.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gguf } from '@huggingface/gguf';
import { afterAll, describe, expect, it } from 'vitest';
import { FormatError, UnsupportedError } from '../../lib/errors.ts';
import { GgufFile } from '../../lib/io/gguf.ts';
import { SafetensorsFile } from '../../lib/io/safetensors.ts';
import { synchronize } from '../../lib/runtime.ts';
import { writeGguf } from '../support/write_gguf.ts';

const kFixtures = fileURLToPath(new URL('../fixtures/quant', import.meta.url));
const fixture = (name: string): string => join(kFixtures, name);

interface Listed {
  file: string;
  alignment: number;
  metadata: Record<string, { types: string[]; value: unknown }>;
  tensors: { name: string; type: string; ne: number[]; bytes: number }[];
}
const listing = JSON.parse(readFileSync(fixture('gguf_files.json'), 'utf8')) as { files: Listed[] };

/** Whether values are equal; the listing has integers beyond 2^53 and values that are not finite as strings. */
function same(found: unknown, expected: unknown): boolean {
  if (Array.isArray(expected)) {
    const list = ArrayBuffer.isView(found) ? Array.from(found as Float64Array) : found;
    return (
      Array.isArray(list) &&
      list.length === expected.length &&
      expected.every((value, i) =>
        same(list[i], typeof value === 'boolean' ? Number(value) : value),
      )
    );
  }
  // Arrays of 64-bit integers have BigInts alone.
  if (typeof found === 'bigint') return String(found) === String(expected);
  return typeof found === 'bigint' ? String(found) === expected : Object.is(found, expected);
}

describe.each(listing.files)('$file', ({ file: name, alignment, metadata, tensors }) => {
  const file = GgufFile.open(fixture(name));

  it('has the listed metadata and types', () => {
    const expected = Object.entries(metadata).filter(([key]) => !key.startsWith('GGUF.'));
    expect([...file.metadata.keys()]).toEqual(expected.map(([key]) => key));
    for (const [key, { types, value }] of expected) {
      expect(file.metadataTypes.get(key), key).toBe(types.join(' '));
      expect(same(file.metadata.get(key), value), `${key}: ${file.metadata.get(key)}`).toBe(true);
    }
    expect(file.alignment).toBe(alignment);
    expect(file.version).toBe(3);
  });

  it('has the listed tensors', () => {
    expect([...file.tensors.values()]).toEqual(
      tensors.map(({ name, type, ne, bytes }) => ({
        name,
        dtype: type,
        shape: ne.toReversed(),
        bytes,
      })),
    );
  });

  it('agrees with the parser of @huggingface/gguf', async () => {
    const { metadata, tensorInfos } = await gguf(fixture(name), { allowLocalFile: true });
    for (const [key, value] of file.metadata) {
      const other = (metadata as Record<string, unknown>)[key];
      const plain = (v: unknown): unknown =>
        ArrayBuffer.isView(v)
          ? Array.from(v as Float64Array, plain)
          : typeof v === 'boolean' && ArrayBuffer.isView(value)
            ? String(Number(v))
            : Array.isArray(v)
              ? v.map(plain)
              : typeof v === 'bigint'
                ? String(v)
                : typeof v === 'number'
                  ? String(v)
                  : v;
      expect(plain(other), key).toEqual(plain(value));
    }
    expect(tensorInfos.map(({ name, shape }) => [name, shape.map(Number).toReversed()])).toEqual(
      Array.from(file.tensors.values(), ({ name, shape }) => [name, shape]),
    );
  });

  it('decodes every tensor exactly', () => {
    const values = SafetensorsFile.open(fixture(`${name}.values.safetensors`));
    for (const tensor of file.tensors.keys()) {
      const got = file.read(tensor, { checkFinite: true });
      expect(got.shape, tensor).toEqual(values.tensors.get(tensor)?.shape);
      expect(got.dataSync(), tensor).toEqual(values.read(tensor).dataSync());
      const rounded = values.read(tensor).to('bf16');
      expect(file.read(tensor, { dtype: 'bf16' }).dataSync()).toEqual(rounded.dataSync());
    }
  });
});

describe('the row order of llama files', () => {
  it('is undone: stored row 2i + j of a head becomes row j D/2 + i', () => {
    const file = GgufFile.open(fixture('tiny_llama.gguf'));
    const [heads, d, columns] = [4, 16, 64];
    const stored = file.read('blk.0.attn_q.weight').dataSync();
    const got = file.read('blk.0.attn_q.weight', { permutedHeads: heads }).dataSync();
    for (let h = 0; h < heads; ++h) {
      for (let i = 0; i < d / 2; ++i) {
        for (const j of [0, 1]) {
          const from = (h * d + 2 * i + j) * columns;
          const to = (h * d + (j * d) / 2 + i) * columns;
          expect(got.slice(to, to + columns)).toEqual(stored.slice(from, from + columns));
        }
      }
    }
  });

  it('is refused for an odd head size', () => {
    const file = GgufFile.open(fixture('tiny_llama.gguf'));
    expect(() => file.read('blk.0.attn_q.weight', { permutedHeads: 3 })).toThrow(FormatError);
    expect(() => file.read('blk.0.attn_q.weight', { permutedHeads: -4 })).toThrow(
      'readGguf: permutedHeads must be >= 0, got -4',
    );
  });

  it('is undone for the rows of a matrix and the numbers of a vector, and refused for others', () => {
    const path = join(mkdtempSync(join(tmpdir(), 'balora-gguf-')), 'rows.gguf');
    writeGguf(path, { 'general.architecture': 'llama' }, [
      { name: 'number', shape: [], data: Float32Array.of(1) },
      { name: 'vector', shape: [8], data: Float32Array.of(0, 1, 2, 3, 4, 5, 6, 7) },
      { name: 'blocks', shape: [32], data: new Uint8Array(34), type: 8 }, // Q8_0
    ]);
    using file = GgufFile.open(path);
    const read = (name: string) => file.read(name, { permutedHeads: 2 });
    expect(() => read('number')).toThrow(/number: a single number has no rows/);
    expect(read('vector').dataSync()).toEqual(Float32Array.of(0, 2, 1, 3, 4, 6, 5, 7));
    expect(() => read('blocks')).toThrow(/blocks: a vector in blocks of \w+ has no rows/);
    rmSync(dirname(path), { recursive: true });
  });
});

describe('metadata', () => {
  const folder = mkdtempSync(join(tmpdir(), 'balora-gguf-'));
  afterAll(() => rmSync(folder, { recursive: true }));

  it('has arrays of numbers as typed arrays of the type in the file', () => {
    using file = GgufFile.open(fixture('metadata_arrays.gguf'));
    const types = { u64: BigUint64Array, i32: Int32Array, f32: Float32Array, str: Array };
    for (const [name, type] of Object.entries(types)) {
      const key = `test.arr.${name}`;
      expect(file.metadata.get(key), key).toBeInstanceOf(type);
    }
    expect([...file.metadata.values()]).toHaveLength(file.metadata.size);
    expect(file.metadata.get('none')).toBeUndefined();
  });

  it('is read from the file when it is asked for, however large it is', () => {
    const path = join(folder, 'large.gguf');
    const count = 2 ** 27;
    writeGguf(path, { 'a.numbers': new Uint8Array(count).fill(3), 'a.name': 'short' }, []);
    const before = process.memoryUsage();
    using file = GgufFile.open(path);
    expect(file.metadata.get('a.name')).toBe('short');
    expect(file.metadataTypes.get('a.numbers')).toBe('ARRAY UINT8');
    const { heapUsed, arrayBuffers } = process.memoryUsage();
    expect(heapUsed - before.heapUsed).toBeLessThan(2 ** 24);
    expect(arrayBuffers - before.arrayBuffers).toBeLessThan(2 ** 24);
    const numbers = file.metadata.get('a.numbers') as Uint8Array;
    expect([numbers.constructor, numbers.length, numbers[count - 1]]).toEqual([
      Uint8Array,
      count,
      3,
    ]);
    expect(file.metadata.get('a.numbers')).toBe(numbers);
  });

  it('with a text that is longer than any has is an error that names the key, where it is asked for', () => {
    const path = join(folder, 'text.gguf');
    writeGguf(
      path,
      {
        'a.text': 'x'.repeat(2 ** 26 + 1),
        'a.list': ['y'.repeat(2 ** 25), 'y'.repeat(2 ** 25 + 1)],
      },
      [],
    );
    using file = GgufFile.open(path);
    for (const key of ['a.text', 'a.list']) {
      expect(() => file.metadata.get(key)).toThrow(
        new RegExp(`text\\.gguf at byte \\d+: ${key}: \\d+ bytes .* at most 67108864 are read`),
      );
      expect(() => file.metadata.get(key)).toThrow(FormatError);
    }
  });

  it('that was not read is an error after the file is closed', () => {
    const file = GgufFile.open(fixture('metadata_arrays.gguf'));
    const read = file.metadata.get('test.u64');
    file.close();
    expect(file.metadata.get('test.u64')).toBe(read);
    expect(() => file.metadata.get('test.arr.str')).toThrow(/closed/);
  });
});

it('permutedHeads that is no number of heads is refused', () => {
  using file = GgufFile.open(fixture('tiny_llama.gguf'));
  for (const permutedHeads of [
    -1,
    -(2 ** 31),
    1.5,
    Number.NaN,
    Number.POSITIVE_INFINITY,
    1e300,
    2 ** 53,
  ]) {
    expect(() => file.read('blk.0.attn_q.weight', { permutedHeads })).toThrow(
      /permutedHeads must be >= 0|expected an integer|not whole pairs in/,
    );
  }
});

describe('bad input', () => {
  it('is named where it is a file that does not exist or has another format', () => {
    expect(() => GgufFile.open('/none.gguf')).toThrow(FormatError);
    const other = fixture('gguf_files.json');
    expect(() => GgufFile.open(other)).toThrow(
      expect.objectContaining({ code: 'ERR_FORMAT', path: other, offset: 0 }),
    );
  });

  it('is named where it is a tensor that does not exist, or a closed file', () => {
    const file = GgufFile.open(fixture('kquants.gguf'));
    expect(() => file.read('nope')).toThrow(/kquants\.gguf: holds no tensor nope/);
    const tensor = file.read('q4_k.weight');
    file.close();
    expect(() => file.read('q4_k.weight')).toThrow(/closed/);
    expect(tensor.dataSync().length).toBe(3 * 512);
  });

  it('is refused where it is the handle of another format', async () => {
    const { native } = await import('../../lib/native.ts');
    const file = native.openSafetensors(fixture('kquants.gguf.values.safetensors'));
    expect(() => native.ggufHeader(file)).toThrow(/open file of this format/);
    expect(() => native.ggufHeader(17)).toThrow(/open file of this format/);
  });

  it('is refused where it is a dtype that blocks cannot be decoded to', async () => {
    const { native } = await import('../../lib/native.ts');
    const file = native.openGguf(fixture('kquants.gguf'));
    expect(() => native.readGguf(file, 'q4_k.weight', 'i32', 0, false)).toThrow(UnsupportedError);
    await synchronize();
  });
});
