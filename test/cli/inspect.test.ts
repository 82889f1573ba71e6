import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { AdapterConfigInput } from '../../lib/adapters/create.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { balora } from '../support/run_cli.ts';
import { describeShared, sharedPath } from '../support/shared.ts';
import { disturb } from '../support/tiny_adapters.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';
import { tinyTokenizerConfig, tinyTokenizerJson } from '../support/tiny_tokenizer.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-inspect-'));
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tinyTokenizerJson()));
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify(tinyTokenizerConfig()));
  await writeFile(join(folder, 'data.jsonl'), '{"q": "a", "a": "b"}\n{"q": "x", "a": "yz"}\n');
});
afterAll(() => rm(folder, { recursive: true }));

const kFields = ['--prompt-field', 'q', '--response-field', 'a', '--prompt-template', 'none'];

describe('balora inspect --data', () => {
  it('shows which tokens are supervised', async () => {
    const data = join(folder, 'data.jsonl');
    const { code, out } = await balora([
      'inspect',
      folder,
      '--data',
      data,
      '--row',
      '1',
      ...kFields,
    ]);
    expect(code).toBe(0);
    expect(out).toContain(`${data}:2 (q -> a): 4 tokens, 3 supervised`);
    const marks = out
      .trim()
      .split('\n')
      .slice(1)
      .map((line) => line.includes(' *  '));
    expect(marks).toEqual([false, true, true, true]);
  });

  it('reports truncated examples', async () => {
    const data = join(folder, 'data.jsonl');
    const args = ['--data', data, '--row', '1', '--max-length', '3', ...kFields];
    expect((await balora(['inspect', folder, ...args])).out).toContain('2 supervised, 1 cut off');
  });
});

/** A safetensors file of one f32 tensor of zeros. */
function safetensors(name: string, shape: number[]): Buffer {
  const bytes = 4 * shape.reduce((a, b) => a * b, 1);
  const header = { [name]: { dtype: 'F32', shape, data_offsets: [0, bytes] } };
  const text = Buffer.from(JSON.stringify(header));
  const padded = Buffer.concat([text, Buffer.alloc((8 - (text.length % 8)) % 8, ' ')]);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(padded.length));
  return Buffer.concat([length, padded, Buffer.alloc(bytes)]);
}

describe('balora inspect', () => {
  it('lists the tensors of a file, a folder and an adapter', async () => {
    const model = join(folder, 'model');
    await mkdir(model);
    await writeFile(join(model, 'model.safetensors'), safetensors('a.weight', [3, 2]));
    const expected = 'a.weight  F32  (3, 2)  24 B\n1 tensors, 6 values, 24 B\n';
    for (const path of [model, join(model, 'model.safetensors')]) {
      expect((await balora(['inspect', path])).out).toBe(`model.safetensors\n${expected}`);
    }
    const adapter = join(folder, 'adapter');
    await mkdir(adapter);
    await writeFile(join(adapter, 'adapter_model.safetensors'), safetensors('a.weight', [3, 2]));
    const config = { peft_type: 'LORA', r: 2, lora_alpha: 4, target_modules: ['q_proj'] };
    await writeFile(join(adapter, 'adapter_config.json'), JSON.stringify(config));
    expect((await balora(['inspect', adapter])).out).toBe(
      `LoRA adapter: r 2, alpha 4, init true, on q_proj, base not named\n${expected}`,
    );
  });

  it('names a file that does not exist', async () => {
    const none = await balora(['inspect', join(folder, 'none')]);
    expect(none).toMatchObject({
      code: 1,
      err: `error: "${join(folder, 'none')}" is no file or folder here, and no model id (owner/name) either; check the spelling\n`,
    });
    const empty = join(folder, 'empty');
    await mkdir(empty);
    expect((await balora(['inspect', empty])).err).toMatch(/no \.safetensors and no \.gguf file/);
    const half = join(folder, 'half');
    await mkdir(half);
    await writeFile(join(half, 'adapter_model.safetensors'), safetensors('a.weight', [3, 2]));
    const { code, err } = await balora(['inspect', half]);
    expect(code).toBe(1);
    expect(err).toMatch(/^error: .*adapter_config\.json: no such file[^\n]*\n$/);
  });
});

const kModel = 'models/smollm2-135m-instruct-gguf';
describeShared('balora inspect on SmolLM2', [kModel, 'data/gsm8k'], () => {
  it('lists tensors and shows tokens', async () => {
    const path = sharedPath(kModel);
    const { out } = await balora(['inspect', path]);
    expect(out).toMatch(/: GGUF v3, llama\n/);
    expect(out).toMatch(/^token_embd\.weight +Q8_0 +\(49152, 576\) +28\.7 MiB$/m);
    expect(out).toMatch(/^272 tensors, 134\.5 M values, /m);
    const data = sharedPath('data/gsm8k/train.jsonl');
    const tokens = (await balora(['inspect', path, '--data', data])).out;
    expect(tokens).toMatch(/train\.jsonl:1 \(question -> answer\): \d+ tokens, \d+ supervised\n/);
    expect(tokens).toMatch(/ {2}\* {2}<\|im_end\|>\n$/);
  });
});

describe('balora inspect --model', () => {
  it('shows what an adapter of any method changes in each weight', async () => {
    const base = join(folder, 'base');
    await writeTinyCheckpoint(base);
    const made = async (name: string, config: AdapterConfigInput) => {
      const tuned = await AdapterModel.create(
        await AutoModelForCausalLM.fromPretrained(base),
        config,
      );
      disturb(tuned, 1, 0.3);
      await tuned.savePretrained(join(folder, name));
    };
    await made('of-lora', { r: 3, targetModules: ['q_proj'], modulesToSave: ['norm'] });
    await made('of-hira', { method: 'hira', r: 2 });
    const lora = await balora(['inspect', join(folder, 'of-lora'), '--model', base]);
    expect(lora.code, lora.err).toBe(0);
    const [title, head, ...lines] = lora.out.trimEnd().split('\n') as [string, string, ...string[]];
    expect(title).toMatch(/^LoRA adapter: r 3, alpha 8, /);
    expect(head.split(/ {2,}/)).toEqual([
      ...['module', 'r', 'size', 'stable rank', 'rank for 50 %', 'rank for 90 %', 'rank for 99 %'],
      'intruders',
    ]);
    const kLine =
      /^(model\.layers\.\d\.\S+) +(\d+) +[\d.]+ % +[\d.]+ +([1-9]\d*) +([1-9]\d*) +([1-9]\d*) +(\d+)$/;
    const modules = lines.slice(0, 2).map((line) => kLine.exec(line)?.slice(1));
    expect(modules.map((found) => found?.slice(0, 2))).toEqual([
      ['model.layers.0.self_attn.q_proj', '3'],
      ['model.layers.1.self_attn.q_proj', '3'],
    ]);
    const counts = modules.map((found) => Number(found?.at(-1)));
    expect(lines[2]).toMatch(/^2 modules; 50 % of the energy in ranks \d to \d, median \d; /);
    expect(lines[2]).toMatch(
      new RegExp(`; ${counts.reduce((a, b) => a + b)} intruder dimensions$`),
    );
    expect(lines[3]).toMatch(/^trained whole: .*model\.norm\.weight/);
    const args = ['inspect', join(folder, 'of-hira'), '--model', base, '--no-intruders'];
    const hira = await balora(args);
    expect(hira.code, hira.err).toBe(0);
    expect(hira.out).toMatch(/^HIRA adapter: r 2, /);
    expect(hira.out).not.toContain('intruder');
    expect(hira.out).toMatch(/\n14 modules; 50 % of the energy in ranks /);
  });

  it('is refused with --data, and its options without it', async () => {
    const data = join(folder, 'data.jsonl');
    const both = await balora(['inspect', folder, '--data', data, '--model', folder]);
    expect(both).toMatchObject({ code: 2 });
    expect(both.err).toMatch(/--data shows the tokens of a row, --model what an adapter changes/);
    for (const option of ['--no-intruders', '--allow-other-base']) {
      const { code, err } = await balora(['inspect', folder, option]);
      expect(code).toBe(2);
      expect(err).toMatch(/^error: --(intruders|allow-other-base) needs --model, the base/);
    }
  });
});

describe('exit codes', () => {
  it('0 for help and version, 2 for wrong use, 1 for damaged files', async () => {
    expect(await balora(['--version'])).toMatchObject({ code: 0 });
    const help = await balora(['inspect', '--help']);
    expect(help.code).toBe(0);
    expect(help.out).toMatch(/--max-length <n> +tokens of an example.*\(default: 512\)/s);
    const unknown = await balora(['inspekt']);
    expect(unknown.code).toBe(2);
    expect(unknown.err).toMatch(/unknown command "inspekt" .did you mean "inspect"/);
    const missing = await balora(['inspect', folder, '--data', join(folder, 'none.jsonl')]);
    expect(missing).toMatchObject({ code: 1 });
    expect(missing.err).toMatch(
      /^error: data: cannot open .*none\.jsonl: no such file; check the path\n$/,
    );
    await writeFile(join(folder, 'bad.jsonl'), '{"a": }\n');
    const damaged = await balora(['inspect', folder, '--data', join(folder, 'bad.jsonl')]);
    expect(damaged.code).toBe(1);
    expect(damaged.err).toMatch(/bad\.jsonl:1:7: not valid JSON/);
  });
});
