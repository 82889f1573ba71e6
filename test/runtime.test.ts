import { expect, test } from 'vitest';
import { deviceInfo } from '../lib/device.ts';
import { AutoModelForCausalLM } from '../lib/models/auto.ts';
import { exp, matmul, randn, swiglu, zeros } from '../lib/ops/index.ts';
import {
  memoryStats,
  opTimes,
  resetOpTimes,
  synchronize,
  withMemoryTag,
  withPhase,
} from '../lib/runtime.ts';
import { scope, type Tensor, tensor } from '../lib/tensor.ts';
import { fixturePath } from './support/fixtures.ts';

test('opTimes counts the calls and seconds of each op in the phase in which it was enqueued', async () => {
  await synchronize();
  resetOpTimes();
  const x = tensor([1, 2, 3]);
  withPhase('outer', () => {
    withPhase('inner', () => exp(x).dispose());
    exp(x).dispose();
    exp(x).dispose();
  });
  await synchronize();
  const calls = Object.fromEntries(
    opTimes()
      .filter(({ phase }) => phase !== '')
      .map(({ phase, op, calls, seconds }) => {
        expect(seconds).toBeGreaterThan(0);
        return [`${phase} ${op}`, calls];
      }),
  );
  expect(calls).toEqual({ 'inner exp': 1, 'outer exp': 2 });
  x.dispose();
});

test('opTimes names the implementation that ran, one of those that deviceInfo lists for the processor', async () => {
  await synchronize();
  resetOpTimes();
  const [gate, up] = [1, 2].map((seed) => randn([2, 20], { seed, dtype: 'bf16' }));
  swiglu(gate as Tensor, up as Tensor).dispose();
  swiglu(exp(gate as Tensor), up as Tensor).dispose();
  await synchronize();
  const [ran, ...others] = opTimes().filter(({ op }) => op === 'gated');
  const { implementations } = deviceInfo('cpu');
  expect(others).toEqual([]);
  expect(ran?.implementation).toBe(implementations.gated_forward?.[0]);
  expect(implementations.gated_forward).toContain('any');
  expect(opTimes().find(({ op }) => op === 'exp')?.implementation).toBe('');
});

test('a phase ends with its body, also where that throws', () => {
  expect(() =>
    withPhase('broken', () => {
      throw new Error('stop');
    }),
  ).toThrow('stop');
  resetOpTimes();
  const x = tensor([1]);
  exp(x).dispose();
  x.dispose();
  expect(opTimes().some(({ phase }) => phase === 'broken')).toBe(false);
});

/** Live bytes with a tag, after all enqueued ops have run. */
async function tagged(name: string): Promise<number> {
  await synchronize();
  return memoryStats().byTag[name] ?? 0;
}

test('memory is counted under the innermost tag at its allocation, until it is freed', async () => {
  const outer = withMemoryTag('outer', () => {
    const inner = withMemoryTag('inner', () => zeros([1000]));
    return [inner, zeros([500])];
  });
  const untagged = zeros([250]);
  expect([await tagged('outer'), await tagged('inner')]).toEqual([2000, 4000]);
  outer[0]?.dispose();
  expect([await tagged('outer'), await tagged('inner')]).toEqual([2000, 0]);
  outer[1]?.dispose();
  untagged.dispose();
  expect(await tagged('outer')).toBe(0);
});

test('a tag ends with its body, also where that throws', async () => {
  expect(() =>
    withMemoryTag('broken', () => {
      throw new Error('stop');
    }),
  ).toThrow('stop');
  const x = zeros([1000]);
  expect(await tagged('broken')).toBe(0);
  x.dispose();
});

test('the tag weights counts the bytes of a loaded model, except those mapped from its file', async () => {
  const load = (dtype: 'f32' | 'bf16') =>
    AutoModelForCausalLM.fromPretrained(fixturePath('architectures/llama-untied-gqa/model'), {
      dtype,
    });
  const before = await tagged('weights');
  const converted = await load('bf16');
  const values = converted.parameters().reduce((sum, { size }) => sum + size, 0);
  expect(values).toBeGreaterThan(10_000);
  expect((await tagged('weights')) - before).toBe(2 * values);
  const mapped = await load('f32'); // the dtype of the file, which is mapped without memory of the engine
  expect((await tagged('weights')) - before).toBe(2 * values);
  mapped.dispose();
  converted.dispose();
  expect(await tagged('weights')).toBe(before);
});

test('a call only enqueues: it returns long before a chain of large products has run', async () => {
  const size = 768;
  const product = () =>
    scope(() => {
      let x = randn([size, size], { seed: 1, deviation: 1 / Math.sqrt(size) });
      const w = randn([size, size], { seed: 2, deviation: 1 / Math.sqrt(size) });
      for (let i = 0; i < 16; i++) x = matmul(x, w);
      return x;
    });
  // The first call includes loading and compilation. The best of several calls counts, since other
  // processes may interrupt this thread.
  const shares: number[] = [];
  for (let attempt = 0; attempt < 5; attempt++) {
    await synchronize();
    const begun = performance.now();
    const result = product();
    const enqueued = performance.now() - begun;
    await synchronize();
    shares.push(enqueued / (performance.now() - begun));
    result.dispose();
  }
  expect(Math.min(...shares)).toBeLessThan(0.1);
});
