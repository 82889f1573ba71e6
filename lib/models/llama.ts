/** Llama 1 to 3 and what was built like them (SmolLM2, Vicuna, Mistral's GGUF files). */
import { z } from 'zod';
import { refuseValues } from './config_keys.ts';
import { type DecoderConfig, makePreNormLayer } from './decoder.ts';
import { flag, type ReadOptions, readDecoder } from './decoder_config.ts';
import { decoderFamily } from './family.ts';
import {
  decoderJson,
  type GgufKeys,
  type GgufTable,
  kDecoderNames,
  storedInPairs,
} from './gguf.ts';
import { ropeWithFactors } from './rope.ts';

/** Every frequency of the rope divided by its own factor: how llama.cpp writes Llama 3's rope. */
const kRopeFactors = 'rope_freqs.weight';

const kKeys = {
  rope_interleaved: flag,
  attention_bias: flag,
  mlp_bias: flag,
  max_sequence_length: z.unknown().optional(), // of the data; max_position_embeddings holds
  // Keys that only GGUF files have.
  gguf_output_bias: flag,
  gguf_rope_factors: z.array(z.number()).nullish(),
};

function llamaConfig(json: Record<string, unknown>, options: ReadOptions): DecoderConfig {
  const { config, keys } = readDecoder(json, options, {
    extra: kKeys,
    defaults: { rmsNormEps: 1e-6, ropeTheta: 10_000, tied: false, maxPositions: 2048 },
  });
  refuseValues(options.path, { rope_interleaved: keys.rope_interleaved || null });
  const qkvBias = keys.attention_bias ?? false;
  return {
    ...config,
    ropes: config.ropes.map((rope) =>
      keys.gguf_rope_factors ? ropeWithFactors(rope, keys.gguf_rope_factors, options.path) : rope,
    ),
    qkvBias,
    outputBias: keys.gguf_output_bias ?? qkvBias,
    mlpBias: keys.mlp_bias ?? false,
  };
}

const gguf: GgufTable = {
  architecture: 'llama',
  names: kDecoderNames,
  ignoredTensors: [kRopeFactors],
  async configJson(keys: GgufKeys) {
    const qkvBias = keys.has('blk.0.attn_q.bias');
    const outputBias = keys.has('blk.0.attn_output.bias');
    const factors = await keys.values(kRopeFactors);
    return {
      ...decoderJson(keys),
      hidden_act: 'silu',
      attention_bias: qkvBias,
      mlp_bias: keys.has('blk.0.ffn_gate.bias'),
      ...(outputBias !== qkvBias && { gguf_output_bias: outputBias }),
      ...(factors && { gguf_rope_factors: factors }),
    };
  },
  stored: storedInPairs,
};

export const llama = decoderFamily({
  modelType: 'llama',
  architecture: 'LlamaForCausalLM',
  features: 'tied and untied heads, grouped queries, biases',
  makeLayer: makePreNormLayer,
  configure: llamaConfig,
  gguf,
});
