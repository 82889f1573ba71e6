import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel, type LoraModule } from '../../lib/adapters/adapter_model.ts';
import { deltaOf } from '../../lib/adapters/low_rank.ts';
import { saveMerged } from '../../lib/adapters/merge.ts';
import type { StartFunction } from '../../lib/adapters/starts.ts';
import { FormatError, UnsupportedError } from '../../lib/errors.ts';
import { loadSafetensors, saveSafetensors } from '../../lib/io/safetensors.ts';
import { add_, copy_, full, randn } from '../../lib/ops/index.ts';
import { noGrad, scope, type Tensor, tensor } from '../../lib/tensor.ts';
import { goldenArray, goldenArrays } from '../support/golden.ts';
import { disturb, expectNear, hidden, readWeights } from '../support/tiny_adapters.ts';
import { TinyModel } from '../support/tiny_model.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-adapter-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const numbers = (value: Tensor): number[] => Array.from(value.dataSync() as Float32Array);

describe('a fresh adapter', () => {
  it('marks its pairs as a small change of W or not; a loaded one by their size and by terms that cancel', async () => {
    const isChange = (tuned: AdapterModel): boolean[] => [
      ...new Set(tuned.modules.map((module) => module.update()?.lowRank[0]?.form === 'change')),
    ];
    for (const [initLoraWeights, fresh, loaded] of [
      [true, true, true],
      ['gaussian', true, true],
      [false, true, false], // B is random, too, and B A as large as the weights
      ['pissa', false, false], // B A - B0 A0, a small difference in one pair of twice the rank
    ] as const) {
      const tuned = await AdapterModel.create(new TinyModel(), { r: 2, initLoraWeights });
      expect(isChange(tuned), String(initLoraWeights)).toEqual([fresh]);
      for (const { tensor: parameter } of tuned.parameters()) {
        const change = randn(parameter.shape, { seed: 3, deviation: 0.01 });
        scope(() => noGrad(() => add_(parameter, change)));
      }
      await tuned.savePretrained(folder);
      const again = await AdapterModel.fromPretrained(new TinyModel(), folder);
      expect(isChange(again), String(initLoraWeights)).toEqual([loaded]);
    }
    // The principal part of W, for a residual base: no terms cancel, but it is most of the weight.
    const tuned = await AdapterModel.create(new TinyModel(), { r: 4, initLoraWeights: 'pissa' });
    await tuned.savePretrained(folder, { form: 'residual' });
    expect(isChange(await AdapterModel.fromPretrained(new TinyModel(), folder))).toEqual([false]);
  });

  it('refuses targets that match nothing, ranks that do not fit, and a second adapter', async () => {
    const model = new TinyModel();
    await expect(AdapterModel.create(model, { targetModules: ['q_proj'] })).rejects.toThrow(
      /matches no linear module; names that exist: gate_proj, up_proj, down_proj/,
    );
    await expect(AdapterModel.create(model, { r: 9 })).rejects.toThrow(
      /rank r=9 is larger than the matrix/,
    );
    await AdapterModel.create(model, { r: 2 });
    await expect(AdapterModel.create(model, { r: 2 })).rejects.toThrow(/has an adapter already/);
  });
});

describe('an adapter folder', () => {
  it('of form "residual" holds the pair of rank r for the base W - s B0 A0', async () => {
    const model = new TinyModel();
    const tuned = await AdapterModel.create(model, {
      r: 3,
      loraAlpha: 6,
      initLoraWeights: 'pissa',
    });
    disturb(tuned);
    const expected = hidden(model);
    await tuned.savePretrained(folder, { form: 'residual' });
    const residual = readWeights(new TinyModel(), join(folder, 'residual'));
    await AdapterModel.fromPretrained(residual, folder);
    expectNear(hidden(residual), expected, 1e-4);
    expect(
      JSON.parse(readFileSync(join(folder, 'initial/adapter_config.json'), 'utf8')),
    ).toMatchObject({
      r: 3,
      inference_mode: false,
    });
    const lora = await AdapterModel.create(new TinyModel(), { r: 3 });
    await expect(lora.savePretrained(join(folder, 'x'), { form: 'residual' })).rejects.toThrow(
      UnsupportedError,
    );
  });

  it('of form "residual" is refused for tensors besides A and B, which it has no place for', async () => {
    const principal: StartFunction = (modules) =>
      modules.map(({ inFeatures, outFeatures, r }) => ({
        a: randn([r, inFeatures], { seed: 1 }),
        b: randn([outFeatures, r], { seed: 2 }),
        fromWeight: true,
      }));
    const config = { r: 2, loraBias: true, initLoraWeights: principal };
    const tuned = await AdapterModel.create(new TinyModel(), config);
    const saved = tuned.savePretrained(join(folder, 'none'), { form: 'residual' });
    await expect(saved).rejects.toThrow(/trains lora_B\.bias besides A and B; export it as "lora"/);
    expect(existsSync(join(folder, 'none'))).toBe(false);
  });

  it('saved as "pissa" is loaded onto a residual that is computed again, with a warning', async () => {
    const model = new TinyModel();
    const tuned = await AdapterModel.create(model, {
      r: 3,
      loraAlpha: 3,
      initLoraWeights: 'pissa',
    });
    const base = hidden(model);
    await tuned.savePretrained(folder, { form: 'residual' });
    const config = JSON.parse(readFileSync(join(folder, 'adapter_config.json'), 'utf8'));
    writeFileSync(
      join(folder, 'adapter_config.json'),
      JSON.stringify({ ...config, init_lora_weights: 'pissa' }),
    );
    const loaded = new TinyModel();
    const again = await AdapterModel.fromPretrained(loaded, folder);
    expect(again.warnings[0]).toMatch(/belongs on a residual/);
    expectNear(hidden(loaded), base, 1e-4);
    writeFileSync(
      join(folder, 'adapter_config.json'),
      JSON.stringify({ ...config, init_lora_weights: 'mica' }),
    );
    const foreign = AdapterModel.fromPretrained(new TinyModel(), folder);
    await expect(foreign).rejects.toThrow(UnsupportedError);
    await expect(foreign).rejects.toThrow(
      `${folder}: the adapter was saved as init_lora_weights "mica", so it belongs on a residual that only PEFT makes`,
    );
  });

  it('merges into the weights and reports the largest rounding error', async () => {
    for (const [dtype, tolerance] of [
      ['f32', 1e-5],
      ['bf16', 0.2],
    ] as const) {
      const model = new TinyModel({ dtype });
      const tuned = await AdapterModel.create(model, { r: 3, loraAlpha: 6 });
      disturb(tuned);
      const expected = hidden(model);
      const out = join(folder, dtype);
      const error = await saveMerged(tuned, out);
      const merged = new TinyModel({ dtype });
      const weights = goldenArrays(join(out, 'model.safetensors'));
      let worst = 0;
      for (const [name, parameter] of merged.namedParameters()) {
        const { data, shape } = goldenArray(weights, name);
        scope(() => noGrad(() => copy_(parameter, tensor(data, { shape }))));
        const module = tuned.modules.find((one) => `${one.name}.weight` === name);
        if (module === undefined) continue;
        const delta = scope(() => numbers(deltaOf(module)));
        const old = numbers(module.linear.weight);
        numbers(parameter).forEach((value, i) => {
          worst = Math.max(worst, Math.abs(value - ((old[i] as number) + (delta[i] as number))));
        });
      }
      expectNear(hidden(merged), expected, tolerance);
      expect(Math.abs(error.maxAbsError - worst)).toBeLessThan(1e-7);
      expect(error.maxAbsError).toBeLessThan(dtype === 'f32' ? 1e-6 : 0.02);
      expect(error.module).toMatch(/^layers\./);
    }
  });

  it.each([
    [
      "a state dict with the adapter's name",
      (key: string) => key.replace(/lora_(A|B|magnitude_vector)/, '$&.default'),
    ],
    ['a magnitude that ends in .weight', (key: string) => key.replace(/vector$/, 'vector.weight')],
    [
      'both',
      (key: string) =>
        key.replace(/lora_(A|B)/, '$&.default').replace(/vector$/, 'vector.default.weight'),
    ],
    ['keys without a prefix', (key: string) => key.replace('base_model.model.', '')],
  ])('is read with other keys: %s', async (_, rename) => {
    for (const config of [{ useDora: true }, { loraBias: true }]) {
      const model = new TinyModel();
      const tuned = await AdapterModel.create(model, { r: 3, ...config });
      disturb(tuned);
      await tuned.savePretrained(folder);
      const path = join(folder, 'adapter_model.safetensors');
      const { tensors } = await loadSafetensors(path);
      await saveSafetensors(
        path,
        Object.fromEntries(Object.entries(tensors).map(([key, value]) => [rename(key), value])),
      );
      const loaded = new TinyModel();
      await AdapterModel.fromPretrained(loaded, folder);
      expectNear(hidden(loaded), hidden(model), 1e-5);
    }
  });

  it('that does not fit is refused with an error that names the tensor', async () => {
    const tuned = await AdapterModel.create(new TinyModel(), { r: 3 });
    await tuned.savePretrained(folder);
    const { a, b } = (tuned.modules[0] as LoraModule).pair;
    const variant = async (tensors: Record<string, Tensor>): Promise<string> => {
      const path = join(folder, 'variant');
      mkdirSync(path, { recursive: true });
      copyFileSync(join(folder, 'adapter_config.json'), join(path, 'adapter_config.json'));
      await saveSafetensors(join(path, 'adapter_model.safetensors'), tensors);
      return path;
    };
    const at = 'base_model.model.layers.0.gate_proj';
    const cases: [Record<string, Tensor>, unknown, RegExp][] = [
      [{ [`${at}.lora_A.weight`]: a }, FormatError, /layers.0.gate_proj has no lora_B/],
      [{ [`${at}.lora_A.weight`]: a, [`${at}.lora_B.weight`]: a }, FormatError, /do not fit/],
      [
        { [`${at}x.lora_A.weight`]: a, [`${at}x.lora_B.weight`]: b },
        FormatError,
        /no linear module of the model/,
      ],
      [
        {
          [`${at}.lora_A.weight`]: a,
          [`${at}.lora_B.weight`]: b,
          [`${at}.lora_magnitude_vector`]: a,
        },
        FormatError,
        /has a lora_magnitude_vector, which its adapter_config.json does not provide for/,
      ],
      [{ [`${at}.lora_embedding_A`]: a }, UnsupportedError, /"base_model.*lora_embedding_A"/],
      [
        {
          'base_model.model.layers.0.down_proj.lora_A.weight': a,
          'base_model.model.layers.0.down_proj.lora_B.weight': b,
        },
        FormatError,
        /lora_A\.weight must have the shape \(3,16\) for this model, got \(3,8\)/,
      ],
    ];
    for (const [tensors, type, message] of cases) {
      const path = await variant(tensors);
      const loading = AdapterModel.fromPretrained(new TinyModel(), path);
      await expect(loading).rejects.toThrow(type as typeof Error);
      await expect(loading).rejects.toThrow(message);
    }
    await expect(
      AdapterModel.fromPretrained(new TinyModel(), join(folder, 'none')),
    ).rejects.toThrow(FormatError);
  });

  it('with a value that is not finite is refused', async () => {
    const tuned = await AdapterModel.create(new TinyModel(), { r: 3 });
    const { b } = (tuned.modules[1] as LoraModule).pair;
    scope(() => noGrad(() => copy_(b, full(b.shape, Number.NaN))));
    await tuned.savePretrained(folder);
    const loading = AdapterModel.fromPretrained(new TinyModel(), folder);
    await expect(loading).rejects.toThrow(FormatError);
    await expect(loading).rejects.toThrow(/lora_B\.weight: element 0 is NaN or infinite/);
  });

  it('that lacks modules which its configuration selects is loaded with a warning', async () => {
    const tuned = await AdapterModel.create(new TinyModel(), { targetModules: ['up_proj'], r: 3 });
    await tuned.savePretrained(folder);
    const path = join(folder, 'adapter_config.json');
    const config = JSON.parse(readFileSync(path, 'utf8'));
    const warnings = async (changes: object) => {
      writeFileSync(path, JSON.stringify({ ...config, ...changes }));
      const { warnings: all } = await AdapterModel.fromPretrained(new TinyModel(), folder);
      return all.filter((warning) => !warning.includes('was changed after'));
    };
    expect(await warnings({})).toEqual([]);
    expect(await warnings({ target_modules: ['up_proj', 'gate_proj', 'down_proj'] })).toEqual([
      expect.stringMatching(
        /no tensors for 4 of the modules that target_modules selects \(layers\.0\.gate_proj, layers\.0\.down_proj, layers\.1\.gate_proj, \.\.\.\)/,
      ),
    ]);
    expect(
      await warnings({ target_modules: 'all-linear', exclude_modules: ['down_proj'] }),
    ).toEqual([
      expect.stringMatching(
        /no tensors for 2 of .* \(layers\.0\.gate_proj, layers\.1\.gate_proj\)/,
      ),
    ]);
    expect(await warnings({ target_modules: '.*up_pro++j' })).toEqual([
      expect.stringMatching(/not known whether it lacks modules: pattern/),
    ]);
  });
});
