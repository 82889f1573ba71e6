/** GGUF adapters: each module's delta as llama.cpp's loader computes it, for scales and ranks of every kind, and what is refused. */
import { existsSync } from 'node:fs';
import { mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { exportModel, exportTarget } from '../../lib/export/registry.ts';
import { GgufFile, saveSafetensors } from '../../lib/io/index.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { matmul, mul, randn, sub } from '../../lib/ops/index.ts';
import { scope } from '../../lib/tensor.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { createCalibrated } from '../support/calibrated.ts';
import { kMethodConfigs } from '../support/method_configs.ts';
import { balora } from '../support/run_cli.ts';
import { disturb } from '../support/tiny_adapters.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

let folder: string;
let model: string;
let tokenizer: Tokenizer;
let count = 0;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-gguf-lora-'));
  model = join(folder, 'model');
  await writeTinyCheckpoint(model);
  tokenizer = await Tokenizer.fromPretrained(model);
});
afterAll(() => rm(folder, { recursive: true }));

type Config = NonNullable<Parameters<typeof AdapterModel.create>[1]>;

async function made(config: Config): Promise<AdapterModel> {
  const tuned = await createCalibrated(await AutoModelForCausalLM.fromPretrained(model), config);
  disturb(tuned, 1, 0.3);
  return tuned;
}

async function exported(tuned: AdapterModel, outtype?: 'f32' | 'f16' | 'bf16' | 'q8_0') {
  const path = join(folder, `${count++}.gguf`);
  const input = { tuned, tokenizer, adapter: folder, outtype, warn: () => {} };
  const lines = await exportModel(exportTarget('gguf-lora'), input, path);
  return { path, lines };
}

/** The largest |difference| between the deltas of the loader's formula and the merged weights' changes, by module, relative to the largest delta. */
function deltaErrors(path: string, tuned: AdapterModel): Map<string, number> {
  const file = GgufFile.open(path);
  const alpha = file.metadata.get('adapter.lora.alpha') as number;
  const kNames: Record<string, string> = {
    'self_attn.q_proj': 'attn_q',
    'self_attn.k_proj': 'attn_k',
    'self_attn.v_proj': 'attn_v',
    'self_attn.o_proj': 'attn_output',
    'mlp.gate_proj': 'ffn_gate',
    'mlp.up_proj': 'ffn_up',
    'mlp.down_proj': 'ffn_down',
  };
  const errors = new Map<string, number>();
  for (const module of tuned.modules) {
    const { name, linear, variant } = module;
    const [, layer, path] = /^model\.layers\.(\d+)\.(.*)$/.exec(name) as unknown as string[];
    const stored = `blk.${layer}.${kNames[path as string]}.weight`;
    // The reader puts rows of q and k, which are interleaved in the file, back into Hugging Face's order.
    const permutedHeads = path === 'self_attn.q_proj' ? 4 : path === 'self_attn.k_proj' ? 2 : 0;
    const values = scope(() => {
      const a = file.read(`${stored}.lora_a`).to('f64');
      const b = file.read(`${stored}.lora_b`, { permutedHeads }).to('f64');
      const loaded = mul(matmul(b, a), alpha / (b.shape[1] as number));
      const base = linear.weight.to('f64');
      const own = sub(variant.mergedWeight(module, base), base);
      return [loaded.dataSync(), own.dataSync()] as [Float64Array, Float64Array];
    });
    const [loaded, own] = values;
    const largest = own.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const error = own.reduce(
      (most, value, i) => Math.max(most, Math.abs(value - (loaded[i] as number))),
      0,
    );
    errors.set(name, largest === 0 ? error : error / largest);
  }
  const expected = [...errors.keys()].length;
  expect([...file.tensors.keys()]).toHaveLength(2 * expected);
  file.close();
  return errors;
}

describe('gguf-lora', () => {
  it('names the adapter, its architecture, its base and its types', async () => {
    const tuned = await made({ r: 4, loraAlpha: 8 });
    const { path, lines } = await exported(tuned);
    expect(lines).toEqual(['14 modules of rank 4, alpha 8, F32']);
    const file = GgufFile.open(path);
    expect(Object.fromEntries(file.metadata)).toEqual({
      'general.architecture': 'llama',
      'general.type': 'adapter',
      'general.base_model.count': 1,
      'general.base_model.0.name': model,
      'general.quantization_version': 2,
      'general.file_type': 0,
      'adapter.type': 'lora',
      'adapter.lora.alpha': 8,
    });
    expect(file.tensors.get('blk.1.ffn_down.weight.lora_a')?.shape).toEqual([4, 32]);
    expect(file.tensors.get('blk.1.ffn_down.weight.lora_b')?.shape).toEqual([16, 4]);
    // B is written as it is where alpha says its scale.
    const [module] = tuned.modules.filter(({ name }) => name.endsWith('1.mlp.down_proj'));
    expect(file.read('blk.1.ffn_down.weight.lora_b').dataSync()).toEqual(module?.pair.b.dataSync());
    file.close();
  });

  it.each<[string, Config]>([
    ['LoRA', { r: 4, loraAlpha: 8 }],
    ['an alpha of 0, which the loader would take for a scale of 1', { r: 2, loraAlpha: 0 }],
    ['rank-stabilised LoRA', { method: 'rslora', r: 3, loraAlpha: 5 }],
    ['PiSSA, as a pair of twice the rank', { method: 'pissa', r: 2, loraAlpha: 2 }],
    ['BA-LoRA', { method: 'balora', r: 3, loraAlpha: 6 }],
    [
      'patterns of ranks and alphas',
      { r: 4, loraAlpha: 8, rankPattern: { q_proj: 2 }, alphaPattern: { k_proj: 3, q_proj: 16 } },
    ],
    [
      'patterns with rank-stabilised PiSSA',
      {
        ...{ r: 2, loraAlpha: 4, initLoraWeights: 'pissa', useRslora: true },
        ...{ rankPattern: { v_proj: 1 }, alphaPattern: { 'mlp.up_proj': 1 } },
      },
    ],
  ])('has the delta of each module: %s', async (_, config) => {
    const tuned = await made(config);
    const { path } = await exported(tuned);
    const errors = deltaErrors(path, tuned);
    expect(errors.size).toBe(14);
    for (const [name, error] of errors) expect(error, name).toBeLessThan(1e-6);
  });

  it.each([
    ['f16', 2e-3, 'F16'],
    ['bf16', 1.5e-2, 'BF16'],
    ['q8_0', 2e-2, 'F16'],
  ] as const)(
    'in %s has deltas rounded to it; rows that are no blocks become F16',
    async (outtype, most, ofB) => {
      const tuned = await made({ r: 4, loraAlpha: 8 });
      const { path } = await exported(tuned, outtype);
      const errors = [...deltaErrors(path, tuned).values()];
      expect(Math.max(...errors)).toBeLessThan(most);
      expect(Math.max(...errors)).toBeGreaterThan(1e-5);
      const file = GgufFile.open(path);
      expect(file.tensors.get('blk.0.attn_q.weight.lora_b')?.dtype).toBe(ofB);
      expect(file.tensors.get('blk.0.ffn_down.weight.lora_a')?.dtype).toBe(outtype.toUpperCase());
      file.close();
    },
  );

  it.each(kMethodConfigs)(
    'of the method %s has the deltas of the method, or a reason why it has none',
    async (_, config) => {
      const tuned = await made(config);
      const found = await exported(tuned).catch((error: unknown) => error as Error);
      if (found instanceof Error) {
        expect(found.message).toMatch(
          /holds pairs A, B alone, and (this adapter|[A-Z]+) .*; merge it/,
        );
      } else {
        for (const [name, error] of deltaErrors(found.path, tuned)) {
          expect(error, name).toBeLessThan(1e-6);
        }
      }
    },
  );

  it('is refused by name for more than pairs, and nothing is written', async () => {
    const before = await readdir(folder);
    const cases: [Config, RegExp][] = [
      [
        { method: 'dora', r: 2 },
        /gguf-lora holds pairs A, B alone, and this adapter also trains lora_magnitude_vector \(useDora\); merge it/,
      ],
      [
        { r: 2, modulesToSave: ['lm_head'], targetModules: ['q_proj'] },
        /also trains whole modules \(lm_head\.weight\)/,
      ],
    ];
    for (const [config, message] of cases) {
      await expect(exported(await made(config))).rejects.toThrow(message);
    }
    expect(await readdir(folder)).toEqual(before);
  });
});

describe('balora export --to gguf-lora', () => {
  const run = (output: string, ...more: string[]) =>
    balora([
      ...['export', '--model', model, '--adapter', join(folder, 'adapter'), '--to', 'gguf-lora'],
      ...['--output', output, ...more],
    ]);
  beforeAll(async () => {
    const tuned = await made({ r: 2, loraAlpha: 2, targetModules: ['q_proj'] });
    await tuned.savePretrained(join(folder, 'adapter'));
  });

  it('writes a file, also into a folder that there is not', async () => {
    const output = join(folder, 'new', 'adapter.gguf');
    const { code, out, err } = await run(output);
    expect(err).toBe('');
    expect(out).toBe(`2 modules of rank 2, alpha 2, F32\nwritten to ${output}\n`);
    expect(code).toBe(0);
    expect(await readdir(join(folder, 'new'))).toEqual(['adapter.gguf']);
  });

  it('refuses an output that exists, a folder, and types of another form, before it reads the model', async () => {
    const output = join(folder, 'there.gguf');
    await writeFile(output, 'mine');
    const args = [
      'export',
      '--model',
      join(folder, 'none'),
      '--adapter',
      folder,
      '--to',
      'gguf-lora',
    ];
    const to = (path: string, ...more: string[]) => balora([...args, '--output', path, ...more]);
    expect(await to(output)).toMatchObject({
      code: 2,
      err: `error: output ${output} exists; choose another path, or pass --overwrite to replace it\n`,
    });
    expect(await readFile(output, 'utf8')).toBe('mine');
    expect((await to(folder)).err).toMatch(/is a folder; give the path of a file in it/);
    expect((await to(join(folder, 'x.gguf'), '--outtype', 'q4_k_m')).err).toMatch(
      /export to gguf-lora: outtype q4_k_m is not for this format; choose f32, f16, bf16, q8_0/,
    );
    expect((await to(join(folder, 'x.gguf'), '--export', 'residual')).err).toMatch(
      /is a form of --to peft, got --to gguf-lora/,
    );
    expect(existsSync(join(folder, 'x.gguf'))).toBe(false);
  });

  it('refuses an adapter on the tied head by name', async () => {
    const path = join(folder, 'adapter', 'adapter_config.json');
    const text = await readFile(path, 'utf8');
    await writeFile(path, text.replace('"q_proj"', '"lm_head"'));
    const { vocabSize } = tokenizer;
    await saveSafetensors(join(folder, 'adapter', 'adapter_model.safetensors'), {
      'base_model.model.lm_head.lora_A.weight': randn([2, 16], { seed: 1 }),
      'base_model.model.lm_head.lora_B.weight': randn([vocabSize, 2], { seed: 2 }),
    });
    const { code, err } = await run(join(folder, 'head.gguf'));
    expect(err).toMatch(/lm_head: an adapter on the output head is not supported/);
    expect(code).toBe(1);
    expect(existsSync(join(folder, 'head.gguf'))).toBe(false);
  });
});
