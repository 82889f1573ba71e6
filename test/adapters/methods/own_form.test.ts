/** Properties that every method with tensors of its own (in the place of a pair A, B) must have. */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel, LoraModule } from '../../../lib/adapters/adapter_model.ts';
import {
  formatAdapterConfig,
  type LoraConfigInput,
  loraConfig,
  parseAdapterConfig,
} from '../../../lib/adapters/config.ts';
import { saveMerged } from '../../../lib/adapters/merge.ts';
import { METHOD_OPTION_NAMES, variantOf } from '../../../lib/adapters/methods/registry.ts';
import { loadSafetensors, saveSafetensors } from '../../../lib/io/safetensors.ts';
import { add, copy_, randn, zeros } from '../../../lib/ops/index.ts';
import { memoryStats, synchronize } from '../../../lib/runtime.ts';
import { noGrad, scope, type Tensor } from '../../../lib/tensor.ts';
import { Trainer } from '../../../lib/train/trainer.ts';
import { collectGarbage } from '../../support/collect_garbage.ts';
import { goldenArrays } from '../../support/golden.ts';
import { kOwnForms } from '../../support/own_forms.ts';
import { disturb, expectNear, hidden, readWeights } from '../../support/tiny_adapters.ts';
import { TinyModel, tinyBatches, tinySource } from '../../support/tiny_model.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-own-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const create = (model: TinyModel, config: LoraConfigInput) => AdapterModel.create(model, config);

describe.each(kOwnForms)('%s', (_, config) => {
  const { type } = variantOf(loraConfig(config));
  const settings = { ...loraConfig(config) };

  it('initially and while disabled leaves the base unchanged, and disposed of restores it', async () => {
    const model = new TinyModel();
    const base = hidden(model);
    await collectGarbage(); // models of earlier tests, which would be collected during this one
    const before = memoryStats().liveBytes;
    const tuned = await create(model, config);
    // Roundings of f32 are a share of a row's values.
    expectNear(hidden(model), base, 1e-6 * Math.max(1, ...base.map(Math.abs)));
    disturb(tuned);
    const moved = hidden(model);
    expect(moved.some((value, i) => Math.abs(value - (base[i] as number)) > 0.01)).toBe(true);
    expect(tuned.withTeacher(() => hidden(model))).toEqual(base);
    expect(hidden(model)).toEqual(moved);
    tuned.dispose();
    expect(hidden(model)).toEqual(base);
    expect(memoryStats().liveBytes).toBe(before);
  });

  it('keeps the idle keys of its file, also through a checkpoint', async () => {
    const tuned = await create(new TinyModel(), config);
    await tuned.savePretrained(folder);
    const path = (...names: string[]): string => join(folder, ...names, 'adapter_config.json');
    const usual = JSON.parse(readFileSync(path(), 'utf8'));
    const idle = Object.entries(type.keys).flatMap(([key, known]) => {
      if (!('idle' in known)) return [];
      return [[key, typeof known.idle === 'number' ? 5 : !known.idle] as const];
    });
    const given = { ...usual, ...Object.fromEntries(idle), auto_mapping: { parent_library: 'x' } };
    writeFileSync(path(), JSON.stringify(given));
    const read = await AdapterModel.fromPretrained(new TinyModel(), folder);
    await read.savePretrained(join(folder, 'again'));
    expect(JSON.parse(readFileSync(path('again'), 'utf8'))).toEqual(given);
    await new Trainer({
      ...{
        tuned: read,
        data: tinySource(tinyBatches()),
        output: join(folder, 'run'),
        learningRate: 0.01,
      },
      ...{ maxSteps: 4, saveSteps: 4 },
    }).train();
    const checkpoint = join(folder, 'run', 'run', 'checkpoints', 'step-4');
    const resumed = await AdapterModel.fromPretrained(new TinyModel(), checkpoint);
    await resumed.savePretrained(join(folder, 'kept'));
    const kept = { ...Object.fromEntries(idle), auto_mapping: given.auto_mapping };
    expect(JSON.parse(readFileSync(path('kept'), 'utf8'))).toMatchObject(kept);
  });

  it('gives the same model after export and loading in its own form', async () => {
    const model = new TinyModel();
    const tuned = await create(model, config);
    disturb(tuned);
    await tuned.savePretrained(folder);
    const loaded = new TinyModel();
    const again = await AdapterModel.fromPretrained(loaded, folder);
    expect(again.warnings).toEqual([]);
    expect(hidden(loaded)).toEqual(hidden(model));
    const written = JSON.parse(readFileSync(join(folder, 'adapter_config.json'), 'utf8'));
    expect(written).toMatchObject({ peft_type: type.peftType, r: settings.r });
    const hasDora = Object.hasOwn(type.keys, 'use_dora');
    expect(Object.hasOwn(written, 'use_dora')).toBe(hasDora);
    const keys = [...goldenArrays(join(folder, 'adapter_model.safetensors')).keys()];
    const module = 'base_model.model.layers.0.up_proj.';
    expect(keys.filter((key) => key.startsWith(module)).sort()).toEqual(
      type
        .tensors(settings)
        .filter(({ isState = false }) => !isState)
        .map(({ key }) => module + key)
        .sort(),
    );
    expect(keys.filter((key) => !key.startsWith('base_model.model.')).sort()).toEqual(
      type.shared.map(({ key }) => `base_model.${key}`).sort(),
    );
  });

  it('is restored from its state bit for bit', async () => {
    const [model, other] = [new TinyModel(), new TinyModel()];
    const tuned = await create(model, config);
    disturb(tuned);
    const again = await create(other, config);
    hidden(other);
    again.restore(tuned.state(), 'a state');
    expect(hidden(other)).toEqual(hidden(model));
    expect(again.identity()).toEqual(tuned.identity());
  });

  it('gives the same model after merging, on disk and in memory', async () => {
    const model = new TinyModel();
    const tuned = await create(model, config);
    disturb(tuned);
    const expected = hidden(model);
    const out = join(folder, 'merged');
    await saveMerged(tuned, out);
    expectNear(hidden(readWeights(new TinyModel(), out)), expected, 1e-5);
    expect(await tuned.mergeAndUnload()).toBe(model);
    expect(hidden(model)).toEqual(hidden(readWeights(new TinyModel(), out)));
  });

  it('gives the same model as a plain LoRA, or says why there is none', async () => {
    const model = new TinyModel();
    const tuned = await create(model, config);
    disturb(tuned);
    const out = join(folder, 'plain');
    if (type.loraObstacle(settings) !== null) {
      await expect(tuned.savePretrained(out, { form: 'plain-lora' })).rejects.toThrow(
        `${type.peftType} changes the whole weight at full rank`,
      );
      expect(existsSync(out)).toBe(false);
      return;
    }
    await tuned.savePretrained(out, { form: 'plain-lora' });
    const plain = new TinyModel();
    const again = await AdapterModel.fromPretrained(plain, out);
    expect([again.config.peftType, again.warnings]).toEqual(['LORA', []]);
    expectNear(hidden(plain), hidden(model), 1e-5);
  });

  it('has no residual form, and no pair', async () => {
    const tuned = await create(new TinyModel(), config);
    expect(() => tuned.checkForm('residual')).toThrow(/export "residual" is /);
    expect(tuned.modules[0]).not.toBeInstanceOf(LoraModule);
    expect(() => tuned.modules[0]?.pair).toThrow(
      `layers.0.gate_proj: an adapter of the type ${type.peftType} has no pair A, B`,
    );
  });

  it('trains on a bf16 base in f32, beside another adapter and with dropout, and resumes bit for bit', async () => {
    const keys = Object.values(type.keys);
    const hasDropout = keys.some((key) => 'option' in key && key.option === 'loraDropout');
    const run = async (): Promise<{ tuned: AdapterModel; start: number }> => {
      const model = new TinyModel({ dtype: 'bf16', width: 16 });
      const tuned = await create(model, { ...config, ...(hasDropout && { loraDropout: 0.3 }) });
      await tuned.addAdapter('other', { r: 2 });
      let start = -1;
      await new Trainer({
        ...{ tuned, data: tinySource(tinyBatches()), learningRate: 0.02, maxSteps: 4 },
        ...{ output: folder, resume: true, saveSteps: 2, gradientAccumulationSteps: 2 },
        callbacks: [
          (event) => {
            if (event.type === 'start') start = event.startStep;
          },
        ],
      }).train();
      return { tuned, start };
    };
    const last = join(folder, 'run/checkpoints/step-4');
    const bytes = () => readFileSync(join(last, 'state.safetensors'));
    const { tuned, start } = await run();
    expect(start).toBe(0);
    for (const { name, tensor } of tuned.parameters()) expect(tensor.dtype, name).toBe('f32');
    const before = bytes();
    const loaded = new TinyModel({ dtype: 'bf16', width: 16 });
    const again = await AdapterModel.fromPretrained(loaded, last);
    expect(again.warnings).toEqual([]);
    const values = (of: AdapterModel) =>
      new Map(Object.entries(of.state()).map(([name, tensor]) => [name, tensor.dataSync()]));
    expect(values(again)).toEqual(values(tuned));
    rmSync(last, { recursive: true });
    expect((await run()).start).toBe(2);
    expect(bytes().equals(before)).toBe(true);
  });
});

describe('a configuration', () => {
  it.each<[LoraConfigInput, string]>([
    [
      { peftType: 'VERA', loraAlpha: 16 },
      'loraAlpha is an option of peftType LORA, ADALORA, LORA_DASH, LORA_XS, RANDLORA, not of VERA; leave it out',
    ],
    [{ peftType: 'VERA', useRslora: true }, 'useRslora is an option of peftType LORA, not of VERA'],
    [
      { peftType: 'HIRA', alphaPattern: { up_proj: 2 } },
      'alphaPattern is an option of peftType LORA, LORA_DASH, LORA_XS, not of HIRA',
    ],
    [{ dInitial: 0.5 }, 'dInitial is an option of peftType VERA, not of LORA; leave it out'],
    [
      { peftType: 'MISS', useDora: true },
      'useDora cannot go with peftType; switch one of them off',
    ],
    [
      { peftType: 'HRA', initLoraWeights: 'pissa' },
      'peftType needs initLoraWeights true, got "pissa"',
    ],
    [{ peftType: 'MISS', missForm: 'bar' as 'bat' }, 'missForm must be one of miss, bat, mini'],
    [{ peftType: 'BONE' }, 'peftType must be one of LORA, '],
  ])('%j is refused', (config, message) => {
    expect(() => loraConfig(config)).toThrow(`loraConfig: ${message}`);
  });

  it.each<[LoraConfigInput, string]>([
    [{ peftType: 'HRA', r: 3 }, 'r=3 must be even, so that the reflections start in pairs'],
    [{ peftType: 'HRA', r: 4, applyGs: true }, 'applyGs true has no start that leaves the base'],
    [{ peftType: 'HRA', r: 10 }, 'r=10 must be at most the number of inputs, 8'],
    [{ peftType: 'MISS', r: 3, missForm: 'bat' }, 'r=3 must divide both sizes of the matrix'],
    [{ peftType: 'MISS', r: 4, missForm: 'mini', miniR: 3 }, 'miniR=3 must divide the outputs, 16'],
    [{ peftType: 'MISS', r: 4, miniR: 2 }, 'miniR=2 needs missForm "mini"'],
    [{ peftType: 'PEANUT', r: 9 }, 'rank r=9 is larger than the matrix (out,in)=(16,8) allows'],
  ])('%j cannot be created', async (config, message) => {
    const model = new TinyModel();
    await collectGarbage(); // and the model's weights are there, and what they were made of is not
    const before = memoryStats().liveBytes;
    await expect(create(model, config)).rejects.toThrow(`layers.0.gate_proj: ${message}`);
    await synchronize();
    expect(memoryStats().liveBytes).toBe(before);
  });

  it.each<[Record<string, unknown>, string]>([
    [{ bias: 'all' }, 'bias = "all" is not supported for peft_type "VERA", only "none" is'],
    [{ new_switch: 2 }, 'the key "new_switch" = 2 is not understood'],
    [
      { peft_type: 'BOFT' },
      'peft_type "BOFT" is not supported; give the folder of an adapter with',
    ],
    [{ r: undefined }, 'r is missing'],
  ])('of a file with %j is refused', (change, message) => {
    const file = {
      ...JSON.parse(formatAdapterConfig(loraConfig({ peftType: 'VERA' }))),
      ...change,
    };
    expect(() => parseAdapterConfig(JSON.stringify(file))).toThrow(message);
  });

  it('has the options of its type alone', () => {
    const own = (config: LoraConfigInput): string[] =>
      METHOD_OPTION_NAMES.filter((name) => name in loraConfig(config));
    expect(own({})).toEqual(['loraBias', 'useRslora', 'useDora']);
    expect(own({ peftType: 'VERA' })).toEqual(['dInitial']);
    expect(own({ peftType: 'HIRA' })).toEqual([]);
    // A configuration of an earlier version has those of all types.
    expect(own({ peftType: 'MISS', dInitial: 0.1, useDora: false })).toEqual([
      ...['missForm', 'miniR'],
    ]);
  });

  it('of a file may have another seed of PEFT, and other first values', () => {
    const config = loraConfig({ peftType: 'VERA', r: 16, dInitial: 0.5 });
    const file = JSON.parse(formatAdapterConfig(config)) as Record<string, unknown>;
    const read = { ...file, projection_prng_key: 7, init_weights: false };
    const keptKeys = { init_weights: false, projection_prng_key: 7 };
    expect(parseAdapterConfig(JSON.stringify(read))).toEqual({ ...config, keptKeys });
    expect(parseAdapterConfig(JSON.stringify({ ...file, d_initial: 0.25 })).dInitial).toBe(0.25);
  });

  it('keeps the idle keys of its type alone, and refuses others that a caller names', async () => {
    const keptKeys = { projection_prng_key: 7 };
    expect(loraConfig({ peftType: 'VERA', keptKeys })).toMatchObject({ keptKeys });
    const refused: [object, RegExp][] = [
      [{ evil: 1 }, /keptKeys has "evil", which is no idle key of .* for LORA; .* megatron_core/],
      [{ r: 99 }, /keptKeys has "r"/],
      [keptKeys, /keptKeys has "projection_prng_key"/],
      [{ megatron_core: 2 ** 60 }, /keptKeys\.megatron_core must be a value of JSON .*, got 1152/],
    ];
    for (const [given, message] of refused) {
      const config = { r: 2, keptKeys: given } as LoraConfigInput;
      await expect(create(new TinyModel(), config)).rejects.toThrow(message);
    }
  });
});

describe('a file', () => {
  /** Saves an adapter and changes the tensors of its file. */
  const changed = async (
    config: LoraConfigInput,
    change: (tensors: Record<string, Tensor>) => Record<string, Tensor>,
  ): Promise<void> => {
    await (await create(new TinyModel(), config)).savePretrained(folder);
    const path = join(folder, 'adapter_model.safetensors');
    const { tensors } = await loadSafetensors(path);
    await saveSafetensors(path, change(tensors));
  };

  it('that repeats the shared bases in each module, as PEFT writes RandLoRA, is read; with others it is refused', async () => {
    const config: LoraConfigInput = { peftType: 'RANDLORA', r: 4 };
    const key = 'base_model.model.layers.0.up_proj.randlora_A';
    await changed(config, (tensors) => ({
      ...tensors,
      [key]: tensors['base_model.randlora_A'] as Tensor,
    }));
    const tuned = await AdapterModel.fromPretrained(new TinyModel(), folder);
    expect(tuned.modules).toHaveLength(6);
    await changed(config, (tensors) => ({
      ...tensors,
      [key]: zeros((tensors['base_model.randlora_A'] as Tensor).shape),
    }));
    await expect(AdapterModel.fromPretrained(new TinyModel(), folder)).rejects.toThrow(
      'layers.0.up_proj.randlora_A differs from the tensor of that name that all modules share',
    );
  });

  it('without the shared matrices, or with tensors of other shapes, is refused', async () => {
    const config: LoraConfigInput = { peftType: 'VERA', r: 4 };
    await changed(config, ({ 'base_model.vera_A': _, ...tensors }) => tensors);
    await expect(AdapterModel.fromPretrained(new TinyModel(), folder)).rejects.toThrow(
      /has no base_model\.vera_A, which all modules share .*save_projection true/,
    );
    await changed(config, (tensors) => ({ ...tensors, 'base_model.vera_A': zeros([4, 9]) }));
    await expect(AdapterModel.fromPretrained(new TinyModel(), folder)).rejects.toThrow(
      'base_model.vera_A must have the shape (4,16) for this model, got (4,9)',
    );
    const key = 'base_model.model.layers.0.up_proj.vera_lambda_d';
    await changed(config, (tensors) => ({ ...tensors, [key]: zeros([5]) }));
    await expect(AdapterModel.fromPretrained(new TinyModel(), folder)).rejects.toThrow(
      'layers.0.up_proj: vera_lambda_d must have the shape (4) for this model, got (5)',
    );
  });
});

it('updates of a bf16 base react to changes far below the rounding of bf16', async () => {
  for (const [name, config] of kOwnForms) {
    const model = new TinyModel({ dtype: 'bf16', width: 16 });
    const tuned = await create(model, config);
    disturb(tuned, 1, 0.3); // a factor that is 0 would hide the others
    const before = hidden(model);
    // Each parameter moves by values of its own: HRA's vectors start in equal pairs, which would cancel.
    for (const [seed, { tensor }] of tuned.parameters().entries()) {
      const change = { seed, deviation: 2 ** -12 };
      const moved = scope(() => noGrad(() => add(tensor, randn(tensor.shape, change))));
      noGrad(() => copy_(tensor, moved));
    }
    expect(hidden(model), name).not.toEqual(before);
    tuned.dispose();
  }
});
