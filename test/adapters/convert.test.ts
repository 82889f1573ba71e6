/** Adapters of any method as plain LoRAs: the ranks and errors against the changes themselves, what is kept, and what is refused. */
import { mkdtemp, readdir, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { type ConvertOptions, rankChoice } from '../../lib/adapters/convert.ts';
import type { AdapterConfigInput } from '../../lib/adapters/create.ts';
import type { LoraModule } from '../../lib/adapters/lora_module.ts';
import { intruderDimensions } from '../../lib/eval/intruders.ts';
import { fill_, mul, sqrt, sub, sum, svd } from '../../lib/ops/index.ts';
import { noGrad, scope, type Tensor } from '../../lib/tensor.ts';
import { createCalibrated } from '../support/calibrated.ts';
import { kMethodConfigs } from '../support/method_configs.ts';
import { kOwnForms } from '../support/own_forms.ts';
import { disturb } from '../support/tiny_adapters.ts';
import { TinyModel } from '../support/tiny_model.ts';

let folder: string;
let count = 0;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-convert-'));
});
afterAll(() => rm(folder, { recursive: true }));

const next = (): string => join(folder, `${count++}`);
const exactly = <T>(body: () => T): T => scope(() => noGrad(body));
const norm = (x: Tensor): number => sqrt(sum(mul(x, x))).itemSync();

async function made(config: AdapterConfigInput): Promise<AdapterModel<TinyModel>> {
  const tuned = await createCalibrated(new TinyModel(), config);
  disturb(tuned, 1, 0.3);
  return tuned;
}

/** The change of each module's weight by an adapter, f64. */
function changesOf({ modules }: AdapterModel<TinyModel>): Map<string, Tensor> {
  return new Map(
    modules.map((module) => {
      const base = module.linear.weight.to('f64');
      return [module.name, sub(module.variant.mergedWeight(module, module.startWeight()), base)];
    }),
  );
}

/** ||a - b||_F / ||a||_F of the changes of two adapters, by module; a module that `b` lacks changes nothing there. */
function errorsOf(a: AdapterModel<TinyModel>, b: AdapterModel<TinyModel>): Map<string, number> {
  return exactly(() => {
    const others = changesOf(b);
    return new Map(
      Array.from(changesOf(a), ([name, change]) => {
        const other = others.get(name);
        return [name, other === undefined ? 1 : norm(sub(change, other)) / norm(change)];
      }),
    );
  });
}

async function converted(tuned: AdapterModel<TinyModel>, options: ConvertOptions) {
  const path = next();
  const report = await tuned.convertToLora(path, options);
  const read = await AdapterModel.fromPretrained(new TinyModel(), path);
  return { path, report, read };
}

/** The methods that no pair of their own rank equals. */
const kInexact = [
  ...['dora', 'hira', 'randlora', 'randlora sparse', 'randlora very sparse', 'miss bat'],
  ...['qpissa', 'loftq'],
];

describe.each<AdapterConfigInput>([
  { method: 'lora', r: 3, loraAlpha: 5 },
  { method: 'pissa', r: 2, loraAlpha: 2 },
  { method: 'dora', r: 2 },
  { method: 'hira', r: 4 },
  { method: 'vera', r: 4 },
  { method: 'hra', r: 2 },
  { method: 'randlora', r: 4, loraAlpha: 8 },
])('$method', (config) => {
  it('with all of the energy is the same function', async () => {
    const tuned = await made(config);
    const { read } = await converted(tuned, { energy: 1 });
    for (const [name, error] of errorsOf(tuned, read)) expect(error, name).toBeLessThan(1e-6);
  });

  it('of a rank has the error that the report says, which is the least', async () => {
    const tuned = await made(config);
    const { read, report } = await converted(tuned, { rank: 2 });
    const errors = errorsOf(tuned, read);
    const least = exactly(
      () =>
        new Map(
          Array.from(changesOf(tuned), ([name, change]) => {
            const squares = Array.from(svd(change).s.dataSync() as Float64Array, (s) => s * s);
            const total = squares.reduce((all, square) => all + square, 0);
            const rest = squares.slice(2).reduce((all, square) => all + square, 0);
            return [name, Math.sqrt(rest / total)];
          }),
        ),
    );
    for (const { name, r, error } of report) {
      expect(r, name).toBe(2);
      expect(error, name).toBeCloseTo(least.get(name) as number, 6);
      expect(errors.get(name), name).toBeCloseTo(error, 5);
    }
    for (const { pair } of read.modules) expect(pair.a.shape[0]).toBe(2);
  });

  it('of an energy has the smallest ranks that keep it', async () => {
    const tuned = await made(config);
    const { report, read } = await converted(tuned, { energy: 0.9 });
    const ranks = new Map(read.modules.map(({ name, r }) => [name, r]));
    for (const { name, r, error } of report) {
      expect(1 - error ** 2, name).toBeGreaterThanOrEqual(0.9 - 1e-9);
      expect(ranks.get(name), name).toBe(r);
    }
    const { report: less } = await converted(tuned, { rank: 1 });
    for (const [i, { r }] of report.entries()) {
      if (r > 1) expect(1 - (less[i]?.error as number) ** 2).toBeLessThan(0.9);
    }
  });
});

describe.each([...kMethodConfigs, ...kOwnForms])(
  '%s without a rank or an energy',
  (name, config) => {
    it('is exact at its own ranks, or keeps 0.99 of the energy and says why', async () => {
      const tuned = await made(config as AdapterConfigInput);
      const choice = rankChoice(tuned, {});
      const { report, read } = await converted(tuned, {});
      const isInexact = kInexact.some((one) => name === one);
      expect(choice.by).toBe(isInexact ? 'energy' : 'own');
      const errors = errorsOf(tuned, read);
      for (const { name: module, r, error } of report) {
        expect(errors.get(module), module).toBeCloseTo(error, 6);
        if (!isInexact) expect(error, module).toBeLessThan(1e-6);
        else expect(1 - error ** 2, module).toBeGreaterThanOrEqual(0.99 - 1e-9);
        const written = read.modules.find((one) => one.name === module);
        expect([written?.r, written?.alpha], module).toEqual([r, r]);
      }
      if (choice.by !== 'energy') return;
      expect(choice).toMatchObject({ energy: 0.99, reason: expect.stringMatching(/./) });
      const { report: same } = await converted(tuned, { energy: 0.99 });
      expect(report).toEqual(same);
    });
  },
);

it('without a rank or an energy keeps the ranks of patterns and scales', async () => {
  const config = { r: 2, loraAlpha: 5, rankPattern: { q_proj: 3 }, alphaPattern: { up_proj: 7 } };
  const tuned = await made(config);
  const { report, read } = await converted(tuned, {});
  expect(report.map(({ r }) => r)).toEqual(tuned.modules.map(({ r }) => r));
  for (const [name, error] of errorsOf(tuned, read)) expect(error, name).toBeLessThan(1e-6);
  // The adapter itself is as it was.
  for (const module of tuned.modules) expect(module.pair.a.shape[0]).toBe(module.r);
});

it('reduces intruder dimensions without a rank or an energy at 0.99 of the energy', async () => {
  const tuned = await made({ r: 2, loraAlpha: 40 });
  expect(rankChoice(tuned, { intruderFactor: 0.75 })).toEqual({
    ...{ by: 'energy', energy: 0.99, reason: 'reduced intruder dimensions change its rank' },
  });
});

it('leaves out modules that are not changed', async () => {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 2 });
  const [first] = tuned.modules;
  noGrad(() => fill_((first as LoraModule).pair.b, 0.1));
  for (const options of [{}, { rank: 1 }]) {
    const { report, read } = await converted(tuned, options);
    expect(report.filter(({ r }) => r > 0).map(({ name }) => name)).toEqual([first?.name]);
    expect(read.modules.map(({ name }) => name)).toEqual([first?.name]);
  }
});

it('reduces intruder dimensions by a factor', async () => {
  const tuned = await made({ r: 2, loraAlpha: 40 });
  const { report, read } = await converted(tuned, { energy: 1, intruderFactor: 0.75 });
  expect(report.some(({ intruders }) => intruders > 0)).toBe(true);
  const others = new Map(read.modules.map((module) => [module.name, module]));
  for (const [i, module] of tuned.modules.entries()) {
    const base = exactly(() => module.linear.weight.to('f64'));
    const whole = module.variant.mergedWeight(module, base);
    const { indices } = await intruderDimensions(base, whole);
    expect(report[i]?.intruders).toBe(indices.length);
    const gone = exactly(() => {
      const { u, s, vt } = svd(whole);
      const values = Array.from(s.dataSync() as Float64Array, (v, at) =>
        indices.includes(at) ? 0.75 * v : v,
      );
      const [rows, columns] = [u.dataSync(), vt.dataSync()] as [Float64Array, Float64Array];
      const [out, k, inn] = [u.shape[0], s.size, vt.shape[1]] as [number, number, number];
      const weight = Array.from({ length: out * inn }, (_, at) => {
        const [row, column] = [Math.floor(at / inn), at % inn];
        let total = 0;
        for (let j = 0; j < k; j++)
          total +=
            (rows[row * k + j] as number) *
            (values[j] as number) *
            (columns[j * inn + column] as number);
        return total;
      });
      const own = others.get(module.name);
      const merged = own === undefined ? base : own.variant.mergedWeight(own, base);
      return Array.from(merged.dataSync() as Float64Array, (v, at) =>
        Math.abs(v - (weight[at] as number)),
      );
    });
    expect(Math.max(...gone)).toBeLessThan(1e-5);
  }
});

it('is refused for a bias, and with both a rank and an energy, before anything is written', async () => {
  const tuned = await made({ r: 2, loraBias: true });
  const path = next();
  await expect(tuned.convertToLora(path, { rank: 2 })).rejects.toThrow(/has a bias \(loraBias\)/);
  const plain = await made({ r: 2 });
  await expect(plain.convertToLora(path, { rank: 1, energy: 0.5 })).rejects.toThrow(
    'give rank or energy, or neither of them',
  );
  await expect(plain.convertToLora(path, { energy: 1.5 })).rejects.toThrow(/energy/);
  await expect(readdir(path)).rejects.toThrow('ENOENT');
});
