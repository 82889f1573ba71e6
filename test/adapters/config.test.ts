import { readdirSync, readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import {
  configIdentity,
  formatAdapterConfig,
  type LoraConfig,
  loraConfig,
  loraScale,
  parseAdapterConfig,
} from '../../lib/adapters/config.ts';
import { keepsBase, PEFT_TYPES } from '../../lib/adapters/methods/registry.ts';
import { PythonFloat, type PythonJson, pythonJson } from '../../lib/adapters/python_json.ts';
import { ArgumentError, FormatError, UnsupportedError } from '../../lib/errors.ts';
import { fixturePath } from '../support/fixtures.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

const minimal = (extra: object): string =>
  JSON.stringify({ peft_type: 'LORA', r: 4, lora_alpha: 8, ...extra });

describeShared('adapter_config.json of PEFT 0.21 on SmolLM2', () => {
  it.each([
    'lora_r4',
    'rslora_r2',
    'dora_r2',
    'pattern',
    'pissa_to_lora/trained',
    'pissa_to_lora/initial',
    'pissa_to_lora/converted',
  ])('%s is read and written back byte for byte', (name) => {
    const text = readFileSync(sharedPath(`golden/smollm2/${name}/adapter_config.json`), 'utf8');
    expect(formatAdapterConfig(parseAdapterConfig(text))).toBe(text);
  });
});

describe('adapter_config.json of PEFT 0.21', () => {
  const read = (path: string): string => readFileSync(fixturePath(`architectures/${path}`), 'utf8');

  const adapters = readdirSync(fixturePath('architectures'), {
    recursive: true,
    encoding: 'utf8',
  }).filter((path) => path.endsWith('adapter_config.json'));
  it.each(adapters)('%s is written again as it was, but for the order of targets', (path) => {
    const text = read(path);
    // PEFT writes the targets in the order of a Python set, which is arbitrary.
    const sorted = JSON.parse(text) as { target_modules: string[] | string };
    if (Array.isArray(sorted.target_modules)) sorted.target_modules.sort();
    expect(formatAdapterConfig(parseAdapterConfig(text))).toBe(
      formatAdapterConfig(parseAdapterConfig(JSON.stringify(sorted))),
    );
    expect(JSON.parse(formatAdapterConfig(parseAdapterConfig(text)))).toEqual(sorted);
  });

  it('keeps patterns under names that objects have of their own, and knows no such keys', () => {
    const patterns = '{"a": 1, "__proto__": 2, "constructor": 3}';
    const config = parseAdapterConfig(
      `{"peft_type": "LORA", "rank_pattern": ${patterns}, "alpha_pattern": ${patterns}}`,
    );
    const pairs = [
      ['a', 1],
      ['__proto__', 2],
      ['constructor', 3],
    ];
    expect([config.rankPattern, config.alphaPattern]).toEqual([pairs, pairs]);
    const again = parseAdapterConfig(formatAdapterConfig(config));
    expect([...again.rankPattern].sort()).toEqual([...pairs].sort());
    expect(loraConfig({ rankPattern: JSON.parse(patterns) }).rankPattern).toEqual(pairs);
    for (const key of ['__proto__', 'constructor', 'toString']) {
      const raw = JSON.parse(`{"peft_type": "LORA", "${key}": 3}`) as object;
      expect(() => parseAdapterConfig(JSON.stringify(raw))).toThrow(
        `the key "${key}" = 3 is not understood`,
      );
      expect(() => loraConfig(JSON.parse(`{"${key}": 3}`))).toThrow(`unknown option "${key}"`);
    }
  });

  it('reads a minimal config with an unknown neutral key as the full one', () => {
    const full = parseAdapterConfig(read('llama-untied-gqa/adapter/adapter_config.json'));
    const least = parseAdapterConfig(read('llama-untied-gqa/adapter_config-minimal.json'));
    const same: (keyof LoraConfig)[] = [
      'r',
      'loraAlpha',
      'targetModules',
      'rankPattern',
      'useRslora',
      'initLoraWeights',
    ];
    for (const key of same) expect(least[key]).toEqual(full[key]);
  });
});

describe('reading', () => {
  it.each([
    ['{', FormatError, /not JSON/],
    ['[]', FormatError, /one JSON object/],
    ['{}', FormatError, /peft_type is missing/],
    ['{"peft_type":"IA3"}', UnsupportedError, /peft_type "IA3"/],
    [minimal({ r: 0 }), FormatError, /r must be a whole number >= 1, got 0/],
    [minimal({ r: '4' }), FormatError, /r must be a whole number/],
    [minimal({ target_modules: [1] }), FormatError, /target_modules must be/],
    [
      minimal({ rank_pattern: { a: 1.5 } }),
      FormatError,
      /rank_pattern must be an object of patterns, each with a whole number >= 1, got {"a":1.5}/,
    ],
    [minimal({ layers_to_transform: [-1] }), FormatError, /layers_to_transform/],
    [
      minimal({ lora_bias: true, use_dora: true }),
      FormatError,
      /lora_bias cannot go with use_dora/,
    ],
    [
      minimal({ layers_to_transform: [1], target_modules: '.*q_proj' }),
      FormatError,
      /layers_to_transform and layers_pattern need a list of target_modules/,
    ],
    [minimal({ layers_pattern: 'h' }), FormatError, /layers_pattern needs layers_to_transform/],
    [minimal({ modules_to_save: 'score' }), FormatError, /modules_to_save must be a list of names/],
    [minimal({ bias: 'all' }), UnsupportedError, /bias = "all"/],
    [minimal({ use_qalora: true }), UnsupportedError, /use_qalora/],
    [minimal({ kasa_config: { rank: 4 } }), UnsupportedError, /kasa_config/],
    [minimal({ new_trick: 0.5 }), UnsupportedError, /"new_trick" = 0.5 is not understood/],
  ])('%s', (text, type, message) => {
    expect(() => parseAdapterConfig(text)).toThrow(type);
    expect(() => parseAdapterConfig(text)).toThrow(message);
  });

  it('ignores an unknown key on request, and unknown keys that are switched off', () => {
    expect(parseAdapterConfig(minimal({ new_trick: 0.5 }), { ignoreKeys: ['new_trick'] }).r).toBe(
      4,
    );
    expect(
      parseAdapterConfig(minimal({ new_trick: null, other: false, third: {}, list: [] })).loraAlpha,
    ).toBe(8);
  });

  it('keeps a fractional alpha and an initialisation that only PEFT knows', () => {
    const config = parseAdapterConfig(
      minimal({ lora_alpha: 5.656854249492381, init_lora_weights: 'eva' }),
    );
    expect(loraScale(config.loraAlpha, 8, { ...config, useRslora: true })).toBeCloseTo(2, 12);
    expect(keepsBase(config.initLoraWeights)).toBe(true);
    expect(keepsBase('pissa')).toBe(false);
  });
});

/** Values that are not the default, by key: one for the key of every type, or one for that of a type alone (`TYPE.key`). */
const kOtherValues: Readonly<Record<string, unknown>> = {
  alpha_pattern: { q_proj: 3 },
  act_fn: 'silu',
  apply_GS: true,
  auto_mapping: { base_model_class: 'LlamaModel', parent_library: 'transformers.models.llama' },
  base_model_name_or_path: 'owner/base',
  beta1: 0.5,
  beta2: 0.75,
  corda_config: { corda_method: 'ipm', cache_file: 'covariance.pt' },
  d_initial: 0.5,
  dash_index: 3,
  dash_warmup: 7,
  deltaT: 5,
  depth: 2,
  eva_config: { rho: 3, tau: 0.5 },
  exclude_modules: ['k_proj'],
  fan_in_fan_out: true,
  inference_mode: false,
  hira_dropout: 0.25,
  init_lora_weights: 'gaussian',
  init_r: 10,
  init_weights: false,
  'MISS.init_weights': 'bat',
  layers_pattern: ['layers'],
  layers_to_transform: [0, 2],
  loftq_config: { loftq_bits: 4, loftq_iter: 1 },
  lora_alpha: 5.5,
  lora_bias: true,
  lora_dropout: 0.25,
  lora_ga_config: { direction: 'ArBr', scale: 'gd', stable_gamma: 8 },
  megatron_core: 'megatron.other',
  mini_r: 2,
  miss_dropout: 0.25,
  modules_to_save: ['lm_head'],
  orth_reg_weight: 0.25,
  projection_prng_key: 5,
  qalora_group_size: 32,
  r: 6,
  randlora_alpha: 7,
  randlora_dropout: 0.25,
  rank_pattern: { q_proj: 2 },
  'ADALORA.rank_pattern': { 'layers.0.q_proj.lora_E': [true, false] },
  revision: 'v1',
  scaling: 2.5,
  sparse: true,
  target_modules: ['q_proj', 'v_proj'],
  target_r: 4,
  task_type: 'SEQ_CLS',
  tfinal: 3,
  tinit: 2,
  total_step: 50,
  use_dora: true,
  'ADALORA.use_dora': undefined,
  use_rslora: true,
  vera_dropout: 0.25,
  very_sparse: true,
};

/** Keys that describe what is written, and not what was read. */
const kOfWriter = ['peft_type', 'peft_version', 'save_projection'];

describe('each value of a file', () => {
  const textOf = (raw: object): string => JSON.stringify(raw);
  const again = (raw: object): Record<string, unknown> =>
    JSON.parse(formatAdapterConfig(parseAdapterConfig(textOf(raw))));

  it.each(PEFT_TYPES)('is written again as it was read: %s', (peftType) => {
    const usual = JSON.parse(formatAdapterConfig(loraConfig({ peftType }))) as Record<
      string,
      unknown
    >;
    expect(again(usual)).toEqual(usual);
    for (const key of Object.keys(usual)) {
      if (kOfWriter.includes(key)) continue;
      const own = `${peftType}.${key}`;
      const value = kOtherValues[Object.hasOwn(kOtherValues, own) ? own : key];
      // A key has another value that is written again, or another one is refused.
      if (value === undefined) {
        const other = textOf({ ...usual, [key]: { rank: 4 } });
        expect(() => parseAdapterConfig(other), key).toThrow(new RegExp(`${key} = .*supported`));
        continue;
      }
      expect(value, `${key} has its usual value`).not.toEqual(usual[key]);
      // The pattern of layers needs layers.
      const layers = key === 'layers_pattern' ? { layers_to_transform: [1] } : {};
      const given = { ...usual, ...layers, [key]: value };
      expect(again(given), key).toEqual(given);
    }
  });

  it('is written again also where balora has another word for it', () => {
    const usual = JSON.parse(formatAdapterConfig(loraConfig())) as object;
    for (const given of [
      { init_lora_weights: 'corda', corda_config: { corda_method: 'kpm', verbose: true } },
      { init_lora_weights: 'loftq', loftq_config: { loftq_iter: 5 } },
      { init_lora_weights: 'eva', eva_config: { rho: 3 } },
    ]) {
      expect(again({ ...usual, ...given })).toEqual({ ...usual, ...given });
    }
    const written = (initLoraWeights: 'corda_kpm' | 'loftq_iter_5') =>
      JSON.parse(formatAdapterConfig(loraConfig({ initLoraWeights })));
    expect(written('corda_kpm')).toMatchObject({
      ...{ init_lora_weights: 'corda', corda_config: { corda_method: 'kpm' } },
    });
    expect(written('loftq_iter_5')).toMatchObject({
      ...{ init_lora_weights: 'loftq', loftq_config: { loftq_bits: 4, loftq_iter: 5 } },
    });
  });

  it('is refused by name where it could not be written again', () => {
    const raw = { peft_type: 'VERA', r: 4, projection_prng_key: 2 ** 60 };
    expect(() => parseAdapterConfig(textOf(raw), { path: 'a.json' })).toThrow(
      /^a\.json: projection_prng_key = 11529215\d+ has a number that is not exact here; name it in ignoreKeys to have 0 written/,
    );
    const ignored = parseAdapterConfig(textOf(raw), { ignoreKeys: ['projection_prng_key'] });
    expect(JSON.parse(formatAdapterConfig(ignored)).projection_prng_key).toBe(0);
  });

  it('is named as the file names it where it is refused', () => {
    const refused = (raw: object) => () => parseAdapterConfig(textOf({ r: 4, ...raw }));
    expect(refused({ peft_type: 'HIRA', hira_dropout: 2 })).toThrow(/: hira_dropout must be/);
    expect(refused({ peft_type: 'RANDLORA', randlora_alpha: 'x' })).toThrow(
      /: randlora_alpha must be/,
    );
  });

  it('has no name of its own in a file', () => {
    for (const peft_type of ['LORA', 'VERA']) {
      const raw = textOf({ peft_type, r: 4, kept_keys: { projection_prng_key: 5 } });
      expect(() => parseAdapterConfig(raw)).toThrow(/the key "kept_keys" = .* is not understood/);
    }
  });
});

describe('writing for the API', () => {
  it('accepts both spellings of keys and fills in the defaults of PEFT', () => {
    const config = loraConfig({
      r: 16,
      lora_alpha: 32,
      useRslora: true,
      initLoraWeights: 'pissa_niter_16',
    });
    expect(config).toMatchObject({
      r: 16,
      loraAlpha: 32,
      useRslora: true,
      loraDropout: 0,
      targetModules: 'all-linear',
    });
    expect(loraConfig()).toMatchObject({ r: 8, loraAlpha: 8 });
  });

  it.each([
    [{ rank: 4 }, ArgumentError, /unknown option "rank" .did you mean "r"/],
    [{ loraAlpha: 1, lora_alpha: 2 }, ArgumentError, /both spellings/],
    [
      { loraBias: true, initLoraWeights: 'pissa' },
      ArgumentError,
      /loraConfig: loraBias needs initLoraWeights true or false, got "pissa"/,
    ],
    [{ trainableTokenIndices: [1] }, UnsupportedError, /trainable_token_indices/],
    [
      { initLoraWeights: 'my_start' },
      UnsupportedError,
      /initLoraWeights must be one of true, .* got "my_start"/,
    ],
    [{ initLoraWeights: 'pissa_niter_x' }, UnsupportedError, /pissa_niter_x/],
    [
      { loraDropout: 1 },
      ArgumentError,
      /loraConfig: loraDropout must be a number >= 0 and < 1, got 1$/,
    ],
    [{ loraAlpha: Number.NaN }, ArgumentError, /loraAlpha must be a number >= 0, got NaN/],
  ])('refuses %j', (input, type, message) => {
    expect(() => loraConfig(input)).toThrow(type);
    expect(() => loraConfig(input)).toThrow(message);
  });
});

it('writes numbers and text as Python does', () => {
  const value: PythonJson[] = [
    new PythonFloat(0),
    1e-5,
    0.0001,
    new PythonFloat(1e16),
    123456.75,
    -3,
    'é\u007f\u{1f600}"',
    {},
    [],
    { b: 1, a: null },
  ];
  expect(pythonJson(value)).toBe(
    '[\n  0.0,\n  1e-05,\n  0.0001,\n  1e+16,\n  123456.75,\n  -3,\n  "\\u00e9\\u007f\\ud83d\\ude00\\"",\n' +
      '  {},\n  [],\n  {\n    "a": null,\n    "b": 1\n  }\n]',
  );
});

describe('a checked configuration', () => {
  it('has the same identity as in the first version, so that old checkpoints can be resumed', () => {
    const config = loraConfig({ r: 4, useDora: true, baseModelNameOrPath: 'elsewhere' });
    expect(JSON.stringify(configIdentity(config, null))).toBe(
      '{"r":4,"loraAlpha":8,"loraDropout":0,"targetModules":"all-linear","excludeModules":null,"rankPattern":[],' +
        '"alphaPattern":[],"useRslora":false,"useDora":true,"loraBias":false,"modulesToSave":null,' +
        '"initLoraWeights":true,"layersToTransform":null,"layersPattern":null,"fanInFanOut":false,' +
        '"inferenceMode":true,"taskType":null,"revision":null}',
    );
  });

  it('is accepted as an input', () => {
    const config = loraConfig({ r: 4, rankPattern: { 'layers.0.q_proj': 2 } });
    expect(loraConfig(config as unknown as Parameters<typeof loraConfig>[0])).toEqual(config);
  });
});

describe("PEFT's corda_method", () => {
  const file = (more: object): string => minimal({ init_lora_weights: 'corda', ...more });

  it.each([
    [null, 'corda'],
    [{ corda_method: 'ipm', verbose: false }, 'corda'],
    [{ corda_method: 'kpm' }, 'corda_kpm'],
  ] as const)('%j is the start %s', (config, start) => {
    expect(parseAdapterConfig(file({ corda_config: config })).initLoraWeights).toBe(start);
    const given = { initLoraWeights: 'corda', cordaConfig: config } as const;
    expect(loraConfig(given).initLoraWeights).toBe(start);
  });

  it('is read in camel case, too, and means nothing for other starts', () => {
    const cordaConfig = { cordaMethod: 'kpm' };
    const start = (initLoraWeights: 'corda' | 'corda_kpm' | 'pissa') =>
      loraConfig({ initLoraWeights, cordaConfig }).initLoraWeights;
    expect([start('corda'), start('corda_kpm'), start('pissa')]).toEqual([
      ...['corda_kpm', 'corda_kpm', 'pissa'],
    ]);
  });

  it('is refused where it is none, or contradicts the start', () => {
    const method = (corda_method: unknown) => ({ corda_config: { corda_method } });
    for (const other of ['all', 'constructor']) {
      expect(() => loraConfig({ initLoraWeights: 'corda', ...method(other) })).toThrow(
        new ArgumentError(`corda_config: corda_method must be ipm or kpm, got "${other}"`),
      );
    }
    expect(() => parseAdapterConfig(file(method(3)))).toThrow(FormatError);
    expect(() => loraConfig({ initLoraWeights: 'corda_kpm', ...method('ipm') })).toThrow(
      'corda_config: corda_method ipm does not fit init_lora_weights corda_kpm; leave one of them out',
    );
  });
});
