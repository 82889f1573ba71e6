// Weights that do not fit into the memory are refused before any is made, with what would fit.
import { describe, expect, it } from 'vitest';
import { deviceInfo } from '../../lib/device.ts';
import { NativeError } from '../../lib/errors.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { zeros } from '../../lib/ops/index.ts';
import { memoryStats, synchronize } from '../../lib/runtime.ts';

/** A model whose embedding has this many bytes in f32, and nearly nothing else. */
const modelOf = (bytes: number, dtype: 'f32' | 'bf16' | 'f64') =>
  AutoModelForCausalLM.fromConfig(
    {
      model_type: 'llama',
      ...{ vocab_size: Math.ceil(bytes / 4 / 4096), hidden_size: 4096, intermediate_size: 16 },
      ...{ num_hidden_layers: 1, num_attention_heads: 64, num_key_value_heads: 1 },
      ...{ tie_word_embeddings: true },
    },
    { dtype },
  );

const failureOf = (bytes: number, dtype: 'f32' | 'bf16' | 'f64') =>
  modelOf(bytes, dtype).then(
    () => expect.unreachable(),
    (error: unknown) => error as NativeError,
  );

describe.runIf(process.platform === 'linux')('the memory of the machine', () => {
  it('is known', () => {
    const { device, freeBytes, totalBytes } = deviceInfo('cpu');
    expect(device).toBe('cpu');
    expect(freeBytes).toBeGreaterThan(2 ** 27);
    expect(totalBytes).toBeGreaterThanOrEqual(freeBytes);
  });

  it('bounds the weights: the error has the sizes, and the dtype in which they fit', async () => {
    // The sizes hold as long as other programs take no more than a third of what is free now, or free as much.
    const { freeBytes } = deviceInfo('cpu');
    await synchronize();
    const before = memoryStats().deviceAllocations;
    const error = await failureOf(1.3 * freeBytes, 'f32');
    expect(error).toBeInstanceOf(NativeError);
    expect(error.code).toBe('ERR_OUT_OF_MEMORY');
    expect(error.message).toMatch(
      /: the weights take [\d.]+ [GT]iB in f32, and [\d.]+ [GM]iB of [\d.]+ GiB are free on cpu; use dtype bf16, in which they take [\d.]+ GiB$/,
    );
    const wide = await failureOf(0.65 * freeBytes, 'f64');
    expect(wide.message).toMatch(/; use dtype f32, in which they take /);
    for (const dtype of ['f32', 'bf16'] as const) {
      const none = await failureOf(8 * freeBytes, dtype);
      expect(none.message).toMatch(
        /; no dtype is small enough: end other programs, raise the limit/,
      );
    }
    await synchronize();
    expect(memoryStats().deviceAllocations).toBe(before);
  });

  it('bounds a tensor: the error has the sizes, and the engine goes on', async () => {
    const { freeBytes } = deviceInfo('cpu');
    const rows = Math.ceil((1.2 * freeBytes) / 4 / 2 ** 20);
    const wanted = zeros([rows, 2 ** 20]);
    await expect(synchronize()).rejects.toThrow(
      /^full: out of memory: \d+ bytes wanted, \d+ in use on cpu, of the \d+ that this process may have with swap \d+ are free \[.*\]; use a smaller batch/,
    );
    wanted.dispose();
    expect([...((await zeros([2]).data()) as Float32Array)]).toEqual([0, 0]);
  });
});
