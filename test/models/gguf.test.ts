// GGUF files of every family that llama.cpp supports, written as by its converter, against the checkpoints that they were made
// from. llama.cpp itself (node-llama-cpp 3.22.1, F32 cache) reads these files with logits within 1.1e-5 of ours, and within 2e-3
// where it has GELU in a table of half precision (Gemma, GPT-2).
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { UnsupportedError } from '../../lib/errors.ts';
import {
  AutoModelForCausalLM,
  AutoModelForSequenceClassification,
  type SequenceClassifier,
  saveModel,
} from '../../lib/models/index.ts';
import { noGrad } from '../../lib/tensor.ts';
import { values } from '../support/compare.ts';
import { kConversions, writeGoldenGguf } from '../support/gguf_models.ts';
import { architecture, readGolden } from '../support/golden_checkpoints.ts';
import { writeGguf } from '../support/write_gguf.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-gguf-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** The checkpoint in Hugging Face's format, without the settings that its GGUF file cannot contain. */
function twin(family: string): string {
  const to = join(folder, `${family}-hf`);
  cpSync(architecture(`${family}/model`), to, { recursive: true });
  const path = join(to, 'config.json');
  const config = { ...JSON.parse(readFileSync(path, 'utf8')), ...kConversions[family]?.unsaid };
  writeFileSync(path, JSON.stringify(config));
  return to;
}

describe.each(Object.keys(kConversions))('a GGUF file of %s', (family) => {
  it('gives the logits of its checkpoint', async () => {
    const { batch } = await readGolden(family);
    const path = join(folder, `${family}.gguf`);
    writeGoldenGguf(path, family);
    const models = await Promise.all(
      [path, twin(family)].map((p) => AutoModelForCausalLM.fromPretrained(p)),
    );
    const [got, want] = models.map((m) => values(noGrad(() => m.logits(m.forward(batch)))));
    const error = (got as Float64Array).map((v, i) => Math.abs(v - Number(want?.[i])));
    // The file stores Gemma's norms plus 1, which rounds their last bits away.
    const tolerance = family.startsWith('gemma') ? 1e-5 : 0;
    expect(Math.max(...error)).toBeLessThanOrEqual(tolerance);
  });
});

describe('a classifier on a GGUF file', () => {
  it.each(Object.keys(kConversions).filter((family) => family !== 'gpt2'))(
    'of %s is that on its checkpoint: trunk, head drawn anew, and what is saved',
    async (family) => {
      const { batch } = await readGolden(family);
      const path = join(folder, `${family}-head.gguf`);
      writeGoldenGguf(path, family);
      const [got, want] = (await Promise.all(
        [path, twin(family)].map((p) =>
          AutoModelForSequenceClassification.fromPretrained(p, { numLabels: 3, seed: 7 }),
        ),
      )) as [SequenceClassifier, SequenceClassifier];
      expect(got.newlyInitialized).toEqual(['score.weight']);
      const logits = (model: SequenceClassifier) =>
        values(noGrad(() => model.logits(model.forward(batch), batch)));
      const expected = logits(want);
      const error = logits(got).map((v, i) => Math.abs(v - Number(expected[i])));
      expect(Math.max(...error)).toBeLessThanOrEqual(family.startsWith('gemma') ? 1e-5 : 0);
      const saved = join(folder, `${family}-head-saved`);
      await saveModel(got, saved);
      const again = await AutoModelForSequenceClassification.fromPretrained(saved);
      expect([again.numLabels, again.newlyInitialized]).toEqual([3, []]);
      expect(logits(again)).toEqual(logits(got));
    },
  );

  it('is refused for a family without one', async () => {
    const path = join(folder, 'gpt2-head.gguf');
    writeGoldenGguf(path, 'gpt2');
    await expect(AutoModelForSequenceClassification.fromPretrained(path)).rejects.toThrow(
      /gpt2-head\.gguf: model_type "gpt2" is not supported for classification, only as language model/,
    );
    const nomic = join(folder, 'nomic.gguf');
    writeGguf(nomic, { 'general.architecture': 'nomic-bert' }, []);
    await expect(AutoModelForSequenceClassification.fromPretrained(nomic)).rejects.toThrow(
      /nomic\.gguf: general\.architecture "nomic-bert" is not supported for classification; known: bert, llama, /,
    );
  });
});

it('a block type that cannot be decoded is an error that names file, tensor and known types', async () => {
  const width = 32;
  const zeros = (name: string, ...shape: number[]) => ({
    ...{ name: `${name}.weight`, shape },
    data: new Float32Array(shape.reduce((product, size) => product * size, 1)),
  });
  const square = ['attn_q', 'attn_k', 'attn_v', 'attn_output', 'ffn_gate', 'ffn_up', 'ffn_down'];
  const tensors = [
    ...[zeros('token_embd', 4, width), zeros('output_norm', width)],
    ...['attn_norm', 'ffn_norm'].map((name) => zeros(`blk.0.${name}`, width)),
    ...square.map((name) => zeros(`blk.0.${name}`, width, width)),
  ];
  const metadata = {
    ...{ 'general.architecture': 'llama', 'llama.block_count': 1, 'llama.context_length': 16 },
    ...{ 'llama.embedding_length': width, 'llama.feed_forward_length': width },
    ...{ 'llama.attention.head_count': 2, 'llama.attention.layer_norm_rms_epsilon': { f32: 1e-5 } },
    'tokenizer.ggml.tokens': ['a', 'b', 'c', 'd'],
  };
  const plain = join(folder, 'plain.gguf');
  writeGguf(plain, metadata, tensors);
  expect((await AutoModelForCausalLM.fromPretrained(plain)).vocabSize).toBe(4);
  // MXFP4 has blocks of 32 values in 17 bytes.
  const mxfp4 = { type: 39, data: new Uint8Array((width * width * 17) / 32) };
  const path = join(folder, 'mxfp4.gguf');
  writeGguf(
    path,
    metadata,
    tensors.map((one) => (one.name === 'blk.0.ffn_up.weight' ? { ...one, ...mxfp4 } : one)),
  );
  const refused = AutoModelForCausalLM.fromPretrained(path);
  await expect(refused).rejects.toThrow(UnsupportedError);
  await expect(refused).rejects.toThrow(
    /mxfp4\.gguf: blk\.0\.ffn_up\.weight has type MXFP4, which is not decoded; supported: F32, F16, Q4_0/,
  );
});
