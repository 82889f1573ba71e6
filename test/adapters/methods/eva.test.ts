import { expect, it } from 'vitest';
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import { IncrementalPca } from '../../../lib/adapters/incremental_pca.ts';
import { distributed } from '../../../lib/adapters/methods/eva.ts';
import {
  add,
  concat,
  matmul,
  mean,
  mul,
  randn,
  square,
  sub,
  sum,
  svd,
} from '../../../lib/ops/index.ts';
import { scope, type Tensor } from '../../../lib/tensor.ts';
import { calibrate } from '../../../lib/train/calibrate.ts';
import { expectNear } from '../../support/tiny_adapters.ts';
import { TinyModel, tinyBatches, tinySource } from '../../support/tiny_model.ts';

const numbers = (value: Tensor): number[] => Array.from(value.dataSync() as Float32Array);
const data = tinySource(tinyBatches({ rows: 24 }));

it('of as many components as inputs is the analysis of all rows at once', () => {
  const batches = [1, 2, 3].map((seed) =>
    scope(() => add(mul(randn([20, 6], { seed }), randn([6], { seed: 9 })), seed)),
  );
  const pca = new IncrementalPca({ size: 6, seed: 1 });
  for (const x of batches) IncrementalPca.add([{ pca, x }]);
  const rows = scope(() => concat(batches));
  const { s, scatter } = scope(() => {
    const centred = sub(rows, mean(rows, { axis: 0 }));
    return { s: svd(centred).s, scatter: sum(square(centred)) };
  });
  const known = pca.known as NonNullable<typeof pca.known>;
  expectNear(numbers(known.singular), numbers(s), 1e-4);
  expectNear(numbers(known.mean), numbers(mean(rows, { axis: 0 })), 1e-5);
  const [total] = numbers(scatter) as [number];
  const shares = numbers(s).map((value) => value ** 2 / total);
  expectNear(numbers(known.ratios), shares, 1e-5);
  const gramOf = scope(() => numbers(matmul(known.vectors, known.vectors, { transposeB: true })));
  expectNear(
    gramOf,
    Array.from({ length: 36 }, (_, at) => (at % 7 === 0 ? 1 : 0)),
    1e-5,
  );
  pca.dispose();
});

it('distributes the ranks by explained variance, the largest to the module that is analysed', () => {
  const module = (name: string, inputOf: string, r = 2) => ({
    ...{ name, inputOf, r, inFeatures: 8, outFeatures: 8 },
  });
  const modules = [module('q', 'q'), module('k', 'q'), module('o', 'o')];
  expect(
    distributed(modules, [
      [0.5, 0.1],
      [0.5, 0.1],
      [0.3, 0.2, 0.15, 0.05],
    ]),
  ).toEqual([2, 1, 3]);
  // Equal ratios go to the first module that has them.
  expect(
    distributed(
      [module('q', 'q', 1), module('k', 'q', 1)],
      [
        [0.5, 0.4],
        [0.5, 0.4],
      ],
    ),
  ).toEqual([1, 1]);
  const small = { ...module('o', 'o'), outFeatures: 1 };
  expect(
    distributed(
      [module('q', 'q'), small],
      [
        [0.2, 0.1],
        [0.9, 0.8],
      ],
    ),
  ).toEqual([2, 1]);
});

it('keeps the scale of every module, rank-stabilised or not', async () => {
  for (const useRslora of [false, true]) {
    const model = new TinyModel();
    const config = { method: 'eva', r: 3, loraAlpha: 6, useRslora } as const;
    const calibration = await calibrate(model, config, { data });
    const tuned = await AdapterModel.create(model, config, { calibration });
    const ranks = tuned.modules.map(({ r }) => r);
    expect(ranks.reduce((total, r) => total + r, 0)).toBe(18);
    expect(new Set(ranks).size).toBeGreaterThan(1);
    const scales = tuned.modules.map(({ scale }) => scale);
    for (const scale of scales) expect(scale).toBeCloseTo(useRslora ? 6 / Math.sqrt(3) : 2, 12);
  }
});

it('refuses settings, ranks and data that it cannot do', async () => {
  const run = (r: number, settings: Record<string, number> = {}, source = data) =>
    calibrate(new TinyModel(), { method: 'eva', r }, { data: source, settings });
  await expect(run(5)).rejects.toThrow(
    'layers.0.gate_proj: initLoraWeights eva computes 10 components for r=5, and there are only 8 inputs; set r, or rankPattern for it, to 4 at most',
  );
  await expect(run(2, { rho: 0.5 })).rejects.toThrow('eva: rho must be >= 1, got 0.5');
  await expect(run(2, { tau: 1 })).rejects.toThrow('eva: tau must be > 0 and < 1, got 1');
  await expect(run(2, { sigma: 1 })).rejects.toThrow(
    'settings: unknown option "sigma"; known: rho, tau, whiten',
  );
  await expect(run(4, {}, tinySource(tinyBatches({ rows: 6 })))).rejects.toThrow(
    /no micro-batch has as many supervised tokens as components are computed/,
  );
});

it('whitened divides each component once by the root of its singular value', async () => {
  const config = { method: 'eva', r: 2 } as const;
  const settings = { whiten: true };
  const plain = await calibrate(new TinyModel(), config, { data });
  const whitened = await calibrate(new TinyModel(), config, { data, settings });
  expect(whitened.identity).not.toBe(plain.identity);
  const create = (calibration: typeof plain) =>
    AdapterModel.create(new TinyModel(), config, { calibration });
  const [expected, found] = [await create(plain), await create(whitened)];
  // gate_proj and up_proj share their input.
  expect(plain.of('layers.0.up_proj').inputOf).toBe('layers.0.gate_proj');
  for (const [i, { name, pair, r }] of found.modules.entries()) {
    const sigma = numbers(whitened.of(name).statistics.singular as Tensor);
    const width = pair.a.shape[1] as number;
    expectNear(
      numbers(pair.a).map(
        (value, at) => value * Math.sqrt(sigma[Math.floor(at / width)] as number),
      ),
      numbers((expected.modules[i] as (typeof expected.modules)[number]).pair.a),
      1e-5,
    );
    expect(r).toBe(expected.modules[i]?.r);
  }
});

it("takes PEFT's EvaConfig, and refuses what of it is not supported", async () => {
  const config = { method: 'eva', r: 2, evaConfig: { rho: 1.5, whiten: true } } as const;
  const calibration = await calibrate(new TinyModel(), config, { data });
  expect(calibration.facts.settings).toEqual({ rho: 1.5, tau: 0.99, whiten: true });
  await AdapterModel.create(new TinyModel(), config, { calibration });
  const other = { ...config, evaConfig: { rho: 3 } };
  await expect(AdapterModel.create(new TinyModel(), other, { calibration })).rejects.toThrow(
    'calibration: it was made with rho 1.5, not 3; calibrate again',
  );
  const refused = (evaConfig: Record<string, unknown>) =>
    calibrate(new TinyModel(), { ...config, evaConfig }, { data });
  await expect(refused({ use_label_mask: false })).rejects.toThrow(
    'eva_config: use_label_mask = false is not supported, only true is',
  );
  await expect(refused({ sigma: 1 })).rejects.toThrow(
    'eva_config: unknown option "sigma"; known: ',
  );
  await expect(refused({ rho: null })).rejects.toThrow(
    'eva_config: rho must be a number, a text, or true or false, got null',
  );
  await expect(refused({ whiten: 1 })).rejects.toThrow(
    'calibrate: whiten must be true or false, got 1',
  );
});
