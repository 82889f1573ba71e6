/**
 * Properties that every method, initialisation and variant of the list must have, alone and in combination. A new entry of the list
 * is tested here without further lines; a file of its own tests that it is the method whose name it has.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import { type LoraConfigInput, loraConfig } from '../../../lib/adapters/config.ts';
import { saveMerged } from '../../../lib/adapters/merge.ts';
import type {
  AdapterType,
  Method,
  Start,
  StartCalibration,
  Variant,
} from '../../../lib/adapters/methods/method.ts';
import {
  keepsBase,
  METHOD_NAMES,
  METHOD_OPTION_NAMES,
  METHOD_OPTIONS,
  METHODS,
  START_NAMES,
  startNamed,
  typeNamed,
  variantOf,
} from '../../../lib/adapters/methods/registry.ts';
import { ArgumentError, UnsupportedError } from '../../../lib/errors.ts';
import { resolveMethod } from '../../../lib/train/methods.ts';
import { createCalibrated } from '../../support/calibrated.ts';
import { goldenArrays } from '../../support/golden.ts';
import { disturb, expectNear, hidden, readWeights } from '../../support/tiny_adapters.ts';
import { TinyModel } from '../../support/tiny_model.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-methods-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const methods: readonly Method[] = METHOD_NAMES.map((name) => METHODS[name]);
const starts: readonly Start[] = methods.flatMap(({ starts: own }): readonly Start[] => own ?? []);
const variants: readonly Variant[] = methods.flatMap(({ variants: own }) => own ?? []);

/** The value of `initLoraWeights` for its spelling in the help. */
const sample = (shown: string): boolean | string =>
  shown === 'true' || shown === 'false' ? shown === 'true' : shown.replace('_N', '_4');

/** The settings of each method, and every initialisation with every valid combination of at most two switches. */
const configs: [string, LoraConfigInput][] = [
  // Methods with tensors of their own are tested by own_form.test.ts.
  ...methods.flatMap(({ name, adapter }): [string, LoraConfigInput][] =>
    adapter === null || adapter.peftType !== undefined
      ? []
      : [[`method ${name}`, adapter as LoraConfigInput]],
  ),
  ...START_NAMES.flatMap((shown) => {
    const one = METHOD_OPTION_NAMES.map((name) => [name]);
    const two = one.flatMap(([a]) => one.flatMap(([b]) => (a && b && a < b ? [[a, b]] : [])));
    return [[], ...one, ...two].flatMap((switches): [string, LoraConfigInput][] => {
      const config = {
        initLoraWeights: sample(shown),
        ...Object.fromEntries(switches.map((name) => [name, true])),
      } as LoraConfigInput;
      try {
        loraConfig(config);
      } catch (error) {
        expect(error).toBeInstanceOf(ArgumentError); // some switches exclude each other
        return [];
      }
      return [[[shown, ...switches].join(' '), config]];
    });
  }),
];

// The ranks are even, as the orthogonal start needs them.
const create = (model: TinyModel, config: LoraConfigInput) =>
  createCalibrated(model, {
    r: 4,
    loraAlpha: 8,
    rankPattern: { 'layers.1.up_proj': 2 },
    ...config,
  });

describe.each(configs)('%s', (_, config) => {
  const { quantizes } = startNamed(config.initLoraWeights ?? true) as Start;

  it('initially and while disabled leaves the base unchanged, and disposed of restores it', async () => {
    const model = new TinyModel();
    const base = hidden(model);
    const tuned = await create(model, config);
    // Starts that quantise the base have another teacher, from which they begin.
    const teacher = quantizes === undefined ? base : hidden(model);
    // Only the initialisation for tests (false) changes the model.
    if (quantizes !== undefined) expect(teacher).not.toEqual(base);
    else if (config.initLoraWeights === false) expect(hidden(model)).not.toEqual(base);
    else expectNear(hidden(model), base, 1e-6);
    disturb(tuned);
    const moved = hidden(model);
    expect(moved.some((value, i) => Math.abs(value - (base[i] as number)) > 0.01)).toBe(true);
    expect(tuned.withTeacher(() => hidden(model))).toEqual(teacher);
    expect(hidden(model)).toEqual(moved);
    tuned.enabled = false;
    expect(hidden(model)).toEqual(base);
    tuned.dispose();
    expect(hidden(model)).toEqual(base);
  });

  it('gives the same model after export and loading as a plain LoRA', async () => {
    const model = new TinyModel();
    const tuned = await create(model, config);
    disturb(tuned);
    const expected = hidden(model);
    await tuned.savePretrained(folder);
    const loaded = new TinyModel();
    const again = await AdapterModel.fromPretrained(loaded, folder);
    expect(again.warnings).toEqual([]);
    expect(again.modules.every(({ frozen }) => (frozen === null) === !quantizes)).toBe(true);
    expectNear(hidden(loaded), expected, 1e-5);
    const { fromWeight, ranks } = startNamed(config.initLoraWeights ?? true) as Start;
    const written = JSON.parse(readFileSync(join(folder, 'adapter_config.json'), 'utf8'));
    const shape = {
      ...{ r: fromWeight ? 8 : 4, rank_pattern: { 'layers.1.up_proj': fromWeight ? 4 : 2 } },
      lora_alpha: !fromWeight ? 8 : config.useRslora ? 8 * Math.SQRT2 : 16,
    };
    expect(written).toMatchObject({
      // A start that distributes the ranks anew has others.
      ...(ranks === undefined && shape),
      init_lora_weights: fromWeight ? true : (config.initLoraWeights ?? true),
      ...{ target_modules: ['down_proj', 'gate_proj', 'up_proj'], task_type: 'CAUSAL_LM' },
      base_model_name_or_path: 'tiny',
    });
    const keys = [...goldenArrays(join(folder, 'adapter_model.safetensors')).keys()];
    const own = variantOf(loraConfig(config)).parameters.map(({ key }) => key);
    expect(keys.filter((key) => key.includes('layers.0.up_proj')).sort()).toEqual(
      ['lora_A.weight', 'lora_B.weight', ...own]
        .map((key) => `base_model.model.layers.0.up_proj.${key}`)
        .sort(),
    );
  });

  it('is restored from its state bit for bit', async () => {
    const [model, other] = [new TinyModel(), new TinyModel()];
    const tuned = await create(model, config);
    disturb(tuned);
    const again = await create(other, config);
    again.restore(tuned.state(), 'a state');
    expect(hidden(other)).toEqual(hidden(model));
    expect(again.identity()).toEqual(tuned.identity());
  });

  it('gives the same model after merging', async () => {
    const model = new TinyModel();
    const tuned = await create(model, config);
    disturb(tuned);
    const expected = hidden(model);
    const out = join(folder, 'merged');
    if (config.loraBias) {
      await expect(saveMerged(tuned, out)).rejects.toThrow(/loraBias .* layer without a bias/);
      expect(existsSync(out)).toBe(false);
      return;
    }
    await saveMerged(tuned, out);
    expectNear(hidden(readWeights(new TinyModel(), out)), expected, 1e-5);
  });

  it('merged in memory it is the model that saveMerged writes, without an adapter', async () => {
    const model = new TinyModel();
    const tuned = await create(model, config);
    disturb(tuned);
    const expected = hidden(model);
    if (config.loraBias) {
      await expect(tuned.mergeAndUnload()).rejects.toThrow(/loraBias .* layer without a bias/);
      expect(hidden(model)).toEqual(expected);
      return;
    }
    const out = join(folder, 'merged');
    await saveMerged(tuned, out);
    expect(await tuned.mergeAndUnload()).toBe(model);
    expectNear(hidden(model), expected, 1e-5);
    expect(hidden(model)).toEqual(hidden(readWeights(new TinyModel(), out)));
    const next = await create(model, { ...config, initLoraWeights: true });
    expectNear(hidden(model), expected, 1e-5);
    next.dispose();
  });

  it('has a residual form, or says why not', async () => {
    const model = new TinyModel();
    const tuned = await create(model, config);
    disturb(tuned);
    const { residualObstacle } = variantOf(loraConfig(config));
    const out = join(folder, 'residual');
    if (!startNamed(config.initLoraWeights ?? true)?.fromWeight || residualObstacle !== null) {
      expect(() => tuned.checkForm('residual')).toThrow(UnsupportedError);
      await expect(tuned.savePretrained(out, { form: 'residual' })).rejects.toThrow(
        /export "residual" is /,
      );
      expect(existsSync(out)).toBe(false);
      return;
    }
    const expected = hidden(model);
    await tuned.savePretrained(out, { form: 'residual' });
    const residual = readWeights(new TinyModel(), join(out, 'residual'));
    await AdapterModel.fromPretrained(residual, out);
    expectNear(hidden(residual), expected, 1e-4);
  });
});

describe('the list', () => {
  it('has the names of the first version, and the tensor keys of PEFT', () => {
    expect(METHOD_NAMES).toEqual(
      expect.arrayContaining(['lora', 'rslora', 'dora', 'pissa', 'balora', 'full']),
    );
    const keys = (switches: LoraConfigInput) => {
      const { parameters } = variantOf(loraConfig(switches));
      return parameters.map(({ key, alsoReadAs = [] }) => [key, ...alsoReadAs]);
    };
    expect(keys({})).toEqual([]);
    expect(keys({ useDora: true })).toEqual([
      ['lora_magnitude_vector', 'lora_magnitude_vector.weight'],
    ]);
    expect(keys({ loraBias: true })).toEqual([['lora_B.bias']]);
    expect(START_NAMES).toEqual(
      expect.arrayContaining(['true', 'gaussian', 'false', 'pissa', 'pissa_niter_N']),
    );
    const onBase = [true, false, 'gaussian', 'eva', 'orthogonal'].map(keepsBase);
    expect(onBase).toEqual([true, true, true, true, true]);
    expect(['pissa', 'pissa_niter_2', 'loftq'].map(keepsBase)).toEqual([false, false, false]);
  });

  it('has no name, value, switch or key twice', () => {
    const options = methods.flatMap(({ options: own }) => Object.keys(own ?? {}));
    const keys = variants.flatMap(({ parameters }) =>
      parameters.flatMap(({ key, alsoReadAs = [] }) => [key, ...alsoReadAs]),
    );
    const ofPairs = variants.filter(({ type }) => type.pair !== undefined);
    const types = variants.filter((one) => !ofPairs.includes(one)).map(({ type }) => type.peftType);
    const plain = [ofPairs, methods.flatMap(({ scaling }) => scaling ?? [])];
    for (const names of [METHOD_NAMES, START_NAMES, options, keys, types]) {
      expect(new Set(names).size).toBe(names.length);
    }
    for (const shown of START_NAMES) {
      expect(starts.filter((start) => start.accepts(sample(shown)))).toHaveLength(1);
    }
    for (const choices of plain) {
      expect(choices.filter(({ option }) => option === null)).toHaveLength(1);
      for (const { option } of choices) if (option) expect(options).toContain(option);
    }
  });

  it('has multiplicative scaling divisors, so that an export of higher rank keeps s', () => {
    for (const { scaling } of methods) {
      if (!scaling) continue;
      for (const r of [1, 8, 48]) {
        const [grown, apart] = [scaling.divisor(2 * r), scaling.divisor(2) * scaling.divisor(r)];
        expect(Math.abs(grown / apart - 1)).toBeLessThan(1e-15);
      }
    }
  });

  it('has presets that resolveMethod returns and that are valid configurations', () => {
    for (const method of methods) {
      const { adapter, regularizers } = resolveMethod(method.name as 'lora');
      expect(adapter).toEqual(method.adapter && { ...method.adapter, method: method.name });
      const weights = method.regularizers?.['causal-lm'] ?? {
        ...{ consistencyWeight: 0, diversityWeight: 0, svdWeight: 0 },
      };
      expect(regularizers).toMatchObject(weights);
    }
  });

  it('is listed in docs/methods.md (written by npm run gen:methods)', async () => {
    await expect(page()).toMatchFileSnapshot('../../../docs/methods.md');
  });
});

const kDefaults = { ...loraConfig() };
const kReads: Readonly<Record<StartCalibration['reads'], string>> = {
  covariance: 'second moments of the inputs',
  gradient: 'gradients of the weights',
  inputs: 'the inputs, several times',
};

const optionsOf = ({ keys }: AdapterType): string[] =>
  Object.values(keys).flatMap((key) => ('option' in key ? [key.option] : []));

/** Options of every pair A, B. */
const kPairOptions = 'r, loraAlpha, rankPattern, alphaPattern, loraDropout, initLoraWeights'.split(
  ', ',
);

/** Whether the page names an option: not those that only files set. */
function isListed(option: string): boolean {
  const { only } = METHOD_OPTIONS[option as keyof typeof METHOD_OPTIONS] ?? {};
  return option !== 'fanInFanOut' && only !== 'library';
}

/** The text of docs/methods.md. */
function page(): string {
  const cell = (text: string): string => text.replaceAll('|', '\\|');
  const code = (text: string): string => `\`${text}\``;
  const table = (head: string[], rows: string[][]): string =>
    [head, head.map(() => '---'), ...rows]
      .map((cells) => `| ${cells.map(cell).join(' | ')} |`)
      .join('\n');
  const settings = ({ adapter, optimization }: Method): string =>
    adapter === null
      ? 'no adapter'
      : Object.entries({ ...adapter, ...optimization })
          .map(([key, value]) =>
            code(`${key}: ${typeof value === 'string' ? `'${value}'` : value}`),
          )
          .join(', ') || 'nothing';
  const weights = ({ regularizers }: Method): string[] =>
    Object.entries(regularizers ?? {}).map(
      ([task, values]) =>
        `${task}: ${Object.entries(values)
          .map(([key, value]) => `${key} ${value}`)
          .join(', ')}`,
    );
  const source = ({ source: from }: Method): string =>
    from?.startsWith('arXiv ')
      ? `Source: [${from}](https://arxiv.org/abs/${from.slice(6)}).`
      : from === null
        ? ''
        : `Source: ${from}.`;
  const optionsText = ({ name, adapter, options = {} }: Method): string => {
    if (adapter === null) return '';
    const own = typeNamed(adapter.peftType);
    const ofPair = [...(name === 'lora' ? kPairOptions : []), ...Object.keys(options)];
    const all =
      own === null ? ofPair : [...(own.rank === undefined ? ['r'] : []), ...optionsOf(own)];
    const rest = own === null && name !== 'lora' ? [`those of ${code('lora')}`] : [];
    return ` Options: ${[...all.filter(isListed).map(code), ...rest].join(', ')}.`;
  };
  const paragraph = (method: Method): string =>
    [`- ${code(method.name)}: ${method.about}${optionsText(method)}`, source(method)]
      .filter((text) => text !== '')
      .join(' ');
  return `# Methods

Written from the list in \`lib/adapters/methods/\` by \`npm run gen:methods\`; [adapters](adapters.md) explains the parts,
[how to add a method](how-to-add-a-method.md) how to add one.

\`--method\` on the command line, \`method\` in a configuration file and in \`AdapterModel.create\`:

${table(
  ['method', 'what it is', 'settings', 'regularizer weights', 'since'],
  methods.map((method) => [
    code(method.name),
    method.title,
    settings(method),
    weights(method).join('; ') || 'nothing',
    method.since,
  ]),
)}

## Each method

${methods.map(paragraph).join('\n')}

## How A and B start

\`initLoraWeights\`, how A and B start:

${table(
  ['value', 'A, B', 'reads of the data', 'exported with'],
  starts.map(({ shown, title, fromWeight, calibration }) => [
    shown.map(code).join(', '),
    title,
    calibration === undefined ? 'nothing' : kReads[calibration.reads],
    fromWeight ? 'twice the rank' : 'its rank',
  ]),
)}

## What an adapted linear computes

What an adapted linear computes, and what it trains beside A and B (by its key in a PEFT file):

${table(
  ['switch', 'y', 'trains'],
  variants
    .filter(({ type }) => type.pair !== undefined)
    .map(({ option, formula, parameters }) => [
      option === null ? 'none' : code(option),
      formula,
      parameters.map(({ key }) => code(key)).join(', ') || 'nothing',
    ]),
)}

What it computes with tensors in the place of A and B:

${table(
  ['`peftType`', 'in PEFT', 'y', 'trains', 'frozen', 'as a plain LoRA'],
  variants.flatMap(({ type, formula }) => {
    if (type.pair !== undefined) return [];
    const tensors = type.tensors(kDefaults).filter(({ isState = false }) => !isState);
    const listed = (keys: readonly string[]): string => keys.map(code).join(', ') || 'nothing';
    const keysOf = (trained: boolean) =>
      tensors.filter((one) => one.trained === trained).map(({ key }) => key);
    return [
      [
        code(type.peftType),
        type.inPeft ? 'yes' : 'no',
        formula,
        listed(keysOf(true)),
        listed([...keysOf(false), ...type.shared.map(({ key }) => key)]),
        type.loraObstacle(kDefaults) === null
          ? 'exact'
          : '[truncated](exporting.md#any-adapter-as-a-plain-lora)',
      ],
    ];
  }),
)}

## Where PEFT does something else

PEFT 0.21 has these methods, too. Here every method starts as the base or is refused, means the same when it is loaded as when it was
saved, and leaves padding out:

${methods
  .flatMap(({ name, differs }) => (differs === undefined ? [] : [`- ${code(name)}: ${differs}`]))
  .join('\n')}
- all: with \`layer_replication\` copies of a layer share one weight, and merging adds the changes of all copies to it (logits of a
  small model change by 0.76). A folder with it is refused here.
`;
}
