/** Merged GGUF files: weights of every family as the merged model has them, metadata that are kept, errors that are told. */
import { existsSync, statSync } from 'node:fs';
import { appendFile, cp, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { exportModel, exportTarget } from '../../lib/export/registry.ts';
import type { OutType } from '../../lib/export/target.ts';
import { GgufFile } from '../../lib/io/index.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { fixturePath } from '../support/fixtures.ts';
import { kConversions, writeGoldenGguf } from '../support/gguf_models.ts';
import { disturb } from '../support/tiny_adapters.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';

let folder: string;
let count = 0;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-gguf-'));
});
afterAll(() => rm(folder, { recursive: true }));

async function adapted(path: string, more: object = {}): Promise<AdapterModel> {
  const model = await AutoModelForCausalLM.fromPretrained(path);
  const tuned = await AdapterModel.create(model, { r: 2, loraAlpha: 4, ...more });
  disturb(tuned, 1, 0.1);
  return tuned;
}

async function exported(tuned: AdapterModel, outtype: OutType, tokenizer = tinyTokenizer()) {
  const output = join(folder, `out-${count++}.gguf`);
  const warnings: string[] = [];
  const warn = (message: string) => void warnings.push(message);
  const input = { tuned, tokenizer, adapter: folder, outtype, warn };
  const lines = await exportModel(exportTarget('gguf'), input, output);
  return { output, lines, warnings };
}

/** Largest |difference| between the weights of two models by name. */
function differences(a: CausalLM, b: CausalLM): number {
  const others = new Map(b.namedParameters());
  let most = 0;
  for (const [name, weight] of a.namedParameters()) {
    const [own, other] = [weight.dataSync(), others.get(name)?.dataSync()];
    expect(other?.length, name).toBe(own.length);
    for (let i = 0; i < own.length; i++) {
      most = Math.max(most, Math.abs(Number(own[i]) - Number(other?.[i])));
    }
  }
  return most;
}

it('of a model alone has its weights, whether these come from a folder or a GGUF file', async () => {
  const path = join(folder, 'alone');
  await writeTinyCheckpoint(path);
  const gguf = join(folder, 'alone.gguf');
  writeGoldenGguf(gguf, 'llama-untied-gqa');
  for (const source of [path, gguf]) {
    const model = await AutoModelForCausalLM.fromPretrained(source);
    const output = join(folder, `out-${count++}.gguf`);
    const tuned = { kind: 'model', model } as const;
    const input = { tuned, tokenizer: tinyTokenizer(), adapter: null, warn: () => {} };
    const lines = await exportModel(exportTarget('gguf'), { ...input, outtype: 'f32' }, output);
    expect(lines).toEqual(['F32: no value was rounded']);
    const read = await AutoModelForCausalLM.fromPretrained(output);
    expect(differences(model, read)).toBe(0);
    for (const made of [model, read]) made.dispose();
  }
});

describe.each(Object.keys(kConversions))('%s', (family) => {
  it('from a GGUF base has the merged weights in F32, and every entry of the metadata', async () => {
    const base = join(folder, `${family}.gguf`);
    writeGoldenGguf(base, family);
    const tuned = await adapted(base);
    const { output, lines, warnings } = await exported(tuned, 'f32');
    expect(lines).toEqual(['F32: no value was rounded']);
    expect(warnings).toEqual([]);
    const [before, after] = [GgufFile.open(base), GgufFile.open(output)];
    for (const key of before.metadata.keys()) {
      expect(after.entry(key), key).toEqual(before.entry(key));
    }
    expect(after.metadata.get('general.file_type')).toBe(0);
    expect([...after.tensors.keys()]).toEqual([...before.tensors.keys()]);
    for (const file of [before, after]) file.close();
    const merged = await AutoModelForCausalLM.fromPretrained(output);
    expect(differences(merged, tuned.model)).toBeGreaterThan(1e-3);
    expect(differences(merged, await tuned.mergeAndUnload())).toBeLessThan(
      family.startsWith('gemma') ? 2e-7 : 1e-12,
    );
  });
});

describe('types', () => {
  it.each([
    ['f16', 'F16', 1e-3],
    ['bf16', 'BF16', 1e-2],
    ['q8_0', 'F16', 1e-3],
  ] as const)(
    '%s: weights in it, vectors in F32, the error of each tensor',
    async (outtype, type, most) => {
      const base = join(folder, `types-${outtype}.gguf`);
      writeGoldenGguf(base, 'llama-untied-gqa');
      const tuned = await adapted(base);
      const { output, lines } = await exported(tuned, outtype);
      const file = GgufFile.open(output);
      for (const { name, dtype, shape } of file.tensors.values()) {
        const expected =
          shape.length < 2
            ? 'F32'
            : (shape.at(-1) as number) % 32 === 0 && outtype === 'q8_0'
              ? 'Q8_0'
              : type;
        expect(dtype, name).toBe(expected);
      }
      const weights = [...file.tensors.values()].filter(({ shape }) => shape.length === 2);
      expect(lines[0]).toMatch(/root mean square error of each tensor against F32/);
      expect(lines).toHaveLength(1 + weights.length);
      for (const line of lines.slice(1)) {
        const [, name, , share] = /^(\S+)\s+\w+\s+(\S+)\s+(\S+) %$/.exec(
          line,
        ) as unknown as string[];
        expect(file.tensors.has(name as string), line).toBe(true);
        expect(Number(share) / 100).toBeLessThan(most);
      }
      file.close();
      const merged = await AutoModelForCausalLM.fromPretrained(output);
      expect(differences(merged, await tuned.mergeAndUnload())).toBeLessThan(0.01);
    },
  );

  it('that are quantised already are kept, or rounded again with a warning', async () => {
    const base = join(folder, 'tiny_llama.gguf');
    await cp(fixturePath('quant/tiny_llama.gguf'), base);
    const tuned = await adapted(base, { targetModules: ['q_proj'] });
    const source = GgufFile.open(base);
    const { output, warnings } = await exported(tuned, 'q8_0');
    expect(warnings).toHaveLength(1);
    // Types of the base that are rounded again: those that change, and those that the adapter is merged into.
    const written = GgufFile.open(output);
    const again = [...source.tensors.values()].filter(
      ({ name, dtype }) =>
        /^I?Q/.test(dtype) &&
        (dtype !== written.tensors.get(name)?.dtype || name.includes('attn_q.')),
    );
    written.close();
    const types = [...new Set(again.map(({ dtype }) => dtype))].sort();
    expect(warnings[0]).toContain(`(${types.join(', ')})`);
    expect(warnings[0]).toMatch(
      /^the base is quantised \(.*Q4_\d.*\), so its weights were rounded once: they are rounded a second time, by the errors below; if there is an F16 or F32 file of the model, train and export from it$/,
    );
    const file = GgufFile.open(output);
    for (const { name, dtype, bytes } of file.tensors.values()) {
      if (source.tensors.get(name)?.dtype !== dtype || name.includes('attn_q')) continue;
      expect(file.tensors.get(name)?.bytes).toBe(bytes);
      expect(file.read(name).dataSync(), name).toEqual(source.read(name).dataSync());
    }
    const plain = await exported(tuned, 'f32');
    expect(plain.warnings[0]).toMatch(/the file has the values of that rounding$/);
    for (const one of [file, source]) one.close();
  });
});

describe('from a Hugging Face folder', () => {
  it('has the configuration, the vocabulary and the weights', async () => {
    const model = join(folder, 'hf');
    await writeTinyCheckpoint(model);
    const tokenizer = await Tokenizer.fromPretrained(model);
    const tuned = await adapted(model);
    const { output, warnings } = await exported(tuned, 'f32', tokenizer);
    expect(warnings).toEqual([]);
    const merged = await AutoModelForCausalLM.fromPretrained(output);
    expect(differences(merged, await tuned.mergeAndUnload())).toBe(0);
    const again = await Tokenizer.fromPretrained(output);
    for (const text of ['the abc, the  end\n', 'ä🙂<end>']) {
      expect(again.encode(text)).toEqual(tokenizer.encode(text));
    }
    expect(again.eosId).toBe(tokenizer.eosId);
    const chat = [{ role: 'user', content: 'hello' }];
    expect(again.renderChat(chat)).toBe(tokenizer.renderChat(chat));
  });

  it.each([
    'llama3-rope',
    'llama-linear-rope',
    'llama-biases',
    'mistral',
    'qwen2',
    'qwen3',
    'llama-sharded',
  ])('of %s computes the same', async (family) => {
    const path = fixturePath(`architectures/${family}/model`);
    const model = await AutoModelForCausalLM.fromPretrained(path);
    const tuned = await AdapterModel.create(model, { r: 2 });
    const { output, warnings } = await exported(tuned, 'f32', tokenizerOf(model.vocabSize));
    expect(warnings.length).toBe(family === 'mistral' ? 1 : 0);
    const merged = await AutoModelForCausalLM.fromPretrained(output);
    const inputIds = Int32Array.from({ length: 5 }, (_, i) => i + 1);
    const batch = {
      inputIds,
      positions: inputIds.map((_, i) => i),
      cuSeqlens: Int32Array.of(0, 5),
    };
    const [own, other] = [model, merged].map((one) => one.forward(batch).dataSync()) as [
      Float32Array,
      Float32Array,
    ];
    own.forEach((value, i) => {
      expect(Math.abs(value - (other[i] as number))).toBeLessThan(2e-5);
    });
  });

  it('is refused by name: families, tokenizers and vocabularies that cannot be written', async () => {
    const before = await readdir(folder);
    const of = async (family: string, tokenizer: Tokenizer) =>
      exported(
        await AdapterModel.create(
          await AutoModelForCausalLM.fromPretrained(fixturePath(`architectures/${family}/model`)),
          { r: 2 },
        ),
        'f32',
        tokenizer,
      );
    await expect(of('gemma', tinyTokenizer())).rejects.toThrow(
      /a file is written for llama, mistral, qwen2, qwen3, not for gemma; give the GGUF file/,
    );
    await expect(of('llama-dynamic-rope', tokenizerOf(64))).rejects.toThrow(
      /rotary embedding is of type dynamic, whose frequencies .* llama\.cpp has no such type; export to safetensors/,
    );
    const ramp = join(folder, 'ramp');
    await cp(fixturePath('architectures/llama-yarn/model'), ramp, { recursive: true });
    const config = JSON.parse(await readFile(join(ramp, 'config.json'), 'utf8'));
    const { rope_parameters: rope } = config;
    for (const own of [{}, { beta_fast: 32, truncate: false }]) {
      const changed = { ...config, rope_parameters: { ...rope, ...own } };
      await writeFile(join(ramp, 'config.json'), JSON.stringify(changed));
      const tuned = await adapted(ramp);
      await expect(exported(tuned, 'f32', tokenizerOf(64))).rejects.toThrow(
        /of type yarn with beta_fast (4|32), beta_slow 1 and truncate (true|false), and llama\.cpp has 32, 1 and true/,
      );
    }
    await rm(ramp, { recursive: true });
    await expect(of('llama-untied-gqa', tinyTokenizer())).rejects.toThrow(
      /the tokenizer has the id 261, and the model's embedding \d+ rows: its vocabulary was resized/,
    );
    expect(await readdir(folder)).toEqual(before);
  });
});

describe('bad input', () => {
  it('a base that is written to meanwhile, or is another file by now, is an error, and nothing is left', async () => {
    const base = join(folder, 'growing.gguf');
    writeGoldenGguf(base, 'llama-untied-gqa');
    const tuned = await adapted(base);
    await appendFile(base, 'more');
    const before = await readdir(folder);
    await expect(exported(tuned, 'f16')).rejects.toThrow(
      /growing\.gguf: the file has changed since the model was loaded from it; wait until it is complete/,
    );
    expect(await readdir(folder)).toEqual(before);
  });

  it('an output that exists, and a base in bf16, are refused', async () => {
    const base = join(folder, 'base.gguf');
    writeGoldenGguf(base, 'qwen2');
    const tuned = await adapted(base);
    const output = join(folder, 'exists.gguf');
    await writeFile(output, 'mine');
    const input = { tuned, tokenizer: tinyTokenizer(), adapter: folder, warn: () => {} };
    await expect(exportModel(exportTarget('gguf'), input, output)).rejects.toThrow(
      /exists\.gguf exists; choose another path/,
    );
    expect(statSync(output).size).toBe(4);
    const narrow = await AutoModelForCausalLM.fromPretrained(base, { dtype: 'bf16' });
    const inBf16 = { ...input, tuned: await AdapterModel.create(narrow, { r: 2 }) };
    const path = join(folder, 'bf16.gguf');
    await expect(exportModel(exportTarget('gguf'), inBf16, path)).rejects.toThrow(
      /its weights would be rounded twice; load it in f32/,
    );
    expect(existsSync(path)).toBe(false);
  });
});

/** A byte-level tokenizer with so few ids that a tiny model has a row for each. */
function tokenizerOf(rows: number): Tokenizer {
  const alphabet = [...'abcdefghijklmnopqrstuvwxyz'].slice(0, Math.min(26, rows - 2));
  const vocab = Object.fromEntries(alphabet.map((letter, id) => [letter, id]));
  return Tokenizer.fromJson({
    version: '1.0',
    added_tokens: [{ id: alphabet.length, content: '<end>', special: true, normalized: false }],
    normalizer: null,
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, use_regex: true },
    post_processor: null,
    decoder: { type: 'ByteLevel' },
    model: {
      type: 'BPE',
      unk_token: null,
      byte_fallback: false,
      vocab,
      merges: [['a', 'b']].slice(1),
    },
  });
}
