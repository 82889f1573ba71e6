/** Gemma 2: norms before and after each branch, soft-capped scores and logits, sliding-window attention in every other layer. */
import { z } from 'zod';
import { type DecoderConfig, makeSandwichLayer } from './decoder.ts';
import { kWindowKeys, type ReadOptions, slidingLayers } from './decoder_config.ts';
import { decoderFamily } from './family.ts';
import { gemmaJson, readGemma, storedWithOne } from './gemma.ts';
import { type GgufKeys, type GgufNames, kDecoderNames } from './gguf.ts';

const kSoftcap = z.number().positive().nullish();
/** Keys of Gemma 2 and 3. */
export const kGemma2Keys = {
  ...kWindowKeys,
  query_pre_attn_scalar: z.number().positive().nullish(),
  attn_logit_softcapping: kSoftcap,
  final_logit_softcapping: kSoftcap,
};

function gemma2Config(json: Record<string, unknown>, options: ReadOptions): DecoderConfig {
  const { config, keys } = readGemma(json, options, {
    extra: kGemma2Keys,
    defaults: {
      rmsNormEps: 1e-6,
      ropeTheta: 10_000,
      tied: true,
      maxPositions: 8192,
      headDim: 256,
      numKeyValueHeads: 4,
    },
  });
  // A missing key means the default, null means none.
  const { attn_logit_softcapping = 50, final_logit_softcapping = 30, sliding_window = 4096 } = keys;
  return {
    ...config,
    attentionScale: (keys.query_pre_attn_scalar ?? 256) ** -0.5,
    attentionSoftcap: attn_logit_softcapping ?? 0,
    headSoftcap: final_logit_softcapping ?? 0,
    layers: slidingLayers(config, {
      layerTypes: keys.layer_types,
      isSliding: (layer) => layer % 2 === 0,
      window: sliding_window ?? 0,
      path: options.path,
    }),
  };
}

/** Names of layers with four norms. */
export const kSandwichNames: GgufNames = {
  ...kDecoderNames,
  block: {
    ...kDecoderNames.block,
    post_attention_norm: 'post_attention_layernorm',
    ffn_norm: 'pre_feedforward_layernorm',
    post_ffw_norm: 'post_feedforward_layernorm',
  },
};

/**
 * query_pre_attn_scalar, which GGUF files lack: the head size, except in the 27B models, which are recognised by their number of
 * layers and have hidden size / number of heads.
 */
export function queryScalar(keys: GgufKeys, layersOf27B: number): number {
  const heads = keys.count('attention.head_count');
  const share = keys.count('embedding_length') / heads;
  if (keys.required('block_count') === layersOf27B) return share;
  return keys.number('attention.key_length') ?? share;
}

export const gemma2 = decoderFamily({
  modelType: 'gemma2',
  architecture: 'Gemma2ForCausalLM',
  features: 'Gemma 2: soft-caps on scores and logits, windows in every other layer',
  makeLayer: makeSandwichLayer,
  configure: gemma2Config,
  gguf: {
    architecture: 'gemma2',
    names: kSandwichNames,
    keys: ['attn_logit_softcapping', 'final_logit_softcapping', 'attention.sliding_window'],
    configJson: (keys) => ({
      ...gemmaJson(keys),
      query_pre_attn_scalar: queryScalar(keys, 46),
      attn_logit_softcapping: keys.number('attn_logit_softcapping') ?? 50,
      final_logit_softcapping: keys.number('final_logit_softcapping') ?? 30,
      sliding_window: keys.number('attention.sliding_window') ?? 4096,
    }),
    stored: storedWithOne,
  },
});
