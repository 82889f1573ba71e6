/**
 * Writes a llama checkpoint with random weights and the tiny tokenizer as a Hugging Face folder, small enough to train in a test.
 */
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { saveSafetensors } from '../../lib/io/index.ts';
import { mul, ones, randn } from '../../lib/ops/index.ts';
import { scope, type Tensor } from '../../lib/tensor.ts';
import { tinyTokenizer, tinyTokenizerConfig, tinyTokenizerJson } from './tiny_tokenizer.ts';

const kWidth = 16;
const kHidden = 32;
const kKeyWidth = 8;

export async function writeTinyCheckpoint(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true });
  const { vocabSize } = tinyTokenizer();
  const config = {
    model_type: 'llama',
    ...{ vocab_size: vocabSize, hidden_size: kWidth, intermediate_size: kHidden },
    ...{ num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2 },
    ...{ rms_norm_eps: 1e-5, max_position_embeddings: 128, tie_word_embeddings: true },
    ...{ hidden_act: 'silu', rope_theta: 10000 },
  };
  await writeFile(join(folder, 'config.json'), JSON.stringify(config));
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tinyTokenizerJson()));
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify(tinyTokenizerConfig()));
  const shapes: Record<string, number[]> = { 'model.embed_tokens.weight': [vocabSize, kWidth] };
  for (const layer of [0, 1]) {
    const prefix = `model.layers.${layer}.`;
    Object.assign(shapes, {
      [`${prefix}self_attn.q_proj.weight`]: [kWidth, kWidth],
      [`${prefix}self_attn.k_proj.weight`]: [kKeyWidth, kWidth],
      [`${prefix}self_attn.v_proj.weight`]: [kKeyWidth, kWidth],
      [`${prefix}self_attn.o_proj.weight`]: [kWidth, kWidth],
      [`${prefix}mlp.gate_proj.weight`]: [kHidden, kWidth],
      [`${prefix}mlp.up_proj.weight`]: [kHidden, kWidth],
      [`${prefix}mlp.down_proj.weight`]: [kWidth, kHidden],
    });
  }
  const tensors: Record<string, Tensor> = {};
  Object.entries(shapes).forEach(([name, shape], seed) => {
    tensors[name] = scope(() => mul(randn(shape, { seed: seed + 1 }), 0.3));
  });
  for (const name of ['model.norm', ...[0, 1].flatMap(layerNorms)]) {
    tensors[`${name}.weight`] = ones([kWidth]);
  }
  await saveSafetensors(join(folder, 'model.safetensors'), tensors);
  for (const tensor of Object.values(tensors)) tensor.dispose();
}

function layerNorms(layer: number): string[] {
  return ['input_layernorm', 'post_attention_layernorm'].map((n) => `model.layers.${layer}.${n}`);
}
