/** Adapters in mlx-lm's form: its layout, and the way there and back with the same deltas. */
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { exportModel, exportTarget } from '../../lib/export/registry.ts';
import { loadSafetensors, saveSafetensors } from '../../lib/io/index.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { matmul, mul, randn, sub } from '../../lib/ops/index.ts';
import { scope, type Tensor } from '../../lib/tensor.ts';
import { balora } from '../support/run_cli.ts';
import { disturb } from '../support/tiny_adapters.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';

let folder: string;
let model: string;
let count = 0;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-mlx-'));
  model = join(folder, 'model');
  await writeTinyCheckpoint(model);
});
afterAll(() => rm(folder, { recursive: true }));

type Config = Parameters<typeof AdapterModel.create>[1];

async function exported(config: Config) {
  const tuned = await AdapterModel.create(await AutoModelForCausalLM.fromPretrained(model), config);
  disturb(tuned, 1, 0.3);
  const output = join(folder, `${count++}`);
  const input = { tuned, tokenizer: tinyTokenizer(), adapter: folder, warn: () => {} };
  await exportModel(exportTarget('mlx'), input, output);
  return { tuned, output };
}

type Deltas = Map<string, Float64Array>;

function deltas(tuned: AdapterModel): Deltas {
  const product = ({ a, b }: { a: Tensor; b: Tensor }) => matmul(b.to('f64'), a.to('f64'));
  return new Map(
    tuned.modules.map(({ name, pair, frozen, scale }) => [
      name,
      scope(() => {
        const own = frozen === null ? product(pair) : sub(product(pair), product(frozen));
        return mul(own, scale).dataSync() as Float64Array;
      }),
    ]),
  );
}

function expectSame(found: Deltas, expected: Deltas): void {
  expect([...found.keys()].sort()).toEqual([...expected.keys()].sort());
  for (const [name, own] of expected) {
    const largest = own.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    own.forEach((value, i) => {
      const error = Math.abs(value - (found.get(name)?.[i] as number));
      expect(error, name).toBeLessThanOrEqual(2e-6 * largest);
    });
  }
}

describe('mlx', () => {
  it('has one rank and scale, and matrices that are applied to rows', async () => {
    const { tuned, output } = await exported({
      ...{ r: 4, loraAlpha: 8, loraDropout: 0.1, targetModules: ['q_proj', 'down_proj'] },
      ...{ rankPattern: { q_proj: 2 }, layersToTransform: [1] },
    });
    expect((await readdir(output)).sort()).toEqual([
      '.balora-export.json',
      'adapter_config.json',
      'adapters.safetensors',
    ]);
    expect(JSON.parse(await readFile(join(output, 'adapter_config.json'), 'utf8'))).toEqual({
      fine_tune_type: 'lora',
      model,
      num_layers: 1,
      lora_parameters: {
        ...{ rank: 4, scale: expect.any(Number), dropout: 0.1 },
        keys: expect.arrayContaining(['self_attn.q_proj', 'mlp.down_proj']),
      },
    });
    const { tensors } = await loadSafetensors(join(output, 'adapters.safetensors'));
    expect(tensors['model.layers.1.mlp.down_proj.lora_a']?.shape).toEqual([32, 4]);
    expect(tensors['model.layers.1.mlp.down_proj.lora_b']?.shape).toEqual([4, 16]);
    const { scale } = JSON.parse(await readFile(join(output, 'adapter_config.json'), 'utf8'))
      .lora_parameters as { scale: number };
    // y = W x + scale (x lora_a) lora_b
    for (const [name, own] of deltas(tuned)) {
      const [a, b] = ['lora_a', 'lora_b'].map((key) => tensors[`${name}.${key}`]) as [
        Tensor,
        Tensor,
      ];
      const [inputs, outputs] = [a.shape[0] as number, b.shape[1] as number];
      const product = mul(matmul(a.to('f64'), b.to('f64')), scale).dataSync() as Float64Array;
      for (let i = 0; i < inputs; i++) {
        for (let o = 0; o < outputs; o++) {
          expect(product[i * outputs + o]).toBeCloseTo(own[o * inputs + i] as number, 6);
        }
      }
    }
  });

  it.each<[string, Config]>([
    ['LoRA', { r: 4, loraAlpha: 8 }],
    ['PiSSA', { method: 'pissa', r: 2, loraAlpha: 2 }],
    ['rank-stabilised LoRA', { method: 'rslora', r: 3, loraAlpha: 5 }],
    [
      'patterns of ranks and alphas',
      { r: 4, loraAlpha: 8, rankPattern: { q_proj: 2 }, alphaPattern: { k_proj: 3, q_proj: 0 } },
    ],
  ])('is read again with the same deltas: %s', async (_, config) => {
    const { tuned, output } = await exported(config);
    const again = await AdapterModel.fromPretrained(
      await AutoModelForCausalLM.fromPretrained(model),
      output,
    );
    expectSame(deltas(again), deltas(tuned));
    expect(again.warnings).toEqual([]);
  });

  it('is an adapter for every command, and becomes a PEFT folder', async () => {
    const { tuned, output } = await exported({ r: 2, loraAlpha: 4 });
    const peft = join(folder, 'peft');
    const { code, err } = await balora([
      ...['export', '--model', model, '--adapter', output, '--output', peft],
    ]);
    expect(err).toBe('');
    expect(code).toBe(0);
    const base = await AutoModelForCausalLM.fromPretrained(model);
    expectSame(deltas(await AdapterModel.fromPretrained(base, peft)), deltas(tuned));
  });

  it('refuses what it cannot hold or read, by name', async () => {
    const before = await readdir(folder);
    await expect(exported({ method: 'dora', r: 2 })).rejects.toThrow(
      /mlx holds pairs A, B alone, and this adapter also trains lora_magnitude_vector/,
    );
    expect(await readdir(folder)).toEqual(before);
    const { output } = await exported({ r: 2 });
    const path = join(output, 'adapter_config.json');
    const text = await readFile(path, 'utf8');
    const load = async () =>
      AdapterModel.fromPretrained(await AutoModelForCausalLM.fromPretrained(model), output);
    for (const [changed, message] of [
      [text.replace('"lora"', '"dora"'), /fine_tune_type "dora" is not supported/],
      [
        text.replace('"rank": 2', '"rank": 3'),
        /must have a lora_a \(in,3\) and a lora_b \(3,out\)/,
      ],
      [text.replace('"scale"', '"scales"'), /adapter_config\.json: lora_parameters\.scale/],
      ['{', /adapter_config\.json: /],
    ] as const) {
      await writeFile(path, changed);
      await expect(load()).rejects.toThrow(message);
    }
    await writeFile(path, text);
    await saveSafetensors(join(output, 'adapters.safetensors'), {
      'a.weight': randn([2], { seed: 1 }),
    });
    await expect(load()).rejects.toThrow(/the tensor "a\.weight" is not supported/);
  });
});
