// The GGUF file of bf16 weights that llama.cpp is measured with: the metadata and the values of the file it was made from.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { writeBf16Gguf } from '../../../bench/harness/bf16_gguf.ts';
import { llamaObstacle } from '../../../bench/harness/llama.ts';
import { GgufFile } from '../../../lib/io/index.ts';
import { writeGguf } from '../../support/write_gguf.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-bf16-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const numbers = (count: number): Float32Array =>
  Float32Array.from({ length: count }, (_, i) => Math.sin(i + 1) / 3);

it('has the metadata, norms in f32, and matrices rounded to bf16', async () => {
  const [from, to] = [join(folder, 'from.gguf'), join(folder, 'to.gguf')];
  writeGguf(
    from,
    {
      'general.architecture': 'llama',
      'general.file_type': 3,
      'llama.rope.freq_base': { f32: 1e4 },
      'tokenizer.ggml.add_bos_token': true,
      'tokenizer.ggml.tokens': ['a', 'é', ''],
      'tokenizer.ggml.token_type': [1, 2, 3],
      'tokenizer.ggml.scores': Float32Array.of(0.5, -1, 2),
    },
    [
      { name: 'norm.weight', shape: [5], data: numbers(5) },
      { name: 'w.weight', shape: [3, 7], data: numbers(21) },
    ],
  );
  await writeBf16Gguf(from, to);
  using before = GgufFile.open(from);
  using after = GgufFile.open(to);
  expect(new Map(after.metadataTypes)).toEqual(new Map(before.metadataTypes));
  for (const [key, value] of before.metadata) {
    expect(after.metadata.get(key), key).toEqual(key === 'general.file_type' ? 32 : value);
  }
  const shapes = ({ tensors }: GgufFile) => [...tensors].map(([name, { shape }]) => [name, shape]);
  expect(shapes(after)).toEqual(shapes(before));
  for (const [name, dtype] of [
    ['norm.weight', 'f32'],
    ['w.weight', 'bf16'],
  ] as const) {
    using found = after.read(name);
    using expected = before.read(name, { dtype });
    expect(await found.data(), name).toEqual(await expected.data());
  }
});

it('is not made where llama.cpp cannot have the same weights', () => {
  expect(llamaObstacle(undefined, 'bf16')).toMatch(/needs --model, a GGUF file/);
  expect(llamaObstacle(folder, 'f32')).toMatch(/--dtype bf16/);
});
