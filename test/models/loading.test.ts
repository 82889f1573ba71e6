// Refusals of loading; GGUF files against their values; a round trip through saveModel.
import {
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, describe, expect, it } from 'vitest';
import { FormatError, UnsupportedError } from '../../lib/errors.ts';
import { GgufFile, loadSafetensors, saveSafetensors } from '../../lib/io/index.ts';
import { AutoModelForCausalLM, type CausalLM, saveModel } from '../../lib/models/index.ts';
import { memoryStats, synchronize } from '../../lib/runtime.ts';
import { noGrad, type Tensor, tensor } from '../../lib/tensor.ts';
import { values } from '../support/compare.ts';
import { architecture, readGolden } from '../support/golden_checkpoints.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-load-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
let count = 0;

type Json = Record<string, unknown>;
interface Change {
  config?: (config: Json) => unknown;
  tensors?: (tensors: Record<string, Tensor>) => void;
}

/** A copy of a tiny model with a change. */
async function changed(change: Change, name = 'llama-tied'): Promise<string> {
  const to = join(folder, `model-${count++}`);
  cpSync(architecture(`${name}/model`), to, { recursive: true });
  if (change.config) {
    const path = join(to, 'config.json');
    const config = JSON.parse(readFileSync(path, 'utf8')) as Json;
    writeFileSync(path, JSON.stringify(change.config(config) ?? config));
  }
  if (change.tensors) {
    const path = join(to, 'model.safetensors');
    const { tensors } = await loadSafetensors(path);
    change.tensors(tensors);
    await saveSafetensors(path, tensors);
  }
  return to;
}

async function failure(
  path: string,
  options = {},
): Promise<Error & { code: string; path?: string }> {
  const before = memoryStats().liveTensors;
  const error = await AutoModelForCausalLM.fromPretrained(path, options).then(
    () => expect.fail('loaded'),
    (e: unknown) => e,
  );
  // Only a bound, since tensors of earlier tests may be collected meanwhile.
  expect(memoryStats().liveTensors, 'tensors left alive').toBeLessThanOrEqual(before);
  return error as Error & { code: string; path?: string };
}

describe('config.json', () => {
  const k = 'model.layers.0.self_attn.k_proj.weight';
  it.each<[string, (config: Json) => unknown, RegExp, string]>([
    [
      'an unknown model_type',
      (c) => ({ ...c, model_type: 'mamba' }),
      /model_type "mamba" is not supported as a language model; known: llama.*docs\/how-to-add-a-model\.md/,
      'ERR_UNSUPPORTED',
    ],
    [
      'a list of one model_type',
      (c) => ({ ...c, model_type: ['llama'] }),
      /config\.json: model_type must be a text, got \["llama"\]/,
      'ERR_FORMAT',
    ],
    [
      'an object as model_type',
      (c) => ({ ...c, model_type: { a: 1 } }),
      /model_type must be a text, got {"a":1}/,
      'ERR_FORMAT',
    ],
    [
      'a rope_type that is a list',
      (c) => ({ ...c, rope_parameters: { rope_type: ['default'], rope_theta: 1e4 } }),
      /rope_parameters\.rope_type must be a text, got \["default"\]/,
      'ERR_FORMAT',
    ],
    ['none at all', ({ model_type: _, ...c }) => c, /model_type "none"/, 'ERR_UNSUPPORTED'],
    [
      'a key that is not understood',
      (c) => ({ ...c, residual_multiplier: 0.22 }),
      /residual_multiplier is not understood/,
      'ERR_UNSUPPORTED',
    ],
    [
      'quantisation',
      (c) => ({ ...c, quantization_config: { bits: 4 } }),
      /quantization_config is not understood/,
      'ERR_UNSUPPORTED',
    ],
    [
      'another activation',
      (c) => ({ ...c, hidden_act: 'gelu' }),
      /hidden_act "gelu"/,
      'ERR_UNSUPPORTED',
    ],
    [
      'dropout',
      (c) => ({ ...c, attention_dropout: 0.1 }),
      /attention_dropout 0\.1/,
      'ERR_UNSUPPORTED',
    ],
    [
      'an unknown rope',
      (c) => ({ ...c, rope_parameters: { rope_type: 'longrope' } }),
      /rope_parameters\.rope_type "longrope" is not supported; known: default, linear/,
      'ERR_UNSUPPORTED',
    ],
    [
      'a rope key that is not understood',
      (c) => ({ ...c, rope_parameters: { rope_type: 'yarn', factor: 2, mscale: 1 } }),
      /rope_parameters\.mscale is not understood/,
      'ERR_UNSUPPORTED',
    ],
    [
      'a rope without its factor',
      (c) => ({ ...c, rope_parameters: { rope_type: 'linear' } }),
      /rope_parameters\.factor/,
      'ERR_FORMAT',
    ],
    [
      'a missing size',
      ({ hidden_size: _, ...c }) => c,
      /hidden_size: .*the file does not have it/,
      'ERR_FORMAT',
    ],
    [
      'a wrong type',
      (c) => ({ ...c, num_hidden_layers: 'two' }),
      /num_hidden_layers: .*the file has "two"/,
      'ERR_FORMAT',
    ],
    [
      'heads that do not divide',
      (c) => ({ ...c, num_key_value_heads: 3 }),
      /4 must be a multiple of num_key_value_heads 3; correct the value/,
      'ERR_FORMAT',
    ],
    [
      'an odd head',
      (c) => ({ ...c, head_dim: 7 }),
      /channels of a head .* must be even, got 7/,
      'ERR_FORMAT',
    ],
    [
      'another size than the tensors',
      (c) => ({ ...c, num_key_value_heads: 2 }),
      new RegExp(`${k} must be \\(20,40\\) by the configuration, got \\(40,40\\)`),
      'ERR_FORMAT',
    ],
    [
      'more layers than the file',
      (c) => ({ ...c, num_hidden_layers: 3 }),
      /9 of 29 tensors are missing: model\.layers\.2\..*and 1 more/,
      'ERR_FORMAT',
    ],
    [
      'fewer layers than the file',
      (c) => ({ ...c, num_hidden_layers: 1 }),
      /no place for 9 of its tensors: model\.layers\.1\./,
      'ERR_UNSUPPORTED',
    ],
    ['an array', () => [], /must hold a JSON object/, 'ERR_FORMAT'],
  ])('refuses %s', async (_, config, message, code) => {
    const path = await changed({ config });
    const error = await failure(path);
    expect(error.message).toMatch(message);
    expect(error.message).toContain(path);
    expect(error.code).toBe(code);
  });

  it('may have a key that the caller ignores, and null for an absent one', async () => {
    const path = await changed({
      config: (c) => ({ ...c, residual_multiplier: 1, quantization_config: null }),
    });
    const model = await AutoModelForCausalLM.fromPretrained(path, {
      ignoreKeys: ['residual_multiplier'],
    });
    expect(model.vocabSize).toBe(113);
  });

  it('is refused where it is not JSON', async () => {
    const path = await changed({});
    writeFileSync(join(path, 'config.json'), '{"model_type": ');
    expect((await failure(path)).message).toMatch(/config\.json: is not JSON/);
    truncateSync(join(path, 'config.json'), 9 * 2 ** 20);
    expect((await failure(path)).message).toMatch(/config\.json: has 9\.00 MiB, and .* 8\.00 MiB/);
  });
});

describe('weights', () => {
  it('with NaN are refused, with file, tensor and element', async () => {
    const name = 'model.layers.1.mlp.up_proj.weight';
    const path = await changed({
      tensors: (tensors) => {
        const data = (tensors[name] as Tensor).dataSync() as Float32Array;
        data[7] = Number.NaN;
        tensors[name] = tensor(data, { shape: (tensors[name] as Tensor).shape });
      },
    });
    for (const dtype of ['f32', 'bf16'] as const) {
      const error = await failure(path, { dtype });
      expect(error.message).toMatch(
        /model\.safetensors at byte \d+: model\.layers\.1\.mlp\.up_proj\.weight: element 7 is NaN/,
      );
      expect(error.code).toBe('ERR_FORMAT');
    }
    await AutoModelForCausalLM.fromPretrained(path, { checkFinite: false });
  });

  it('of a tied head that differ make it a separate head', async () => {
    const path = await changed({
      tensors: (tensors) => {
        const embedding = tensors['model.embed_tokens.weight'] as Tensor;
        const data = (embedding.dataSync() as Float32Array).map((v) => v + 1);
        tensors['lm_head.weight'] = tensor(data, { shape: embedding.shape });
      },
    });
    const model = await AutoModelForCausalLM.fromPretrained(path);
    expect(Array.from(model.namedParameters(), ([name]) => name)).toContain('lm_head.weight');
  });

  it('of the bare model, whose names lack a prefix, are loaded', async () => {
    const path = await changed({
      tensors: (tensors) => {
        for (const name of Object.keys(tensors)) {
          tensors[name.replace(/^model\./, '')] = tensors[name] as Tensor;
          delete tensors[name];
        }
      },
    });
    const golden = await readGolden('llama-tied');
    const [a, b] = await Promise.all(
      [path, join(golden.folder, 'model')].map((p) => AutoModelForCausalLM.fromPretrained(p)),
    );
    const hidden = (model: CausalLM | undefined): unknown =>
      model?.forward(golden.batch).dataSync();
    expect(hidden(a)).toEqual(hidden(b));
  });

  it('with a missing shard, or an index that contradicts the files, are refused', async () => {
    const path = await changed({}, 'llama-sharded');
    const index = join(path, 'model.safetensors.index.json');
    const json = JSON.parse(readFileSync(index, 'utf8')) as { weight_map: Record<string, string> };
    const [name, shard] = Object.entries(json.weight_map)[0] as [string, string];
    const others = Object.values(json.weight_map).filter((other) => other !== shard);
    json.weight_map[name] = others[0] as string;
    writeFileSync(index, JSON.stringify(json));
    expect((await failure(path)).message).toContain(`weight_map places ${name} in ${others[0]}`);
    delete json.weight_map[name];
    writeFileSync(index, JSON.stringify(json));
    expect((await failure(path)).message).toMatch(
      /holds .*, which weight_map does not place there|are missing/,
    );
    rmSync(join(path, others[0] as string));
    expect((await failure(path)).message).toContain(`the shard ${others[0]} is not there`);
  });
});

describe('folders and files', () => {
  it('are refused with the list of files that a folder needs', async () => {
    const empty = mkdtempSync(join(folder, 'empty-'));
    expect((await failure(empty)).message).toMatch(
      /is no model: it holds nothing; give a folder with config\.json and model\.safetensors/,
    );
    writeFileSync(join(empty, 'a.gguf'), 'x');
    writeFileSync(join(empty, 'b.gguf'), 'x');
    expect((await failure(empty)).message).toMatch(
      /several GGUF files, a\.gguf, b\.gguf; give the path of one of them$/,
    );
    expect(await failure(join(empty, 'a.gguf'))).toBeInstanceOf(FormatError);
    writeFileSync(join(empty, 'weights.bin'), 'x');
    expect((await failure(join(empty, 'weights.bin'))).message).toMatch(
      /neither a model folder nor a \.gguf/,
    );
  });

  it('are refused for an unknown device', async () => {
    const error = await failure(architecture('llama-tied/model'), { device: 'tpu' });
    expect(error).toBeInstanceOf(UnsupportedError);
    expect(error.message).toMatch(/device "tpu".*known: cpu/);
  });
});

describe('GGUF', () => {
  const path = fileURLToPath(new URL('../fixtures/quant/tiny_llama.gguf', import.meta.url));

  it("becomes a model with the same weights, q and k in transformers' order of rows", async () => {
    const model = await AutoModelForCausalLM.fromPretrained(path);
    const file = GgufFile.open(path);
    const parameters = new Map(model.namedParameters());
    expect(parameters.size).toBe(file.tensors.size);
    const check = (hf: string, gguf: string, heads = 0): void => {
      const want = file.read(gguf, { permutedHeads: heads }).dataSync();
      expect(parameters.get(hf)?.dataSync(), hf).toEqual(want);
    };
    check('lm_head.weight', 'output.weight');
    check('model.norm.weight', 'output_norm.weight');
    check('model.layers.1.self_attn.q_proj.weight', 'blk.1.attn_q.weight', 4);
    check('model.layers.1.self_attn.k_proj.weight', 'blk.1.attn_k.weight', 2);
    check('model.layers.0.mlp.gate_proj.weight', 'blk.0.ffn_gate.weight');
    check('model.layers.0.post_attention_layernorm.weight', 'blk.0.ffn_norm.weight');
  });

  it('of an unknown architecture is refused', async () => {
    const other = path.replace('tiny_llama', 'metadata_arrays');
    expect((await failure(other)).message).toMatch(
      /general\.architecture "test" is not supported; known: llama/,
    );
    expect((await failure(path.replace('tiny_llama', 'kquants'))).message).toMatch(
      /llama\.attention\.head_count is missing/,
    );
  });

  it('saved as a folder gives the same hidden states', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(path);
    const to = join(folder, 'from-gguf');
    await saveModel(model, to);
    const again = await AutoModelForCausalLM.fromPretrained(to);
    const batch = {
      inputIds: Int32Array.of(5, 7, 9),
      positions: Int32Array.of(0, 1, 2),
      cuSeqlens: Int32Array.of(0, 3),
    };
    expect(values(again.forward(batch))).toEqual(values(model.forward(batch)));
  });
});

describe('saveModel', () => {
  it('writes the same configuration, names and bytes that were read', async () => {
    const from = architecture('llama-untied-gqa/model');
    const model = await AutoModelForCausalLM.fromPretrained(from);
    const to = join(folder, 'saved');
    await saveModel(model, to);
    expect(readdirSync(to).sort()).toEqual(['config.json', 'model.safetensors']);
    const read = (path: string): unknown =>
      JSON.parse(readFileSync(join(path, 'config.json'), 'utf8'));
    expect(read(to)).toEqual(read(from));
    const bytes = (path: string): Buffer => readFileSync(join(path, 'model.safetensors'));
    expect(bytes(to).equals(bytes(from))).toBe(true);
  });

  it('copies the tokenizer, each file completely or not at all', async () => {
    const from = await changed({});
    for (const name of ['tokenizer.json', 'merges.txt']) writeFileSync(join(from, name), name);
    const model = await AutoModelForCausalLM.fromPretrained(from);
    const [to, other] = [join(folder, 'companions'), join(folder, 'other.txt')];
    mkdirSync(to);
    // A rename replaces the link, while a copy would be written through it.
    writeFileSync(other, 'of somebody else');
    symlinkSync(other, join(to, 'merges.txt'));
    await saveModel(model, to);
    for (const name of ['tokenizer.json', 'merges.txt']) {
      expect(readFileSync(join(to, name), 'utf8')).toBe(name);
    }
    expect(readFileSync(other, 'utf8')).toBe('of somebody else');
    expect(readdirSync(to)).toHaveLength(4);
  });

  it('refuses replacements that are no tensors, or of another shape', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(architecture('llama-tied/model'));
    const to = join(folder, 'not-replaced');
    for (const [given, message] of [
      [1, /replace must return null or a tensor of the shape \(\d+,\d+\) for .*, got 1$/],
      [tensor([1, 2]), /got the shape \(2\)$/],
    ] as const) {
      const saved = saveModel(model, to, { replace: () => given as never });
      await expect(saved).rejects.toThrow(message);
      expect(existsSync(join(to, 'model.safetensors'))).toBe(false);
    }
    model.dispose();
  });

  it('writes replaced tensors, in the dtype of the model', async () => {
    const model = await AutoModelForCausalLM.fromPretrained(architecture('llama-tied/model'), {
      dtype: 'bf16',
    });
    const to = join(folder, 'replaced');
    const before = memoryStats().liveTensors;
    await saveModel(model, to, {
      replace: (name, weight) =>
        name === 'model.norm.weight'
          ? noGrad(() => tensor(new Float32Array(weight.size).fill(2)).to('bf16'))
          : null,
    });
    await synchronize();
    expect(memoryStats().liveTensors - before).toBeLessThanOrEqual(1); // the f32 source of the replacement
    const { tensors } = await loadSafetensors(join(to, 'model.safetensors'));
    expect(new Set(values(tensors['model.norm.weight'] as Tensor))).toEqual(new Set([2]));
    expect(tensors['model.embed_tokens.weight']?.dtype).toBe('bf16');
    expect(JSON.parse(readFileSync(join(to, 'config.json'), 'utf8')).dtype).toBe('bfloat16');
  });
});
