// Depending on their number, threads divide a product by rows, by columns or by both, and pack its weights separately or together;
// the order of sums is always the same.
import { spawnSync } from 'node:child_process';
import { afterEach, describe, expect, it } from 'vitest';
import { deviceInfo } from '../../lib/device.ts';
import { headLosses, linearGroup } from '../../lib/ops/index.ts';
import { getNumThreads, setNumThreads } from '../../lib/runtime.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { values } from '../support/compare.ts';
import { randomTensor } from '../support/gradcheck.ts';

const compiled = (entry: string): string => new URL(`../../dist/${entry}.js`, import.meta.url).href;
const kBefore = getNumThreads();
const kThreads = [2, 3, 5, 6, 16];

afterEach(() => setNumThreads(kBefore));

function linears(rows: number, ins: number): Float64Array[] {
  const x = randomTensor([rows, ins], { seed: 1, dtype: 'bf16', requiresGrad: true });
  const master = (shape: number[], seed: number) =>
    randomTensor(shape, { seed, dtype: 'f32', requiresGrad: true });
  const operands = [96, 33].map((outs, i) => ({
    weight: randomTensor([outs, ins], { seed: 2 + i, dtype: 'bf16' }),
    lowRank: [{ a: master([8, ins], 4 + i), b: master([outs, 8], 6 + i), scale: 0.5 }],
  }));
  const results = linearGroup(x, operands);
  results.forEach((y, i) => {
    y.backward(randomTensor([rows, y.shape[1] as number], { seed: 8 + i, dtype: 'bf16' }), {
      retainGraph: i + 1 < results.length,
    });
  });
  const factors = operands.flatMap(({ lowRank }) => lowRank.flatMap(({ a, b }) => [a, b]));
  return [...results, x.grad as Tensor, ...factors.map(({ grad }) => grad as Tensor)].map(values);
}

function head(rows: number, vocabulary: number, channels: number): Float64Array[] {
  const hidden = randomTensor([rows, channels], { seed: 1, dtype: 'bf16', requiresGrad: true });
  const { loss, sums } = headLosses({
    hidden,
    teacher: randomTensor([rows, channels], { seed: 2, dtype: 'bf16' }),
    head: randomTensor([vocabulary, channels], { seed: 3, dtype: 'bf16' }),
    targets: tensor(Int32Array.from({ length: rows }, (_, i) => (i * 37) % vocabulary)),
    ...{ taskScale: 1, consistencyScale: 0.5, diversityScale: 0.25, entropyTopK: 7 },
    chunkBytes: 150 * vocabulary * 8,
  });
  loss.backward();
  return [values(sums), values(hidden.grad as Tensor)];
}

it('a number of threads out of range is refused', () => {
  expect(() => setNumThreads(0)).toThrow('setNumThreads: need at least 1, got 0');
  expect(() => setNumThreads(100_000)).toThrow('setNumThreads: at most 1024, got 100000');
  expect(getNumThreads()).toBe(kBefore);
});

it.skipIf(process.platform !== 'linux')(
  'a number of threads that the system denies is refused',
  () => {
    const source = `
    import { getNumThreads, setNumThreads } from '${compiled('index')}';
    import { matmul, ones } from '${compiled('ops/index')}';
    const before = getNumThreads();
    try { setNumThreads(1000); } catch ({ code, message }) { console.log(code, message); }
    console.log(getNumThreads() === before, matmul(ones([64, 64]), ones([64, 64])).dataSync()[0]);`;
    const node = [process.execPath, '--input-type=module', '-e', `"$0"`].join(' ');
    // Each thread reserves 8 MiB of addresses for its stack.
    const { stdout } = spawnSync('bash', ['-c', `ulimit -v 6000000 && exec ${node}`, source], {
      encoding: 'utf8',
    });
    expect(stdout).toMatch(
      /^ERR_UNSUPPORTED setNumThreads: the system gives this process no 1000 threads .*\ntrue 64\n$/,
    );
  },
);

// On AVX2, sums of widened bf16 depend on the rows that a thread has.
const isAvx2 = deviceInfo('cpu').instructions === 'avx2';

describe.skipIf(isAvx2)('in bf16, any number of threads gives the same bits', () => {
  for (const [rows, ins] of [
    [3, 64],
    [70, 40],
    [330, 576],
  ] as const) {
    it(`linears with low-rank parts, x (${rows},${ins})`, () => {
      setNumThreads(1);
      const alone = linears(rows, ins);
      for (const threads of kThreads) {
        setNumThreads(threads);
        expect(linears(rows, ins), `${threads} threads`).toEqual(alone);
      }
    });
  }

  for (const [rows, vocabulary, channels] of [
    [1, 40, 64],
    [45, 1000, 40],
    [333, 2051, 96],
  ] as const) {
    it(`head and losses, h (${rows},${channels}), w (${vocabulary},${channels})`, () => {
      setNumThreads(1);
      const alone = head(rows, vocabulary, channels);
      for (const threads of kThreads) {
        setNumThreads(threads);
        expect(head(rows, vocabulary, channels), `${threads} threads`).toEqual(alone);
      }
    });
  }
});
