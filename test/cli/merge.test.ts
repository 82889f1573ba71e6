/** `balora merge` and `balora evaluate`: folders that cannot be written, and warnings about adapters. */
import { spawnSync } from 'node:child_process';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
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
      ...['config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'],
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
