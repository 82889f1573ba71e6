/** Custom initialisations: `initLoraWeights` as a function. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { LoraConfigInput } from '../../lib/adapters/config.ts';
import { saveMerged } from '../../lib/adapters/merge.ts';
import type { StartModule } from '../../lib/adapters/methods/method.ts';
import type { StartFunction } from '../../lib/adapters/starts.ts';
import { ArgumentError } from '../../lib/errors.ts';
import { full, mul, randn, zeros } from '../../lib/ops/index.ts';
import { memoryStats, synchronize } from '../../lib/runtime.ts';
import { noGrad, scope, type Tensor, tensor } from '../../lib/tensor.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import { disturb, expectNear, hidden, readWeights } from '../support/tiny_adapters.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-starts-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** Live bytes after a sync. They may fall when tensors of earlier tests are collected; a leak makes them grow. */
async function liveBytes(): Promise<number> {
  await synchronize();
  return memoryStats().liveBytes;
}

const numbers = (value: Tensor): number[] => Array.from(value.dataSync() as Float32Array);

/** The initialisation with A drawn from the module's own seed and B = 0. */
const drawn: StartFunction = (modules) =>
  modules.map(({ r, inFeatures, outFeatures, seed }) => ({
    a: mul(randn([r, inFeatures], { seed: seed('mine') }), 0.5),
    b: zeros([outFeatures, r]),
  }));

/** An initialisation from the weight: A holds the first rows of W, and B the unit vectors that put them in their places. */
const rows: StartFunction = (modules) =>
  modules.map(({ r, scale, inFeatures, outFeatures, weight }) => {
    const w = scope(() => noGrad(() => weight.to('f32').dataSync())) as Float32Array;
    const unit = Float32Array.from({ length: outFeatures * r }, (_, at) =>
      Math.floor(at / r) === at % r ? 1 / scale : 0,
    );
    return {
      a: tensor(w.slice(0, r * inFeatures), { shape: [r, inFeatures] }),
      b: tensor(unit, { shape: [outFeatures, r] }),
      fromWeight: true,
    };
  });

const create = (init: unknown, config: LoraConfigInput = {}, model = new TinyModel()) =>
  AdapterModel.create(model, {
    ...{ r: 3, loraAlpha: 6, rankPattern: { 'layers.1.up_proj': 2 } },
    ...config,
    initLoraWeights: init as StartFunction,
  });

describe('an initialisation function', () => {
  it('is called once, with the facts about every adapted module', async () => {
    const calls: (readonly StartModule[])[] = [];
    const model = new TinyModel({ layers: 40 }); // more modules than built-in initialisations get per call
    const tuned = await create(
      (modules: readonly StartModule[]) => {
        calls.push(modules);
        return drawn(modules);
      },
      { targetModules: ['up_proj', 'down_proj'], rankPattern: {}, alphaPattern: { up_proj: 3 } },
      model,
    );
    const [modules = []] = calls;
    expect([calls.length, modules.length]).toEqual([1, 80]);
    expect(modules[0]).toMatchObject({
      ...{ name: 'layers.0.up_proj', inFeatures: 8, outFeatures: 16, r: 3, alpha: 3, scale: 1 },
    });
    expect(modules[0]?.weight).toBe(tuned.modules[0]?.linear.weight);
    expect(modules[0]?.seed('mine')).not.toBe(modules[1]?.seed('mine'));
    expect(modules[0]?.seed('mine')).not.toBe(modules[0]?.seed('other'));
    const [a] = modules.map(({ seed }) => numbers(randn([3, 8], { seed: seed('mine') })));
    const start = numbers((tuned.modules[0] as { pair: { a: Tensor } }).pair.a);
    expect(start).toEqual((a as number[]).map((value) => value * 0.5));
  });

  it.each([
    ['with B = 0', drawn, 3],
    ['from the weights', rows, 6],
  ])(
    '%s leaves the model unchanged at first, and is saved, merged and read',
    async (_, init, rank) => {
      const model = new TinyModel();
      const base = hidden(model);
      const tuned = await create(init, {}, model);
      expectNear(hidden(model), base, 1e-6);
      disturb(tuned);
      const expected = hidden(model);
      await tuned.savePretrained(folder);
      const written = JSON.parse(readFileSync(join(folder, 'adapter_config.json'), 'utf8'));
      expect(written).toMatchObject({ r: rank, lora_alpha: 2 * rank, init_lora_weights: true });
      const loaded = new TinyModel();
      expect((await AdapterModel.fromPretrained(loaded, folder)).warnings).toEqual([]);
      expectNear(hidden(loaded), expected, 1e-5);
      await saveMerged(tuned, join(folder, 'merged'));
      expectNear(hidden(readWeights(new TinyModel(), join(folder, 'merged'))), expected, 1e-5);
      if (rank === 3) expect(() => tuned.checkForm('residual')).toThrow(/has no residual/);
      else {
        await tuned.savePretrained(join(folder, 'residual'), { form: 'residual' });
        const residual = readWeights(new TinyModel(), join(folder, 'residual/residual'));
        await AdapterModel.fromPretrained(residual, join(folder, 'residual'));
        expectNear(hidden(residual), expected, 1e-4);
      }
    },
  );

  it('works with DoRA, a bias and rank-stabilised scales', async () => {
    for (const switches of [{ useDora: true }, { loraBias: true }, { useRslora: true }]) {
      const model = new TinyModel();
      const base = hidden(model);
      const tuned = await create(rows, switches, model);
      expectNear(hidden(model), base, 1e-6);
      disturb(tuned);
      const expected = hidden(model);
      await tuned.savePretrained(folder);
      const loaded = new TinyModel();
      await AdapterModel.fromPretrained(loaded, folder);
      expectNear(hidden(loaded), expected, 1e-5);
    }
  });

  it('may return large pairs, which are then not treated as a small change of W', async () => {
    const large: StartFunction = (modules) =>
      modules.map(({ r, inFeatures, outFeatures, seed }) => ({
        a: randn([r, inFeatures], { seed: seed('A') }),
        b: randn([outFeatures, r], { seed: seed('B') }),
      }));
    const formOf = async (init: StartFunction) =>
      (await create(init)).modules.map((module) => module.update()?.lowRank[0]?.form);
    expect(new Set(await formOf(large))).toEqual(new Set(['exact']));
    expect(new Set(await formOf(drawn))).toEqual(new Set(['change']));
    expect(new Set(await formOf(rows))).toEqual(new Set(['sinceStart']));
  });

  it('has its own tensors freed, except those that existed before', async () => {
    const mine = randn([3, 8], { seed: 1 });
    const made = async () => {
      const tuned = await create(
        (modules: readonly StartModule[]) => {
          full([64, 64], 1); // a tensor that is not returned
          return modules.map(({ outFeatures }) => ({ a: mine, b: zeros([outFeatures, 3]) }));
        },
        { targetModules: ['up_proj'], rankPattern: {} },
      );
      const live = await liveBytes();
      tuned.dispose();
      tuned.model.dispose();
      return live;
    };
    const [first, second] = [await made(), await made()];
    expect(second).toBeLessThanOrEqual(first);
    expect(numbers(mine)).toHaveLength(24);
  });

  const one = (pair: (module: StartModule) => unknown) => (modules: readonly StartModule[]) =>
    modules.map((module, i) => (i === 1 ? pair(module) : drawn([module])[0]));
  const a = ({ r, inFeatures }: StartModule): Tensor => zeros([r, inFeatures]);
  const b = ({ r, outFeatures }: StartModule): Tensor => zeros([outFeatures, r]);
  it.each<[unknown, RegExp]>([
    [() => [], /the function must return a list of 6 pairs, one a module, got a list of 0$/],
    [() => undefined, /must return a list of 6 pairs, one a module, got nothing/],
    [async () => [], /must return the pairs, not a promise of them; await/],
    [one(() => null), /layers\.0\.up_proj: the function must return a pair { a, b }, got null/],
    [one((m) => ({ a: a(m) })), /up_proj: b must be a tensor, got nothing/],
    [one((m) => ({ a: b(m), b: b(m) })), /up_proj: a must be \(r,in\)=\(3,8\), got \(16,3\)/],
    [one((m) => ({ a: a(m), b: a(m) })), /up_proj: b must be \(out,r\)=\(16,3\), got \(3,8\)/],
    [one((m) => ({ a: a(m).to('i32'), b: b(m) })), /up_proj: a must hold floats, got i32/],
    [one((m) => ({ a: a(m), b: b(m), fromWeight: 1 })), /up_proj: fromWeight must be true or/],
    [
      one((m) => ({ a: a(m), b: full([m.outFeatures, m.r], Number.NaN) })),
      /up_proj: element 0 of b must be finite, got NaN/,
    ],
    [
      () => {
        throw new RangeError('my own');
      },
      /my own/,
    ],
    [3, /initLoraWeights must be one of true, .* or a function, got 3/],
  ])('is refused for %s', async (init, message) => {
    const model = new TinyModel();
    const base = hidden(model);
    await expect(create(init, { modulesToSave: ['norm'] }, model)).rejects.toThrow(message);
    const before = await liveBytes();
    await expect(create(init, { modulesToSave: ['norm'] }, model)).rejects.toThrow(message);
    expect(await liveBytes()).toBeLessThanOrEqual(before);
    expect(hidden(model)).toEqual(base);
    expect((await create(drawn, {}, model)).modules).toHaveLength(6); // the model accepts another adapter
  });

  it('is refused with an ArgumentError; an unknown name is told the known ones', async () => {
    await expect(create(() => [])).rejects.toThrow(ArgumentError);
    await expect(create('olora2')).rejects.toThrow(
      /initLoraWeights must be one of true, false, pissa, pissa_niter_N.* or a function, got "olora2"/,
    );
  });
});

describe('a run with an initialisation function', () => {
  const trainer = (tuned: AdapterModel, more: object) =>
    new Trainer({
      tuned,
      data: tinySource(tinyBatches({ count: 4 })),
      ...{ learningRate: 0.02, maxSteps: 4, saveSteps: 2, output: join(folder, 'run') },
      ...more,
    });
  const run = (tuned: AdapterModel, more: object) => trainer(tuned, more).train();

  it('is resumed with any function that returns the same values', async () => {
    const [straight, first] = [await create(rows), await create(rows)];
    await run(straight, { output: join(folder, 'straight') });
    for await (const event of trainer(first, {}).run()) if (event.type === 'checkpoint') break;
    const again = await create((modules: readonly StartModule[]) => rows(modules));
    expect(await run(again, { resume: true })).toMatchObject({ steps: 4 });
    for (const [name, value] of Object.entries(straight.state())) {
      expect(numbers(again.state()[name] as Tensor), name).toEqual(numbers(value));
    }
    expect(first.identity()).toEqual(again.identity());
    expect(JSON.stringify(again.identity())).toMatch(/"initLoraWeights":"function \w{16}"/);
  });

  it('is not resumed with other values: by another function, a name, or a function that is not deterministic', async () => {
    await run(await create(rows), {});
    const said = /initLoraWeights: was .*"function \w{16}".*, is /;
    await expect(run(await create(drawn), { resume: true })).rejects.toThrow(said);
    await expect(run(await create(true), { resume: true })).rejects.toThrow(said);
    let seed = 1;
    const chance: StartFunction = (modules) =>
      drawn(modules).map((pair) => ({ ...pair, a: randn(pair.a.shape, { seed: seed++ }) }));
    await run(await create(chance), { overwrite: true });
    await expect(run(await create(chance), { resume: true })).rejects.toThrow(said);
  });
});
