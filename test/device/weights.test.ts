// Loading weights to a device with memory of its own. They are staged in chunks through a few pinned buffers, on the fake device
// through one buffer in ordinary memory. Tested are tensors larger than all buffers, sizes around a
// chunk's end, conversions, and NaN.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { deviceInfo, setDefaultDevice } from '../../lib/device.ts';
import { loadSafetensors, saveSafetensors } from '../../lib/io/index.ts';
import { synchronize } from '../../lib/runtime.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { kFakePlugin, kNoFake, setVariable } from '../support/fake_device.ts';

const kPlugin = process.env.BALORA_CUDA_PLUGIN;
const kChunkElements = 2 ** 20; // 4 MiB of f32
const kSizes = [1, kChunkElements - 1, kChunkElements, 5 * kChunkElements + 3];

describe.skipIf(kPlugin === undefined && kNoFake !== null)('weights of a file', () => {
  const folder = mkdtempSync(join(tmpdir(), 'balora-device-weights-'));
  const path = join(folder, 'weights.safetensors');
  const exact = (n: number): Float32Array => Float32Array.from({ length: n }, (_, i) => i % 251);
  let before: string;
  beforeAll(async () => {
    if (kPlugin === undefined) setVariable('BALORA_CUDA_PLUGIN', kFakePlugin);
    before = setDefaultDevice('cpu');
    await saveSafetensors(
      path,
      Object.fromEntries(kSizes.map((n) => [`t${n}`, tensor(exact(n), { device: 'cpu' })])),
    );
  });
  afterAll(() => {
    setDefaultDevice(before);
    rmSync(folder, { recursive: true });
  });

  for (const dtype of ['f32', 'bf16', 'f64'] as const) {
    it(`arrive unchanged in ${dtype}, two files at once, on two devices where there are two`, async () => {
      const [first, second] = await Promise.all(
        ['cuda', secondDevice()].map((device) => loadSafetensors(path, { device, dtype })),
      );
      for (const n of kSizes) {
        for (const loaded of [first, second]) {
          const t = loaded?.tensors[`t${n}`] as Tensor;
          // The conversion to f32 runs on the CPU, since the emulated device is slow on five million elements.
          const home = t.to('cpu');
          expect(Buffer.compare(bytes(await home.to('f32').data()), bytes(exact(n)))).toBe(0);
          home.dispose();
          t.dispose();
        }
      }
    });
  }

  it('with a NaN in the last chunk are refused, and the next file is loaded', async () => {
    const n = 4 * kChunkElements + 7;
    const values = exact(n);
    values[n - 1] = Number.NaN;
    const damaged = join(folder, 'damaged.safetensors');
    await saveSafetensors(damaged, { w: tensor(values, { device: 'cpu' }) });
    await expect(loadSafetensors(damaged, { device: 'cuda', checkFinite: true })).rejects.toThrow(
      `w: element ${n - 1} is NaN or infinite`,
    );
    const { tensors } = await loadSafetensors(path, { device: 'cuda', checkFinite: true });
    await synchronize();
    const last = (tensors[`t${kSizes[3]}`] as Tensor).to('cpu');
    expect(Buffer.compare(bytes(await last.data()), bytes(exact(kSizes[3] as number)))).toBe(0);
  });
});

/** `cuda:1`, or `cuda` again on a machine with one GPU. */
function secondDevice(): string {
  try {
    return deviceInfo('cuda:1').device;
  } catch {
    return 'cuda';
  }
}

function bytes(array: ArrayBufferView): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}
