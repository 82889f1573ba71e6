/** `balora merge` and `balora evaluate`: folders that cannot be written, and warnings about adapters. */
import { spawnSync } from 'node:child_process';
import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { loadSafetensors, saveSafetensors } from '../../lib/io/index.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { tensor } from '../../lib/tensor.ts';
import { balora } from '../support/run_cli.ts';
import { disturb } from '../support/tiny_adapters.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

const kPlain = ['--prompt-template', 'none'];

let folder: string;
let model: string;
let adapter: string;
let data: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-merge-'));
  [model, adapter, data] = ['model', 'adapter', 'd.jsonl'].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  await writeTinyCheckpoint(model);
  await writeFile(data, '{"prompt": "a", "response": "bc"}\n');
  const { code } = await balora([
    ...['train', '--model', model, '--data', data, '--output', adapter, '--method', 'lora'],
    ...['--target-modules', 'q_proj', '--r', '2', '--max-steps', '1', ...kPlain],
  ]);
  expect(code).toBe(0);
});
afterAll(() => rm(folder, { recursive: true }));

const merge = (output: string) =>
  balora(['merge', '--model', model, '--adapter', adapter, '--output', output]);

describe('balora merge', () => {
  it('refuses a file as its output before it reads the model', async () => {
    const args = ['merge', '--model', join(folder, 'none'), '--adapter', adapter];
    const { code, err } = await balora([...args, '--output', data]);
    expect(err).toBe(`error: output ${data} is a file, not a folder; choose another path\n`);
    expect(code).toBe(2);
  });

  it('removes the leftovers of a killed merge, but nothing of a running one or of others', async () => {
    const output = join(folder, 'merged');
    await mkdir(output);
    const left = (pid: number) => `model.safetensors.${pid}-7.tmp`;
    const dead = left(spawnSync(process.execPath, ['-e', '']).pid);
    for (const name of [dead, left(process.ppid)]) await writeFile(join(output, name), '');
    const refused = await merge(output);
    expect(refused.err).toMatch(/merged is not empty \(model\.safetensors\.\d+-7\.tmp/);
    expect(await readdir(output)).toHaveLength(2);
    await rm(join(output, left(process.ppid)));
    expect((await merge(output)).code).toBe(0);
    expect((await readdir(output)).sort()).toEqual([
      ...['.balora-export.json', 'README.md', 'config.json', 'generation_config.json'],
      ...['model.safetensors', 'tokenizer.json', 'tokenizer_config.json'],
    ]);
  });
});

describe('a merge in bf16', () => {
  it('gives a warning where rounding takes a large part of the change, and none in f32', async () => {
    // Changes of the size of bf16's steps at these weights, and much larger ones.
    const merged = async (deviation: number, dtype: string) => {
      const small = join(folder, `small-${deviation}`);
      const options = { r: 2, loraAlpha: 2, targetModules: ['q_proj'] };
      const base = await AutoModelForCausalLM.fromPretrained(model);
      const tuned = await AdapterModel.create(base, options);
      disturb(tuned, 1, deviation);
      await tuned.savePretrained(small);
      return balora([
        ...['merge', '--model', model, '--adapter', small, '--dtype', dtype],
        ...['--output', join(folder, `merged-${deviation}-${dtype}`)],
      ]);
    };
    const half = await merged(0.02, 'bf16');
    expect(half.err).toMatch(
      /^warning: in bf16 the merged weights lose a part of what the adapter learned: rounding takes up to \d+ % .*q_proj\); merge with --dtype f32, or keep the adapter/m,
    );
    expect(half.code).toBe(0);
    for (const [deviation, dtype] of [
      [0.02, 'f32'],
      [0.5, 'bf16'],
    ] as const) {
      expect(await merged(deviation, dtype)).toMatchObject({ code: 0, err: '' });
    }
  });
});

describe('a merge in f16', () => {
  const weights = async (path: string) =>
    (await loadSafetensors(join(path, 'model.safetensors'))).tensors;
  const mergeAs = (dtype: string, output: string, to = adapter, from = model) =>
    balora(['merge', '--model', from, '--adapter', to, '--dtype', dtype, '--output', output]);

  it('writes f16 that is loaded again, each weight within half a step of the exact one', async () => {
    const [half, exact] = [join(folder, 'f16'), join(folder, 'f16-exact')];
    expect(await mergeAs('f16', half)).toMatchObject({ code: 0, err: '' });
    expect((await mergeAs('f32', exact)).code).toBe(0);
    const config = JSON.parse(await readFile(join(half, 'config.json'), 'utf8'));
    expect(config.dtype).toBe('float16');
    const [got, want] = [await weights(half), await weights(exact)];
    expect(Object.keys(got).sort()).toEqual(Object.keys(want).sort());
    for (const [name, tensor] of Object.entries(got)) {
      expect(tensor.dtype, name).toBe('f16');
      const values = tensor.dataSync() as Float32Array;
      const expected = want[name]?.dataSync() as Float32Array;
      expected.forEach((value, i) => {
        const exponent = Math.max(Math.floor(Math.log2(Math.abs(value))), -14);
        const error = Math.abs((values[i] as number) - value);
        expect(error).toBeLessThanOrEqual(2 ** (exponent - 11));
      });
    }
    const again = await AutoModelForCausalLM.fromPretrained(half);
    const stored = new Map(again.namedParameters());
    expect(stored.get('model.norm.weight')?.dtype).toBe('f32');
    for (const [name, tensor] of Object.entries(got)) {
      expect(stored.get(name)?.dataSync(), name).toEqual(tensor.dataSync());
    }
    const narrow = await AutoModelForCausalLM.fromPretrained(half, { dtype: 'bf16' });
    const query = 'model.layers.0.self_attn.q_proj.weight';
    expect(new Map(narrow.namedParameters()).get(query)?.dataSync()).toEqual(
      got[query]?.to('bf16').dataSync(),
    );
  });

  it('gives a warning where rounding takes a large part of the change', async () => {
    const small = join(folder, 'small-f16');
    const base = await AutoModelForCausalLM.fromPretrained(model);
    const tuned = await AdapterModel.create(base, {
      r: 2,
      loraAlpha: 2,
      targetModules: ['q_proj'],
    });
    disturb(tuned, 1, 0.005);
    await tuned.savePretrained(small);
    const { code, err } = await mergeAs('f16', join(folder, 'small-f16-merged'), small);
    expect(err).toMatch(
      /^warning: in f16 the merged weights lose a part .* merge with --dtype f32/m,
    );
    expect(code).toBe(0);
  });

  it('is refused, with the tensor and advice, where a weight is beyond f16, and writes nothing', async () => {
    const large = join(folder, 'large');
    await cp(model, large, { recursive: true });
    const name = 'model.layers.1.mlp.up_proj.weight';
    const tensors = await weights(large);
    const values = tensors[name]?.dataSync() as Float32Array;
    for (const [value, code] of [
      [65519, 0],
      [65520, 2],
      [-1e6, 2],
    ] as const) {
      values[5] = value;
      const shape = tensors[name]?.shape as number[];
      await saveSafetensors(join(large, 'model.safetensors'), {
        ...tensors,
        [name]: tensor(values, { shape }),
      });
      const output = join(folder, `large-${value}`);
      const result = await balora([
        ...[
          'merge',
          '--model',
          large,
          '--adapter',
          adapter,
          '--dtype',
          'f16',
          '--output',
          output,
          '--allow-other-base',
        ],
      ]);
      expect(result.code, result.err).toBe(code);
      if (code === 0) continue;
      expect(result.err).toContain(
        `error: ${name} has a weight of magnitude ${Math.abs(value).toPrecision(6)}, and the largest number in f16 is 65504; ` +
          'write bf16 or f32 (dtype)',
      );
      await expect(readdir(output)).rejects.toThrow('ENOENT');
    }
  });

  it('takes a base and an adapter in f16', async () => {
    const [base, half, strong] = ['base-f16', 'adapter-f16', 'strong'].map((name) =>
      join(folder, name),
    ) as [string, string, string];
    const options = { r: 2, loraAlpha: 2, targetModules: ['q_proj'] };
    const tuned = await AdapterModel.create(
      await AutoModelForCausalLM.fromPretrained(model),
      options,
    );
    disturb(tuned, 1, 0.5);
    await tuned.savePretrained(strong);
    for (const [from, to, file] of [
      [model, base, 'model.safetensors'],
      [strong, half, 'adapter_model.safetensors'],
    ] as const) {
      await cp(from, to, { recursive: true });
      const { tensors } = await loadSafetensors(join(from, file));
      const narrow = Object.fromEntries(
        Object.entries(tensors).map(([name, value]) => [name, value.to('f16')]),
      );
      await saveSafetensors(join(to, file), narrow); // without the digests, which are of f32
    }
    const merged = join(folder, 'merged-f16-f16');
    expect(await mergeAs('f16', merged, half, base)).toMatchObject({ code: 0 });
    const [got, from] = [await weights(merged), await weights(base)];
    const same = 'model.layers.0.mlp.up_proj.weight';
    expect(got[same]?.dataSync()).toEqual(from[same]?.dataSync());
    const changed = 'model.layers.0.self_attn.q_proj.weight';
    expect(got[changed]?.dataSync()).not.toEqual(from[changed]?.dataSync());
  });
});

describe('an adapter that lacks modules', () => {
  it('gives a warning, also in evaluate', async () => {
    const path = join(adapter, 'adapter_config.json');
    const config = JSON.parse(await readFile(path, 'utf8'));
    expect(config.target_modules).toEqual(['q_proj']);
    const evaluate = [
      'evaluate',
      '--model',
      model,
      '--adapter',
      adapter,
      '--data',
      data,
      ...kPlain,
    ];
    expect((await balora(evaluate)).err).toBe('');
    await writeFile(path, JSON.stringify({ ...config, target_modules: ['q_proj', 'v_proj'] }));
    const warning = /^warning: .*no tensors for 2 of the modules .*layers\.0\.self_attn\.v_proj/m;
    expect((await balora(evaluate)).err).toMatch(warning);
    expect((await merge(join(folder, 'lacking'))).err).toMatch(warning);
  });
});
