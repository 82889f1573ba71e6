/** Gemma 3's text models: Gemma 2 with norms of q and k instead of soft-capping, and separate ropes for local and global layers. */
import { z } from 'zod';
import { type DecoderConfig, makeSandwichLayer } from './decoder.ts';
import { type ReadOptions, slidingLayers } from './decoder_config.ts';
import { decoderFamily } from './family.ts';
import { gemmaJson, readGemma, storedWithOne } from './gemma.ts';
import { kGemma2Keys, kSandwichNames, queryScalar } from './gemma2.ts';
import type { GgufKeys } from './gguf.ts';
import { ropeConfig } from './rope.ts';

const kPattern = z.int().positive().nullish();
const kKeys = {
  ...kGemma2Keys,
  rope_local_base_freq: z.number().positive().nullish(),
  sliding_window_pattern: kPattern,
  _sliding_window_pattern: kPattern,
};
const kDefaults = {
  rmsNormEps: 1e-6,
  ropeTheta: 1_000_000,
  tied: true,
  maxPositions: 131_072,
  headDim: 256,
  numKeyValueHeads: 4,
};
const kLocalTheta = 10_000;
const kGlobalRope = 1; // slidingLayers gives the local layers 0

/** rope_parameters of transformers 5, by the type of the layers. */
const kRopes = z.object({ full_attention: z.unknown(), sliding_attention: z.unknown() });

function gemma3Config(json: Record<string, unknown>, options: ReadOptions): DecoderConfig {
  const { path } = options;
  const ropes = kRopes.safeParse(json.rope_parameters).data;
  const flat = ropes === undefined ? json : { ...json, rope_parameters: ropes.full_attention };
  const { config, keys } = readGemma(flat, options, { extra: kKeys, defaults: kDefaults });
  const local = {
    rope_parameters: ropes?.sliding_attention,
    rope_theta: keys.rope_local_base_freq ?? kLocalTheta,
    max_position_embeddings: config.maxPositions,
  };
  const { sliding_window = 4096 } = keys;
  const pattern = keys.sliding_window_pattern ?? keys._sliding_window_pattern ?? 6;
  return {
    ...config,
    source: json,
    qkNorm: 'head',
    attentionScale: (keys.query_pre_attn_scalar ?? 256) ** -0.5,
    attentionSoftcap: keys.attn_logit_softcapping ?? 0,
    headSoftcap: keys.final_logit_softcapping ?? 0,
    ropes: [ropeConfig(local, config.headDim, path), ...config.ropes],
    layers: slidingLayers(config, {
      layerTypes: keys.layer_types,
      isSliding: (layer) => (layer + 1) % pattern !== 0,
      window: sliding_window ?? 0,
      globalRope: kGlobalRope,
      path,
    }),
  };
}

function ggufJson(keys: GgufKeys): Record<string, unknown> {
  const { rope_parameters, ...common } = gemmaJson(keys);
  return {
    ...common,
    query_pre_attn_scalar: queryScalar(keys, 62),
    final_logit_softcapping: keys.number('final_logit_softcapping') ?? null,
    sliding_window: keys.required('attention.sliding_window'),
    _sliding_window_pattern: keys.number('attention.sliding_window_pattern') ?? 6,
    rope_parameters: {
      full_attention: rope_parameters,
      sliding_attention: {
        rope_type: 'default',
        rope_theta: keys.number('rope.freq_base_swa') ?? kLocalTheta,
      },
    },
  };
}

export const gemma3 = decoderFamily({
  modelType: 'gemma3_text',
  architecture: 'Gemma3ForCausalLM',
  features: "Gemma 3's text models: local and global layers, each with its own RoPE",
  makeLayer: makeSandwichLayer,
  configure: gemma3Config,
  gguf: {
    architecture: 'gemma3',
    names: kSandwichNames,
    keys: [
      'final_logit_softcapping',
      'attention.sliding_window',
      'attention.sliding_window_pattern',
      'rope.freq_base_swa',
    ],
    configJson: ggufJson,
    stored: storedWithOne,
  },
});
