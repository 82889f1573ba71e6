/**
 * Weights that stay in the blocks of a GGUF file, of every type that is decoded: what is computed with them on the CPU is what is computed
 * with their values. Models of such files are in test/golden/nf4.test.ts, the kernels of a GPU in test/device/products/encoded_test.cc.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { GgufFile } from '../../lib/io/gguf.ts';
import { embedding, linear, linearGroup, randn, rowNorm } from '../../lib/ops/index.ts';
import { memoryStats, synchronize } from '../../lib/runtime.ts';
import { scope, type Tensor, tensor } from '../../lib/tensor.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { kFloatTypes, roundingOf, values } from '../support/compare.ts';
import { relativeError } from '../support/fixtures.ts';
import { writeGguf } from '../support/write_gguf.ts';

/** ggml's number of each type, and the elements and bytes of a block. */
const kTypes: Readonly<Record<string, [id: number, elements: number, bytes: number]>> = {
  F32: [0, 1, 4],
  F16: [1, 1, 2],
  BF16: [30, 1, 2],
  Q4_0: [2, 32, 18],
  Q4_1: [3, 32, 20],
  Q5_0: [6, 32, 22],
  Q5_1: [7, 32, 24],
  Q8_0: [8, 32, 34],
  Q2_K: [10, 256, 84],
  Q3_K: [11, 256, 110],
  Q4_K: [12, 256, 144],
  Q5_K: [13, 256, 176],
  Q6_K: [14, 256, 210],
  IQ4_NL: [20, 32, 18],
  IQ4_XS: [23, 256, 136],
};

/** Sizes that no tile of a product divides; the inputs of a type of single elements are odd. */
const kOut = 75;
const inputsOf = (elements: number): number => (elements === 1 ? 301 : elements === 32 ? 352 : 768);

const folder = mkdtempSync(join(tmpdir(), 'balora-gguf-blocks-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** Bytes below 64: what is read of them as a number of 16 or 32 bits is positive and below 2. */
function bytesOf(count: number): Uint8Array {
  let state = 12345;
  return Uint8Array.from({ length: count }, () => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 16) & 0x3f;
  });
}

const path = join(folder, 'all.gguf');
writeGguf(
  path,
  { 'general.architecture': 'none' },
  Object.entries(kTypes).map(([name, [type, elements, bytes]]) => {
    const columns = inputsOf(elements);
    return {
      ...{ name, type, shape: [kOut, columns] },
      data: bytesOf((kOut * columns * bytes) / elements),
    };
  }),
);

it.each(['f32', 'bf16'] as const)(
  'no copy of a weight is kept beside its blocks, decoded to %s',
  async (dtype) => {
    using file = GgufFile.open(path);
    await collectGarbage(); // tensors of earlier tests, which would be collected during this one
    const before = memoryStats().derivedBytes;
    for (const type of Object.keys(kTypes)) {
      const weight = file.readBlocks(type, { dtype });
      scope(() => {
        const x = randn([70, weight.shape[1] as number], { seed: 1, dtype });
        x.requiresGrad = true;
        linear(x, weight).backward(randn([70, kOut], { seed: 2, dtype }));
      });
      await synchronize();
      expect(memoryStats().derivedBytes, type).toBe(before);
      weight.dispose();
    }
  },
);

describe.each(Object.keys(kTypes))('%s', (type) => {
  const [, elements] = kTypes[type] as [number, number, number];
  const inputs = inputsOf(elements);

  it.each(kFloatTypes)('decoded to %s', (dtype) => {
    using file = GgufFile.open(path);
    scope(() => {
      const blocks = file.readBlocks(type, { dtype });
      const dense = file.read(type, { dtype });
      expect([blocks.encoding, blocks.dtype, blocks.shape]).toEqual([type, dtype, [kOut, inputs]]);
      expect(values(blocks.to(dtype))).toEqual(values(dense));
      const ids = tensor(Int32Array.of(kOut - 1, 0, 5, 5));
      expect(values(embedding(blocks, ids))).toEqual(values(embedding(dense, ids)));
      // Sums in another order, and one rounding.
      const close = (found: Tensor, wanted: Tensor, what: string): void => {
        const bound = dtype === 'f64' ? 1e-13 : 2e-6 + (dtype === 'f32' ? 0 : roundingOf(dtype));
        expect(relativeError(values(found), values(wanted)), what).toBeLessThanOrEqual(bound);
      };
      for (const rows of [1, 7, 70]) {
        const run = (weight: Tensor): [y: Tensor, dx: Tensor] => {
          const x = randn([rows, inputs], { seed: 1, deviation: 0.01, dtype });
          x.requiresGrad = true;
          const y = linear(x, weight);
          y.backward(randn([rows, kOut], { seed: 2, deviation: 0.01, dtype }));
          return [y, x.grad as Tensor];
        };
        const [[y, dx], [wantedY, wantedDx]] = [run(blocks), run(dense)];
        close(y, wantedY, `y of ${rows} rows`);
        close(dx, wantedDx, `dx of ${rows} rows`);
      }
      const wide = dtype === 'f64' ? 'f64' : 'f32';
      const part = {
        a: randn([4, inputs], { seed: 3, deviation: 0.1, dtype: wide }),
        b: randn([kOut, 4], { seed: 4, deviation: 0.1, dtype: wide }),
      };
      const x = randn([9, inputs], { seed: 5, deviation: 0.01, dtype });
      const group = (weight: Tensor): Tensor[] =>
        linearGroup(x, [{ weight, lowRank: [part] }, { weight: dense }]);
      const wanted = group(dense);
      for (const [i, y] of group(blocks).entries()) close(y, wanted[i] as Tensor, `linear ${i}`);
      close(rowNorm(blocks, [part]), rowNorm(dense, [part]), 'norms of rows');
    });
  });
});
