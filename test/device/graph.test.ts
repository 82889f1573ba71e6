// Graphs: the ops of a function, captured once and launched again, on the fake device of test/fake_device or the plug-in that
// BALORA_CUDA_PLUGIN names.
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { setDefaultDevice } from '../../lib/device.ts';
import { captureGraph } from '../../lib/graph.ts';
import { SafetensorsWriter } from '../../lib/io/safetensors.ts';
import {
  add,
  add_,
  copy_,
  exp,
  fill_,
  full,
  matmul,
  mul,
  qr,
  rand,
  sum,
  zeros,
} from '../../lib/ops/index.ts';
import {
  memoryStats,
  opTimes,
  resetOpTimes,
  setDebugMode,
  synchronize,
  synchronizeSync,
} from '../../lib/runtime.ts';
import { noGrad, scope, type Tensor, tensor } from '../../lib/tensor.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { values } from '../support/compare.ts';
import { kFakePlugin, kNoFake, setVariable } from '../support/fake_device.ts';

const kPlugin = process.env.BALORA_CUDA_PLUGIN;
const kHasCuda = kPlugin !== undefined || kNoFake === null;

const kDevices = ['cpu', ...(kHasCuda ? ['cuda'] : [])];

describe.each(kDevices)('captureGraph on the device %s', (device) => {
  const kOther = device === 'cpu' ? 'cuda' : 'cpu';
  let before: string;
  beforeAll(() => {
    if (kPlugin === undefined && kHasCuda) setVariable('BALORA_CUDA_PLUGIN', kFakePlugin);
    before = setDefaultDevice(device);
  });
  afterAll(() => {
    setDefaultDevice(before);
  });
  it('runs the function once, and replays it on new values', () => {
    const x = tensor([1, 2, 3]);
    using graph = captureGraph(() => add(mul(exp(mul(x, 0)), x), 1));
    expect(values(graph.result)).toEqual(Float64Array.of(2, 3, 4));
    const { version } = graph.result;
    noGrad(() => copy_(x, tensor([10, 20, 30])));
    expect(values(graph.result)).toEqual(Float64Array.of(2, 3, 4));
    graph.replay();
    expect(values(graph.result)).toEqual(Float64Array.of(11, 21, 31));
    expect(graph.result.version).toBe(version + 1);
  });

  it('lets no file appear whose commit it refuses', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'balora-graph-'));
    const path = join(folder, 'x.safetensors');
    const x = tensor([1, 2], { device: 'cpu' });
    const writer = new SafetensorsWriter(path, { x });
    writer.write('x', x);
    let commit: Promise<void> | undefined;
    using graph = captureGraph(() => {
      commit = writer.commit();
      commit.catch(() => {});
      return zeros([1]);
    });
    expect(values(graph.result)).toEqual(Float64Array.of(0));
    await expect(commit).rejects.toThrow(/waiting for a device cannot be recorded/);
    await synchronize();
    expect(readdirSync(folder)).toEqual([]);
    rmSync(folder, { recursive: true });
  });

  it('repeats in-place updates, and counts them in the version', () => {
    const total = zeros([2]);
    const x = tensor([1, 2]);
    using graph = captureGraph(() => void add_(total, x));
    const { version } = total;
    for (let i = 0; i < 4; i++) graph.replay();
    expect(values(total)).toEqual(Float64Array.of(5, 10));
    expect(total.version).toBe(version + 4);
  });

  it('captures a forward with its backward, which accumulates into existing gradients', () => {
    const x = tensor([[1, 2]]);
    const w = tensor(
      [
        [1, 0],
        [0, 1],
      ],
      { requiresGrad: true },
    );
    w.grad = zeros([2, 2]);
    using graph = captureGraph(() => {
      const loss = sum(mul(matmul(x, w), 3));
      loss.backward();
      return loss.detach();
    });
    expect(values(w.grad as Tensor)).toEqual(Float64Array.of(3, 3, 6, 6));
    noGrad(() => copy_(x, tensor([[10, 0]])));
    graph.replay();
    expect(values(graph.result)).toEqual(Float64Array.of(30));
    expect(values(w.grad as Tensor)).toEqual(Float64Array.of(33, 33, 6, 6));
  });

  it('keeps its memory to itself while the graph or a result lives', async () => {
    await collectGarbage();
    const start = memoryStats({ device });
    const graphs = start.byTag.graphs ?? 0;
    const x = full([1000], 1);
    const graph = captureGraph(() => {
      const steps = [x];
      for (let i = 0; i < 10; i++) steps.push(mul(steps.at(-1) as Tensor, 2));
      return steps.at(-1) as Tensor;
    });
    await synchronize();
    expect(memoryStats({ device }).byTag.graphs).toBeGreaterThan(graphs);
    for (let i = 0; i < 50; i++) {
      scope(() => void fill_(zeros([1000]), 7));
      graph.replay();
      scope(() => void fill_(zeros([1000]), 7));
      const result = values(graph.result);
      expect(result.every((value) => value === 1024)).toBe(true);
    }
    graph.dispose();
    graph.dispose();
    expect(() => graph.replay()).toThrow('the graph was disposed of');
    expect(values(graph.result)[999]).toBe(1024);
    graph.result.dispose();
    x.dispose();
    await synchronize();
    expect(memoryStats({ device }).byTag.graphs).toBeLessThanOrEqual(graphs);
    expect(memoryStats({ device }).liveBytes).toBeLessThanOrEqual(start.liveBytes);
  });

  it('keeps the tensors that it reads alive', () => {
    const x = full([3], 2);
    using graph = captureGraph(() => mul(x, 2));
    x.dispose();
    scope(() => void rand([3], { seed: 1 }));
    graph.replay();
    expect(values(graph.result)).toEqual(Float64Array.of(4, 4, 4));
  });

  if (device !== 'cpu') {
    // The kernels of the fake device never wait for the device, so that all of them can be captured there.
    it.skipIf(kPlugin === undefined)(
      'fails at an op that waits for the device, which stays usable',
      () => {
        const x = rand([8, 4], { seed: 1 });
        expect(() => captureGraph(() => qr(x).r)).toThrow(/^qr: /);
        expect(values(add(tensor([1, 2]), 1))).toEqual(Float64Array.of(2, 3));
      },
    );
  }

  it.skipIf(!kHasCuda)(
    'refuses to read from another device before a copy to unowned memory is enqueued',
    async () => {
      const host = tensor([1, 2], { device: kOther });
      await synchronize();
      resetOpTimes();
      let read = Promise.resolve<unknown>(null);
      captureGraph(() => {
        read = host.data();
      }).dispose();
      await expect(read).rejects.toThrow('waiting for a device');
      await synchronize();
      expect(opTimes().filter(({ op }) => op === 'download')).toEqual([]);
    },
  );

  it.skipIf(!kHasCuda)(
    'refuses what a replay could not repeat, and the device stays usable',
    () => {
      const x = tensor([1, 2]);
      const host = tensor([1], { device: kOther });
      const refused: [string, () => unknown][] = [
        ["a tensor of the host's values", () => tensor([1])],
        ['reading a value', () => x.dataSync()],
        ['a copy to another device', () => x.to(kOther)],
        ['a copy from another device', () => host.to(device)],
        ['waiting for a device', () => synchronizeSync()],
        ['waiting for a device', () => void synchronize()],
        ['a graph is being recorded already', () => captureGraph(() => x)],
      ];
      for (const [what, body] of refused) {
        expect(() => captureGraph(body), what).toThrow(what);
        expect(values(add(x, 1))).toEqual(Float64Array.of(2, 3));
      }
      expect(() =>
        captureGraph(() => {
          throw new Error('out');
        }),
      ).toThrow('out');
      setDebugMode(true);
      try {
        expect(() => captureGraph(() => mul(x, 2))).toThrow(
          /debug mode, anomaly mode and profiling/,
        );
      } finally {
        setDebugMode(false);
      }
      expect(values(add(x, 1))).toEqual(Float64Array.of(2, 3));
    },
  );
});
