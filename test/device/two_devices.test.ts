// Two engines in one environment, the second on the fake device of test/fake_device: where tensors are created, copies both ways,
// errors of mixed operands, settings and statistics of each, and how failures surface.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { withAbort } from '../../lib/abort.ts';
import { backward, checkpoint, customOp } from '../../lib/autograd.ts';
import { setDefaultDevice, withDevice } from '../../lib/device.ts';
import { NativeError } from '../../lib/errors.ts';
import { loadSafetensors, SafetensorsFile, saveSafetensors } from '../../lib/io/safetensors.ts';
import {
  adamwStep,
  add,
  add_,
  arange,
  concat,
  copy_,
  exp,
  gather,
  gradNorm,
  greater,
  indexSelect,
  linear,
  matmul,
  mul,
  rand,
  randn,
  randomWords,
  sqrt,
  sum,
  transpose,
  where,
  zeros,
} from '../../lib/ops/index.ts';
import {
  memoryStats,
  opTimes,
  resetPeakMemory,
  setAllowTf32,
  setDebugMode,
  setDeterministic,
  setMemoryLimit,
  setProfiling,
  synchronize,
  synchronizeSync,
  trimMemory,
  withMemoryTag,
  withPhase,
} from '../../lib/runtime.ts';
import { noGrad, scope, type Tensor, tensor } from '../../lib/tensor.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { kFakePlugin, kNoFake, setVariable } from '../support/fake_device.ts';

const kCuda = { device: 'cuda' };
const bytesOf = (x: Tensor): Buffer => Buffer.from(x.dataSync().buffer);
const values = (x: Tensor): number[] => Array.from(x.dataSync() as Float32Array);

describe.skipIf(kNoFake !== null)('two devices', () => {
  const folder = mkdtempSync(join(tmpdir(), 'balora-devices-'));
  beforeAll(() => setVariable('BALORA_CUDA_PLUGIN', kFakePlugin));
  afterAll(() => rmSync(folder, { recursive: true }));
  afterEach(() => setVariable('BALORA_FAKE_FAULT', undefined));

  describe('tensors are created on the device', () => {
    it('of the option, for every op that creates one', () => {
      const made = [
        zeros([2], kCuda),
        tensor([1, 2], kCuda),
        tensor([1, 2], { dtype: 'bf16', ...kCuda }),
        arange(0, 3, kCuda),
        rand([2], { seed: 1, ...kCuda }),
        randn([2], { seed: 1, ...kCuda }),
        randomWords(2, { seed: 1, ...kCuda }),
      ];
      for (const t of made) expect(t.device).toBe('cuda:0');
      expect(zeros([2], { device: 'cuda:1' }).device).toBe('cuda:1');
      expect(zeros([2]).device).toBe('cpu');
    });

    it('of the default, or of withDevice inside its body', () => {
      expect(setDefaultDevice('cuda')).toBe('cpu');
      try {
        expect(zeros([1]).device).toBe('cuda:0');
        expect(withDevice('cpu', () => zeros([1]).device)).toBe('cpu');
        expect(() =>
          withDevice('cpu', () => {
            throw new Error('out');
          }),
        ).toThrow('out');
        expect(zeros([1]).device).toBe('cuda:0');
      } finally {
        expect(setDefaultDevice('cpu')).toBe('cuda:0');
      }
      expect(() => withDevice('cuda', async () => {})).toThrow(/must not be async/);
      expect(zeros([1]).device).toBe('cpu');
    });

    it('of the operands, for results and for numbers beside tensors', () => {
      const x = tensor([1, -2], kCuda);
      expect(add(x, 1).device).toBe('cuda:0');
      const positive = where(greater(x, 0), x, 0);
      expect(positive.device).toBe('cuda:0');
      expect(values(positive)).toEqual([1, 0]);
    });

    it('with the same random values as on the CPU', () => {
      const options = { seed: 5, stream: 2 };
      expect(values(rand([9], { ...options, ...kCuda }))).toEqual(values(rand([9], options)));
    });
  });

  describe('to()', () => {
    it('copies both ways, and returns a tensor that is there already', async () => {
      const x = tensor([
        [1, 2, 3],
        [4, 5, 6],
      ]);
      const y = x.to('cuda');
      expect(y.to('cuda')).toBe(y);
      expect(y.to('cuda:0')).toBe(y);
      expect(x.to('cpu')).toBe(x);
      expect(y.shape).toEqual([2, 3]);
      expect(await y.data()).toEqual(await x.data());
      expect(values(mul(y, 2).to('cuda:1').to('cpu'))).toEqual([2, 4, 6, 8, 10, 12]);
      expect(zeros([0, 3]).to('cuda').shape).toEqual([0, 3]);
    });

    it('copies the gradient back, also through a strided view', () => {
      const x = tensor(
        [
          [1, 2],
          [3, 4],
        ],
        { requiresGrad: true },
      );
      const w = tensor(
        [
          [1, 10],
          [100, 1000],
        ],
        { requiresGrad: true, ...kCuda },
      );
      const y = matmul(transpose(x).to('cuda'), w).to('cpu');
      expect(values(y)).toEqual([301, 3010, 402, 4020]);
      sum(mul(y, 2)).backward();
      expect(x.grad?.device).toBe('cpu');
      expect(w.grad?.device).toBe('cuda:0');
      expect(values(x.grad as Tensor)).toEqual([22, 22, 2200, 2200]);
      expect(values(w.grad as Tensor)).toEqual([6, 6, 14, 14]);
    });

    it('copies the value at the call: a later write to the source has no effect', () => {
      const x = tensor([1, 2]);
      const early = x.to('cuda');
      noGrad(() => add_(x, tensor([10, 10])));
      const late = x.to('cuda');
      expect(values(early)).toEqual([1, 2]);
      expect(values(late)).toEqual([11, 12]);
    });

    it('works where the source is freed at once and its memory reused', () => {
      const copies: Tensor[] = [];
      for (let i = 0; i < 200; i++) {
        const x = mul(rand([4096], { seed: 0 }), 0);
        const y = add(x, i);
        x.dispose();
        copies.push(y.to(i % 2 ? 'cuda' : 'cuda:1'));
        y.dispose();
      }
      copies.forEach((copy, i) => {
        const data = copy.dataSync() as Float32Array;
        expect(data.every((value) => value === i)).toBe(true);
        copy.dispose();
      });
    });
  });

  describe('operands on different devices', () => {
    const message = /on different devices \((cpu and cuda:0|cuda:0 and cpu)\); to\(\) copies/;
    it('are refused by an error that names them before anything runs', () => {
      const x = tensor([
        [1, 2],
        [3, 4],
      ]);
      const y = x.to('cuda');
      const ids = tensor(Int32Array.of(0));
      const master = zeros([2, 2]);
      const mixed: [string, () => unknown][] = [
        ['add', () => add(x, y)],
        ['matmul', () => matmul(x, y)],
        ['concat', () => concat([x, y])],
        ['index_select', () => indexSelect(y, ids)],
        ['gather', () => gather(y, tensor(new Int32Array(4), { shape: [2, 2] }))],
        ['linear', () => linear(x, y)],
        ['where', () => where(greater(x, 0), y, y)],
        ['grad_norm', () => gradNorm([x, y])],
        ['copy_', () => copy_(x, y)],
        ['add_', () => add_(x, y)],
        [
          'adamw_step',
          () =>
            adamwStep(master, y, {
              m: zeros([2, 2]),
              v: zeros([2, 2]),
              ...{ lr: 1, betas: [0.9, 0.9], eps: 1, weightDecay: 0, step: 1 },
            }),
        ],
      ];
      for (const [op, body] of mixed) {
        expect(body, op).toThrow(message);
        expect(body, op).toThrow(new RegExp(`^${op.slice(0, 3)}`));
      }
      expect(x.version).toBe(0);
      expect(master.version).toBe(0);
    });

    it('are refused as gradients, too', () => {
      const x = tensor([1, 2], { requiresGrad: true, ...kCuda });
      const y = mul(x, 2);
      expect(() => y.backward(tensor([1, 1]))).toThrow(message);
      expect(() => backward([y], [tensor([1, 1])])).toThrow(message);
      expect(() => {
        x.grad = tensor([1, 1]);
      }).toThrow(message);
      const [wrong] = customOp(
        {
          name: 'wrong',
          forward: ([a]) => ({ outputs: [mul(a as Tensor, 1)], saved: null }),
          backward: () => [tensor([1, 1], { device: 'cpu' })],
        },
        [x],
      );
      expect(() => sum(wrong as Tensor).backward()).toThrow(/^wrong: .*cuda:0 and cpu/);
    });
  });

  it('a checkpointed segment is recomputed on the device of its forward', () => {
    const x = withDevice('cuda', () => tensor([1, 2], { requiresGrad: true }));
    const segment = (a: Tensor) => mul(a, tensor([3, 4]));
    const y = withDevice('cuda', () => checkpoint(segment, [x]));
    sum(y).backward();
    expect(values(x.grad as Tensor)).toEqual([3, 4]);
  });

  describe('files', () => {
    it('are read to a device with a conversion, and written from any device', async () => {
      const path = join(folder, 'mixed.safetensors');
      const large = rand([3000, 1111], { seed: 3, dtype: 'bf16', ...kCuda }); // larger than the staging buffers
      const small = tensor([1, 2, 3]);
      await saveSafetensors(path, { large, small, empty: zeros([0, 2], kCuda) });
      const { tensors } = await loadSafetensors(path, { dtype: 'f32', ...kCuda });
      expect(Object.values(tensors).map(({ device }) => device)).toEqual(Array(3).fill('cuda:0'));
      expect(bytesOf(tensors.large as Tensor).equals(bytesOf(large))).toBe(true);
      expect(await tensors.small?.data()).toEqual(await small.data());
      const file = SafetensorsFile.open(path);
      const shared = file.read('small', { share: true, ...kCuda });
      expect(values(add(shared, 1))).toEqual([2, 3, 4]);
      file.close();
    });

    it('are checked for NaN while they are read', async () => {
      const path = join(folder, 'nan.safetensors');
      const values = new Float32Array(3_000_000);
      values[2_500_000] = Number.NaN;
      await saveSafetensors(path, { values: tensor(values) });
      await expect(loadSafetensors(path, { checkFinite: true, ...kCuda })).rejects.toThrow(
        /values: element 2500000 is NaN/,
      );
    });

    it('are not created where an op on the device failed', async () => {
      const path = join(folder, 'failed.safetensors');
      await collectGarbage();
      setMemoryLimit(memoryStats(kCuda).liveBytes + 1000, kCuda);
      const lost = zeros([10_000], kCuda);
      await expect(saveSafetensors(path, { lost })).rejects.toThrow(/out of memory.*on cuda:0/);
      setMemoryLimit(0, kCuda);
      expect(() => SafetensorsFile.open(path)).toThrow();
    });
  });

  describe('failures', () => {
    it('of the device surface once, at the next sync, with the name of the kernel', async () => {
      setVariable('BALORA_FAKE_FAULT', 'unary');
      const y = exp(tensor([1], kCuda));
      await expect(y.data()).rejects.toThrow(/^cuda:0: unary_kernel: a pretended fault$/);
      setVariable('BALORA_FAKE_FAULT', undefined);
      await synchronize();
      setVariable('BALORA_FAKE_FAULT', 'unary');
      exp(tensor([1], kCuda));
      expect(() => synchronizeSync('cuda')).toThrow(NativeError);
      exp(tensor([1], kCuda));
      expect(() => synchronizeSync()).toThrow(/unary_kernel/);
      exp(tensor([1], kCuda));
      await expect(synchronize('cuda')).rejects.toThrow(/unary_kernel/);
      await synchronize();
    });

    it('name op, shapes and call site in debug mode', async () => {
      setDebugMode(true);
      try {
        setVariable('BALORA_FAKE_FAULT', 'unary');
        exp(tensor([1, 2], kCuda));
        await expect(synchronize()).rejects.toThrow(
          /^exp: unary_kernel: a pretended fault \[f32\(2\) -> f32\(2\)\]\n {2}enqueued .*two_devices\.test/,
        );
      } finally {
        setDebugMode(false);
      }
    });

    it('of one device do not stop another', async () => {
      setVariable('BALORA_FAKE_FAULT', 'unary');
      exp(tensor([1], kCuda));
      expect(values(add(tensor([1]), 1))).toEqual([2]);
      await expect(synchronize()).rejects.toThrow();
    });

    it('are reported with their cause where a copy depends on them', async () => {
      await collectGarbage();
      setMemoryLimit(memoryStats(kCuda).liveBytes + 1000, kCuda);
      const lost = add(zeros([10_000], kCuda), 1).to('cpu');
      await expect(synchronize()).rejects.toThrow(/^full: out of memory/);
      setMemoryLimit(0, kCuda);
      await expect(lost.data()).rejects.toThrow(/has no value, the op that makes it failed/);
      const again = sqrt(lost).to('cuda');
      await expect(again.data()).rejects.toThrow(
        /^to: no value came from cpu, where an op before it failed/,
      );
      await expect(synchronize()).rejects.toThrow(/has no value/);
      await synchronize();
    });
  });

  describe('settings and statistics', () => {
    it('an abort on one reaches what the other was to get, and is no failure of either', async () => {
      const aborted = AbortSignal.abort();
      const refused = { code: 'ERR_ABORTED' };
      for (const [from, to] of [
        ['cpu', 'cuda'],
        ['cuda', 'cpu'],
      ] as const) {
        const x = withAbort(aborted, () => tensor([1, 2], { device: from }));
        const made = x.to(to);
        const copied = withAbort(aborted, () => tensor([3, 4], { device: from }).to(to));
        const skipped = tensor([5, 6], { device: from });
        const half = withAbort(aborted, () => skipped.to(to));
        await synchronize();
        for (const y of [x, made, copied, half, add(made, 1)]) {
          await expect(y.data()).rejects.toMatchObject(refused);
        }
        expect(await skipped.to(to).data()).toEqual(Float32Array.of(5, 6));
      }
      await synchronize();
    });

    it('an abort stays one where the source is written anew before the other device asks for it', async () => {
      const aborted = AbortSignal.abort();
      for (const [from, to] of [
        ['cpu', 'cuda'],
        ['cuda', 'cpu'],
      ] as const) {
        const codes = new Set<unknown>();
        for (let i = 0; i < 1000; i++) {
          const x = withAbort(aborted, () => tensor([1, 2], { device: from }));
          const fresh = tensor([3, 4], { device: from });
          const made = x.to(to);
          copy_(x, fresh);
          await made.data().catch((error: NativeError) => codes.add(error.code));
          for (const each of [x, fresh, made]) each.dispose();
        }
        expect([...codes]).toEqual(['ERR_ABORTED']);
      }
      await synchronize();
    });

    it('memory is counted for each device, under its tags', async () => {
      await collectGarbage();
      const before = memoryStats(kCuda);
      const cpu = memoryStats();
      resetPeakMemory(kCuda);
      const x = withMemoryTag('mine', () => zeros([1000], { device: 'cuda' }));
      await synchronize();
      const after = memoryStats(kCuda);
      expect(after.liveBytes - before.liveBytes).toBe(4000);
      expect(after.byTag.mine).toBe(4000);
      expect(after.peakBytes).toBe(before.liveBytes + 4000);
      expect(memoryStats().liveBytes).toBe(cpu.liveBytes);
      expect(withDevice('cuda', () => memoryStats()).byTag.mine).toBe(4000);
      x.dispose();
      trimMemory(kCuda);
      expect(memoryStats(kCuda).byTag.mine).toBe(0);
    });

    it('a loop of equal steps allocates no device memory', async () => {
      const step = async () => {
        scope(() => {
          const x = rand([512, 300], { seed: 1, ...kCuda });
          sum(mul(matmul(x, x, { transposeB: true }), 2));
        });
        await synchronize();
      };
      for (let i = 0; i < 3; i++) await step();
      const before = memoryStats(kCuda);
      for (let i = 0; i < 50; i++) await step();
      const after = memoryStats(kCuda);
      expect(after.deviceAllocations).toBe(before.deviceAllocations);
      expect(after.cachedBytes).toBe(before.cachedBytes);
    });

    it('opTimes() names the device, and modes are set for all devices', async () => {
      expect(setProfiling(true)).toBe(false);
      withPhase('both', () => {
        exp(tensor([1]));
        exp(tensor([1], kCuda));
      });
      await synchronize();
      expect(setProfiling(false)).toBe(true);
      const devices = opTimes()
        .filter(({ phase, op }) => phase === 'both' && op === 'exp')
        .map(({ device }) => device);
      expect(devices).toEqual(['cpu', 'cuda:0']);
      for (const set of [setDeterministic, setAllowTf32]) {
        expect(set(true)).toBe(false);
        expect(set(false)).toBe(true);
      }
    });
  });
});
