// safetensors through the library: round trips of every dtype, aliasing, conversion, damage, atomic writing.
import { execFileSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import { ArgumentError, FormatError, NativeError, UnsupportedError } from '../../lib/errors.ts';
import {
  loadSafetensors,
  SafetensorsFile,
  SafetensorsWriter,
  saveSafetensors,
} from '../../lib/io/safetensors.ts';
import { embedding, slice } from '../../lib/ops/index.ts';
import { synchronize } from '../../lib/runtime.ts';
import { type DType, tensor } from '../../lib/tensor.ts';
import { values } from '../support/compare.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-io-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
const path = (name: string): string => join(folder, name);

/** Writes a safetensors file from a header and bytes, for damaged files. */
function write(name: string, header: object | string, data: Uint8Array): string {
  const text = typeof header === 'string' ? header : JSON.stringify(header);
  const length = new BigUint64Array([BigInt(Buffer.byteLength(text))]);
  writeFileSync(
    path(name),
    Buffer.concat([new Uint8Array(length.buffer), Buffer.from(text), data]),
  );
  return path(name);
}

describe('a round trip', () => {
  it('keeps names that objects have of their own, of tensors and in metadata', async () => {
    const names = ['__proto__', 'constructor', 'toString'];
    const record = <T>(value: T): Record<string, T> =>
      Object.fromEntries(names.map((name) => [name, value]));
    await saveSafetensors(path('names.safetensors'), record(tensor([1, 2])), record('text'));
    const loaded = await loadSafetensors(path('names.safetensors'));
    expect(Object.keys(loaded.tensors).sort()).toEqual([...names].sort());
    expect(Object.entries(loaded.metadata).sort()).toEqual(
      names.map((name) => [name, 'text']).sort(),
    );
    expect(Object.getPrototypeOf(loaded.tensors)).toBe(Object.prototype);
  });

  it('keeps names, dtypes, shapes, values and metadata', async () => {
    const dtypes: DType[] = ['f32', 'bf16', 'f16', 'f64', 'i32', 'i64', 'u8'];
    const tensors = Object.fromEntries(
      dtypes.map((dtype) => [
        `a.${dtype}`,
        tensor(
          [
            [1, 2, 3],
            [4, 5, 6],
          ],
          { dtype },
        ),
      ]),
    );
    await saveSafetensors(
      path('all'),
      { ...tensors, empty: tensor(new Float32Array(0), { shape: [0, 3] }) },
      { format: 'pt' },
    );
    const loaded = await loadSafetensors(path('all'));
    expect(loaded.metadata).toEqual({ format: 'pt' });
    expect(Object.keys(loaded.tensors)).toHaveLength(dtypes.length + 1);
    for (const dtype of dtypes) {
      const found = loaded.tensors[`a.${dtype}`];
      expect(found?.dtype).toBe(dtype);
      expect(found?.shape).toEqual([2, 3]);
      expect(Array.from(found?.dataSync() ?? [], Number)).toEqual([1, 2, 3, 4, 5, 6]);
    }
    expect(loaded.tensors.empty?.shape).toEqual([0, 3]);
  });

  it('writes the bytes of the reference: sorted names, padding to 8', async () => {
    await saveSafetensors(path('bytes'), { b: tensor([2]), a: tensor([1]) }, { format: 'pt' });
    const bytes = readFileSync(path('bytes'));
    const text = `{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}`;
    const padded = text.padEnd(Math.ceil(text.length / 8) * 8);
    expect(Number(bytes.readBigUInt64LE(0))).toBe(padded.length);
    expect(bytes.subarray(8, 8 + padded.length).toString()).toBe(padded);
  });
});

describe('reading', () => {
  it('maps the file where requested, converts otherwise', async () => {
    await saveSafetensors(path('w'), { w: tensor([1.5, -2, 3]) });
    const file = SafetensorsFile.open(path('w'));
    const shared = file.read('w', { share: true });
    const wide = file.read('w', { dtype: 'f64' });
    const narrow = file.read('w', { dtype: 'bf16', share: true });
    file.close();
    rmSync(path('w'));
    expect(shared.dataSync()).toEqual(new Float32Array([1.5, -2, 3]));
    expect(wide.dtype).toBe('f64');
    expect(narrow.dtype).toBe('bf16');
    expect(narrow.dataSync()).toEqual(new Float32Array([1.5, -2, 3]));
  });

  it('copies data that are not aligned', () => {
    const data = new Uint8Array(Float32Array.of(7, 8).buffer);
    const odd = write('odd', '{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} ', data);
    expect(SafetensorsFile.open(odd).read('w', { share: true }).dataSync()).toEqual(
      Float32Array.of(7, 8),
    );
  });

  it.each([true, false])('finds NaN in weights, share %s', async (share) => {
    await saveSafetensors(path('nan'), { good: tensor([1]), bad: tensor([1, 2, Number.NaN]) });
    const file = SafetensorsFile.open(path('nan'));
    file.read('good', { checkFinite: true, share });
    await synchronize();
    file.read('bad', { checkFinite: true, share });
    const failure = await synchronize().catch((error: unknown) => error);
    expect(failure).toBeInstanceOf(FormatError);
    expect(String(failure)).toMatch(/nan at byte \d+: bad: element 2 is NaN or infinite/);
  });

  it('names a file or tensor that it cannot read', () => {
    const f8 = write(
      'f8',
      { w: { dtype: 'F8_E4M3', shape: [2], data_offsets: [0, 2] } },
      new Uint8Array(2),
    );
    const file = SafetensorsFile.open(f8);
    expect(file.tensors.get('w')?.dtype).toBe('F8_E4M3');
    expect(() => file.read('w')).toThrow(UnsupportedError);
    expect(() => file.read('w', { dtype: 'f32' })).toThrow(
      /w of dtype F8_E4M3 cannot be read as f32/,
    );
    expect(() => file.read('v')).toThrow(/holds no tensor v/);
  });

  it('names the field where a file is truncated', () => {
    const cut = write(
      'cut',
      { w: { dtype: 'F32', shape: [2], data_offsets: [0, 8] } },
      new Uint8Array(7),
    );
    expect(() => SafetensorsFile.open(cut)).toThrow(
      expect.objectContaining({ code: 'ERR_FORMAT', path: cut, offset: 9 }),
    );
    expect(() => SafetensorsFile.open(cut)).toThrow(/w\.data_offsets ends at 8 of 7/);
  });
});

describe('writing', () => {
  it('leaves no files behind where it is abandoned or fails', async () => {
    const before = readdirSync(folder).length;
    const writer = new SafetensorsWriter(path('half'), { w: { dtype: 'f32', shape: [1] } });
    expect(readdirSync(folder).length).toBe(before + 1);
    await expect(writer.commit()).rejects.toThrow(/w was never written/);
    expect(readdirSync(folder).length).toBe(before);
    await expect(saveSafetensors(path('no/such/folder'), { w: tensor([1]) })).rejects.toThrow(
      NativeError,
    );
    await expect(saveSafetensors(path('x'), { __metadata__: tensor([1]) })).rejects.toThrow(
      ArgumentError,
    );
    expect(readdirSync(folder).length).toBe(before);
  });

  it('is abandoned after the ops before, and does not report their failure, which the next sync does', async () => {
    const before = readdirSync(folder).length;
    const writer = new SafetensorsWriter(path('given up'), { w: { dtype: 'f32', shape: [1] } });
    embedding(tensor([[1]]), tensor([7], { dtype: 'i32' }));
    await writer.abandon();
    expect(readdirSync(folder).length).toBe(before);
    await writer.abandon();
    await expect(synchronize()).rejects.toThrow(/^embedding: .*7/);
    await synchronize();
  });

  it('names the sizes where a file may not grow that large', () => {
    const place = mkdtempSync(join(folder, 'limited-'));
    const program = fileURLToPath(new URL('./programs/save_large.mjs', import.meta.url));
    // 512 blocks of 1 KiB (512 bytes in some shells); the file needs 1 MiB and a header.
    const command = `ulimit -f 512; exec "${process.execPath}" "${program}"`;
    const out = execFileSync('bash', ['-c', command], { cwd: place, encoding: 'utf8' });
    const { code, message, files } = JSON.parse(out) as {
      code: string;
      message: string;
      files: string[];
    };
    expect(code).toBe('ERR_DISK_FULL');
    expect(message).toMatch(
      /big: cannot be written: .*the file needs 10486\d\d bytes, \d+ are free/,
    );
    expect(files).toEqual([]);
  });
});

it.runIf(existsSync('/proc/self/smaps'))(
  'pages of a file whose values were converted no longer count to the process',
  async () => {
    const name = path('converted.safetensors');
    const count = 2 ** 20;
    await saveSafetensors(name, {
      w: tensor(Float32Array.from({ length: count }, (_, i) => i % 97)),
    });
    const resident = (): number => {
      const map = readFileSync('/proc/self/smaps', 'utf8').split(name)[1] as string;
      return 1024 * Number(/^Rss: +(\d+) kB$/m.exec(map)?.[1]);
    };
    const file = SafetensorsFile.open(name);
    const converted = file.read('w', { dtype: 'bf16', checkFinite: true });
    await synchronize();
    expect(values(slice(converted, 0, { start: 95, stop: 99 }))).toEqual(
      Float64Array.of(95, 96, 0, 1),
    );
    expect(resident()).toBeLessThan(2 ** 18);
    const aliased = file.read('w', { dtype: 'f32', share: true, checkFinite: true });
    await synchronize();
    expect(resident()).toBeGreaterThan(4 * count * 0.9);
    for (const one of [converted, aliased]) one.dispose();
    file.close();
  },
);
