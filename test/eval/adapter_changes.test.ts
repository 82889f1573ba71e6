/** Changes of weights by adapters: against known singular values, for every method, and for an adapter that changes nothing. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { AdapterConfigInput } from '../../lib/adapters/create.ts';
import { adapterChanges } from '../../lib/eval/adapter_changes.ts';
import { adapterIntruders } from '../../lib/eval/intruders.ts';
import { copy_ } from '../../lib/ops/index.ts';
import { memoryStats, synchronize } from '../../lib/runtime.ts';
import { noGrad, scope, tensor } from '../../lib/tensor.ts';
import { createCalibrated } from '../support/calibrated.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { kMethodConfigs } from '../support/method_configs.ts';
import { kOwnForms } from '../support/own_forms.ts';
import { disturb } from '../support/tiny_adapters.ts';
import { TinyModel } from '../support/tiny_model.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-changes-'));
});
afterAll(() => rm(folder, { recursive: true }));

it('are the size, the ranks and the stable rank of a change with known singular values', async () => {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 3, loraAlpha: 6 });
  const values = [4, 2, 1];
  for (const { pair } of tuned.modules) {
    // s B A = 2 (B A) has the singular values 8, 4 and 2.
    const unit = (rows: number, columns: number, scale: (at: number) => number): Float32Array =>
      Float32Array.from({ length: rows * columns }, (_, at) => {
        const [row, column] = [Math.floor(at / columns), at % columns];
        return row === column ? scale(row) : 0;
      });
    scope(() =>
      noGrad(() => {
        const [a, b] = [pair.a.shape, pair.b.shape] as [[number, number], [number, number]];
        copy_(
          pair.a,
          tensor(
            unit(a[0], a[1], () => 1),
            { shape: a },
          ),
        );
        copy_(
          pair.b,
          tensor(
            unit(b[0], b[1], (at) => values[at] as number),
            { shape: b },
          ),
        );
      }),
    );
  }
  const squares = [64, 16, 4];
  await collectGarbage();
  const before = memoryStats().liveBytes;
  const changes = await adapterChanges(tuned, { energies: [0.5, 0.9, 0.99, 1], intruders: false });
  await synchronize();
  expect(memoryStats().liveBytes).toBe(before);
  expect(changes.map(({ name }) => name)).toEqual(tuned.modules.map(({ name }) => name));
  for (const [i, { linear }] of tuned.modules.entries()) {
    let norm = 0;
    for (const weight of linear.weight.dataSync() as Float32Array) norm += weight ** 2;
    const change = changes[i];
    expect(change).toMatchObject({ r: 3, ranks: [1, 2, 3, 3], intruders: null });
    const all = squares.reduce((sum, square) => sum + square, 0);
    expect(change?.size).toBeCloseTo(Math.sqrt(all / norm), 6);
    expect(change?.stableRank).toBeCloseTo(all / 64, 6);
  }
});

it('of a fresh adapter are nothing', async () => {
  for (const method of ['lora', 'pissa', 'hra'] as const) {
    const tuned = await AdapterModel.create(new TinyModel(), { method, r: 2 });
    for (const change of await adapterChanges(tuned)) {
      expect(change).toMatchObject({ size: 0, stableRank: 0, ranks: [0, 0, 0], intruders: 0 });
    }
  }
});

it.each<readonly [string, AdapterConfigInput]>([...kMethodConfigs, ...kOwnForms])(
  'of %s have the ranks by which convertToLora keeps these shares, and its intruder dimensions',
  async (name, config) => {
    const tuned = await createCalibrated(new TinyModel(), config);
    disturb(tuned, 1, 0.3);
    const seen: number[] = [];
    const changes = await adapterChanges(tuned, { onProgress: (done) => seen.push(done) });
    expect(seen).toEqual(tuned.modules.map((_, i) => i + 1));
    for (const [at, energy] of [0.5, 0.9, 0.99].entries()) {
      const path = join(folder, `${name} ${energy} ${config.method}`);
      const converted = await tuned.convertToLora(path, { energy });
      expect(changes.map(({ ranks }) => ranks[at])).toEqual(converted.map(({ r }) => r));
    }
    const { modules } = await adapterIntruders(tuned);
    expect(changes.map(({ intruders }) => intruders)).toEqual(
      tuned.modules.map((module) => modules[module.name]?.indices.length),
    );
    expect(Math.max(...changes.map(({ size }) => size))).toBeGreaterThan(0);
  },
);

it('are refused for energies that are no shares', async () => {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 2 });
  for (const energies of [[0], [1.5], [Number.NaN]]) {
    await expect(adapterChanges(tuned, { energies })).rejects.toThrow(
      /adapterChanges: energies must be a list of numbers above 0 and at most 1/,
    );
  }
});
