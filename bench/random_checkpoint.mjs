// Writes a checkpoint of the LLaMA architecture with random weights, tensor by tensor, so that a model of any size is made in little
// memory: in bf16, or in NF4 as bitsandbytes stores it, whose codes are drawn at random. A shape is a name or keys of config.json.
//
//   node bench/random_checkpoint.mjs FOLDER [--shape llama-2-7b] [--form nf4|bf16] [--layers N]
import { mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { synchronize, tensor } from 'balora';
import { SafetensorsWriter } from 'balora/io';
import { full, randn } from 'balora/ops';

/** The shapes of published models, by the keys of their config.json. */
export const kShapes = {
  'llama-2-7b': {
    ...{ vocab_size: 32000, hidden_size: 4096, intermediate_size: 11008, num_hidden_layers: 32 },
    ...{ num_attention_heads: 32, num_key_value_heads: 32, max_position_embeddings: 4096 },
  },
  'tinyllama-1.1b': {
    ...{ vocab_size: 32000, hidden_size: 2048, intermediate_size: 5632, num_hidden_layers: 22 },
    ...{ num_attention_heads: 32, num_key_value_heads: 4, max_position_embeddings: 2048 },
  },
};

const kDeviation = 0.02;
const kBlockSize = 64;
/** Values of the codes of NF4, as bitsandbytes has them. */
const kCode = [
  ...[-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635],
  ...[-0.18477343022823334, -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725],
  ...[0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941],
  ...[0.7229568362236023, 1],
];
const kCodeDeviation = Math.sqrt(kCode.reduce((sum, value) => sum + value * value, 0) / 16);

/**
 * Writes config.json and model.safetensors.
 * @param shape keys of config.json
 * @param form "nf4": the linears of the layers in NF4, the rest in bf16; or "bf16"
 */
export async function writeRandomCheckpoint(folder, shape, form) {
  await mkdir(folder, { recursive: true });
  const tensors = tensorsOf(shape, form);
  const specs = Object.fromEntries(
    tensors.map(({ name, dtype, shape: extents }) => [name, { dtype, shape: extents }]),
  );
  const writer = new SafetensorsWriter(join(folder, 'model.safetensors'), specs, { format: 'pt' });
  try {
    for (const { name, make } of tensors) {
      const values = make();
      writer.write(name, values);
      values.dispose();
      await synchronize();
    }
    await writer.commit();
  } catch (error) {
    await writer.abandon();
    throw error;
  }
  await writeFile(join(folder, 'config.json'), JSON.stringify(configOf(shape, form), null, 2));
}

function configOf(shape, form) {
  const quantization = {
    ...{ quant_method: 'bitsandbytes', load_in_4bit: true, load_in_8bit: false },
    ...{ bnb_4bit_quant_type: 'nf4', bnb_4bit_use_double_quant: false },
    ...{ bnb_4bit_compute_dtype: 'bfloat16', bnb_4bit_quant_storage: 'uint8' },
  };
  return {
    ...{ architectures: ['LlamaForCausalLM'], model_type: 'llama', hidden_act: 'silu' },
    ...{ rms_norm_eps: 1e-5, rope_theta: 10000, tie_word_embeddings: false },
    ...{ initializer_range: kDeviation, dtype: 'bfloat16' },
    ...shape,
    ...(form === 'nf4' && { quantization_config: quantization }),
  };
}

/** The tensors of a checkpoint in the order of the file, each with what makes it. */
function tensorsOf(shape, form) {
  const { vocab_size: vocabulary, hidden_size: hidden, intermediate_size: inner } = shape;
  const {
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    num_hidden_layers: layers,
  } = shape;
  const keys = (hidden / heads) * kvHeads;
  let seed = 1;
  const dense = (name, extents) => ({
    ...{ name, dtype: 'bf16', shape: extents },
    make: () => {
      const values = randn(extents, { seed: seed++, deviation: kDeviation });
      const rounded = values.to('bf16');
      values.dispose();
      return rounded;
    },
  });
  const norm = (name) => ({
    ...{ name, dtype: 'bf16', shape: [hidden] },
    make: () => full([hidden], 1, { dtype: 'bf16' }),
  });
  const matrix = (name, extents) =>
    form === 'nf4' ? blocksOf(name, extents, seed++) : [dense(name, extents)];
  const layer = (i) => {
    const at = `model.layers.${i}`;
    return [
      norm(`${at}.input_layernorm.weight`),
      ...matrix(`${at}.self_attn.q_proj.weight`, [hidden, hidden]),
      ...matrix(`${at}.self_attn.k_proj.weight`, [keys, hidden]),
      ...matrix(`${at}.self_attn.v_proj.weight`, [keys, hidden]),
      ...matrix(`${at}.self_attn.o_proj.weight`, [hidden, hidden]),
      norm(`${at}.post_attention_layernorm.weight`),
      ...matrix(`${at}.mlp.gate_proj.weight`, [inner, hidden]),
      ...matrix(`${at}.mlp.up_proj.weight`, [inner, hidden]),
      ...matrix(`${at}.mlp.down_proj.weight`, [hidden, inner]),
    ];
  };
  return [
    dense('model.embed_tokens.weight', [vocabulary, hidden]),
    ...Array.from({ length: layers }, (_, i) => layer(i)).flat(),
    norm('model.norm.weight'),
    dense('lm_head.weight', [vocabulary, hidden]),
  ];
}

/** The parts of a weight in NF4, under bitsandbytes' names. */
function blocksOf(name, shape, seed) {
  const size = shape[0] * shape[1];
  const blocks = Math.ceil(size / kBlockSize);
  const state = new TextEncoder().encode(
    JSON.stringify({ quant_type: 'nf4', blocksize: kBlockSize, dtype: 'bfloat16', shape }),
  );
  return [
    {
      name,
      dtype: 'u8',
      shape: [Math.ceil(size / 2), 1],
      make: () => randomBytes(Math.ceil(size / 2), seed),
    },
    {
      ...{ name: `${name}.absmax`, dtype: 'f32', shape: [blocks] },
      make: () => full([blocks], kDeviation / kCodeDeviation),
    },
    {
      ...{ name: `${name}.quant_map`, dtype: 'f32', shape: [16] },
      make: () => tensor(Float32Array.from(kCode)),
    },
    {
      ...{ name: `${name}.quant_state.bitsandbytes__nf4`, dtype: 'u8', shape: [state.length] },
      make: () => tensor(state),
    },
  ];
}

/** (n, 1) u8, by Marsaglia's xorshift of 32 bits. */
function randomBytes(count, seed) {
  const words = new Uint32Array(Math.ceil(count / 4));
  let x = (0x9e3779b9 * seed) | 1;
  for (let i = 0; i < words.length; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    words[i] = x;
  }
  return tensor(new Uint8Array(words.buffer, 0, count), { shape: [count, 1] });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: {
      shape: { type: 'string', default: 'llama-2-7b' },
      form: { type: 'string', default: 'nf4' },
      layers: { type: 'string' },
    },
  });
  const shape = values.shape.startsWith('{') ? JSON.parse(values.shape) : kShapes[values.shape];
  if (positionals.length !== 1 || shape === undefined || !['nf4', 'bf16'].includes(values.form)) {
    console.error(
      `usage: node bench/random_checkpoint.mjs FOLDER [--shape ${Object.keys(kShapes).join('|')}] [--form nf4|bf16] [--layers N]`,
    );
    process.exit(2);
  }
  const layers = values.layers === undefined ? {} : { num_hidden_layers: Number(values.layers) };
  await writeRandomCheckpoint(positionals[0], { ...shape, ...layers }, values.form);
}
