// GGUF files as they are written, read by GgufFile and by @huggingface/gguf: metadata of every type, encoded and copied tensors.
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gguf } from '@huggingface/gguf';
import { afterAll, describe, expect, it } from 'vitest';
import { GgufFile } from '../../lib/io/gguf.ts';
import { type GgufTypedValue, GgufWriter } from '../../lib/io/gguf_writer.ts';
import { randn } from '../../lib/ops/index.ts';
import { synchronize } from '../../lib/runtime.ts';
import { tensor } from '../../lib/tensor.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-gguf-writer-'));
afterAll(() => rmSync(folder, { recursive: true }));
const fixture = (name: string): string =>
  fileURLToPath(new URL(`../fixtures/quant/${name}`, import.meta.url));

const kMetadata = new Map<string, GgufTypedValue>([
  ['general.architecture', { type: 'STRING', value: 'llama' }],
  ['general.alignment', { type: 'UINT32', value: 64 }],
  ['a.count', { type: 'UINT32', value: 2 ** 32 - 1 }],
  ['a.number', { type: 'FLOAT32', value: 0.5 }],
  ['a.flag', { type: 'BOOL', value: true }],
  ['a.texts', { type: 'ARRAY STRING', value: ['é', '', 'x'] }],
  ['a.ids', { type: 'ARRAY INT32', value: [-1, 7] }],
  ['a.scores', { type: 'ARRAY FLOAT32', value: [0.25, -2] }],
]);

const plain = (value: unknown): unknown =>
  ArrayBuffer.isView(value) ? Array.from(value as Int32Array) : value;

describe('a file that was written', () => {
  it('has the metadata and the tensors, at the alignment', async () => {
    const path = join(folder, 'a.gguf');
    const x = randn([3, 64], { seed: 1 });
    const specs = new Map(
      ['F32', 'BF16', 'F16', 'Q8_0', 'Q5_0', 'Q5_1'].map((type) => [
        type,
        { type, shape: [3, 64] },
      ]),
    );
    const writer = new GgufWriter(path, kMetadata, specs);
    const errors = [...specs.keys()]
      .reverse()
      .map((name) => ({ name, sum: writer.write(name, x) }));
    await synchronize();
    expect(existsSync(path)).toBe(false);
    await writer.commit();
    expect(readdirSync(folder)).toEqual(['a.gguf']);

    const file = GgufFile.open(path);
    expect([...file.metadata].map(([key, value]) => [key, plain(value)])).toEqual(
      Array.from(kMetadata, ([key, { value }]) => [key, value]),
    );
    expect(file.alignment).toBe(64);
    const exact = x.dataSync() as Float32Array;
    for (const { name, sum } of errors) {
      expect(file.tensors.get(name), name).toMatchObject({ dtype: name, shape: [3, 64] });
      const read = file.read(name).dataSync() as Float32Array;
      const squares = exact.reduce(
        (total, value, i) => total + (value - (read[i] as number)) ** 2,
        0,
      );
      expect(sum.dataSync()[0], name).toBeCloseTo(squares, 9);
      expect(Math.sqrt(squares / exact.length)).toBeLessThan(name.startsWith('Q5') ? 0.05 : 0.01);
    }
    expect(errors.find(({ name }) => name === 'F32')?.sum.dataSync()[0]).toBe(0);
    file.close();

    const other = await gguf(path, { allowLocalFile: true });
    expect(other.metadata).toMatchObject({ 'a.count': 2 ** 32 - 1, 'a.texts': ['é', '', 'x'] });
    expect(other.tensorInfos.map(({ name }) => name)).toEqual([...specs.keys()]);
    for (const { offset } of other.tensorInfos) expect(Number(offset) % 64).toBe(0);
  });

  it.each(['tiny_llama.gguf', 'metadata_arrays.gguf', 'kquants.gguf', 'align64.gguf'])(
    'keeps every entry and the bytes of every tensor of %s',
    async (name) => {
      const source = GgufFile.open(fixture(name));
      const path = join(folder, `copy-${name}`);
      const entries = new Map([...source.metadata.keys()].map((key) => [key, source.entry(key)]));
      const specs = new Map(
        Array.from(source.tensors.values(), ({ name: tensorName, dtype, shape }) => [
          tensorName,
          { type: dtype, shape },
        ]),
      );
      const writer = new GgufWriter(path, entries, specs);
      for (const tensorName of specs.keys()) writer.copy(tensorName, source);
      await writer.commit();
      const copy = GgufFile.open(path);
      expect([...copy.metadataTypes]).toEqual([...source.metadataTypes]);
      for (const key of entries.keys()) expect(copy.entry(key), key).toEqual(source.entry(key));
      for (const tensorName of specs.keys()) {
        expect(copy.read(tensorName).dataSync(), tensorName).toEqual(
          source.read(tensorName).dataSync(),
        );
      }
      for (const file of [copy, source]) file.close();
    },
  );
});

describe('what cannot be written', () => {
  const make = (name: string, type: string, shape = [2, 32]) =>
    new GgufWriter(join(folder, name), new Map(), new Map([['x', { type, shape }]]));

  it.each([
    ['F16', 65520, /bad\.gguf: element 33 of x, 65520, has no value in F16; write F32 or BF16/],
    ['Q8_0', Number.NaN, /element 33 of x, -?nan, has no value in Q8_0/],
    ['F32', Number.POSITIVE_INFINITY, /element 33 of x, inf, has no value in F32/],
  ])(
    '%s has no value for %d, which is named, and nothing is left',
    async (type, value, message) => {
      const before = readdirSync(folder);
      const values = new Float32Array(64);
      values[33] = value;
      const writer = make('bad.gguf', type);
      writer.write('x', tensor(values, { shape: [2, 32] }));
      await expect(writer.commit()).rejects.toThrow(message);
      await synchronize();
      expect(readdirSync(folder)).toEqual(before);
    },
  );

  it('is refused at the call: other sizes, types without an encoder, rows that are no blocks, keys that there are not', async () => {
    const writer = make('size.gguf', 'F32');
    expect(() => writer.write('x', randn([3], { seed: 1 }))).toThrow(
      'gguf: x needs 64 values in f32',
    );
    expect(() => writer.write('y', randn([3], { seed: 1 }))).toThrow('gguf: y was not announced');
    await writer.abandon();
    const other = make('type.gguf', 'Q4_1');
    expect(() => other.write('x', randn([2, 32], { seed: 1 }))).toThrow(
      /x cannot be written as Q4_1; supported: F32/,
    );
    await other.abandon();
    expect(() => make('rows.gguf', 'Q8_0', [2, 33])).toThrow(/no whole blocks of 32/);
    expect(() => make('name.gguf', 'Q9')).toThrow('Q9 is not a ggml type');
    const source = GgufFile.open(fixture('tiny_llama.gguf'));
    expect(() => source.entry('none')).toThrow(/the metadata have no none/);
    source.close();
  });
});
