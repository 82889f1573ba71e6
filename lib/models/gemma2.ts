/** Gemma 2: norms before and after each branch, soft-capped scores and logits, sliding-window attention in every other layer. */
import { z } from 'zod';
import type { RMSNorm } from '../nn/index.ts';
import { type DecoderInputs, SelfAttention } from './attention.ts';
import { attentionOf, type DecoderConfig, type MakeLayer } from './decoder.ts';
import { kWindowKeys, type ReadOptions, slidingLayers } from './decoder_config.ts';
import { decoderFamily } from './family.ts';
import { gemmaJson, readGemma, storedWithOne } from './gemma.ts';
import { type GgufKeys, type GgufNames, kDecoderNames } from './gguf.ts';
import { type Branch, Layer } from './layers.ts';
import { GatedMlp } from './mlp.ts';
import type { WeightLoader } from './weights.ts';

/** The layer of Gemma 2 and 3, which has four norms. */
export class SandwichLayer extends Layer<DecoderInputs> {
  readonly input_layernorm: RMSNorm;
  readonly self_attn: SelfAttention;
  readonly post_attention_layernorm: RMSNorm;
  readonly pre_feedforward_layernorm: RMSNorm;
  readonly mlp: GatedMlp;
  readonly post_feedforward_layernorm: RMSNorm;
  readonly #branches: readonly Branch<DecoderInputs>[];

  constructor(config: DecoderConfig, weights: WeightLoader, i: number) {
    super();
    const norm = (name: string): RMSNorm => weights.rmsNorm(name, config.hiddenSize, config.norm);
    this.input_layernorm = norm('input_layernorm');
    this.self_attn = new SelfAttention(attentionOf(config, i), weights.at('self_attn'));
    this.post_attention_layernorm = norm('post_attention_layernorm');
    this.pre_feedforward_layernorm = norm('pre_feedforward_layernorm');
    this.mlp = new GatedMlp(config, weights.at('mlp'));
    this.post_feedforward_layernorm = norm('post_feedforward_layernorm');
    this.#branches = [
      {
        preNorm: this.input_layernorm,
        postNorm: null,
        attention: (x, inputs) => this.self_attn.forward(x, inputs),
        forward: (attended) =>
          this.post_attention_layernorm.forward(this.self_attn.o_proj.forward(attended)),
      },
      {
        preNorm: this.pre_feedforward_layernorm,
        postNorm: null,
        attention: null,
        forward: (x) => this.post_feedforward_layernorm.forward(this.mlp.forward(x)),
      },
    ];
  }

  branches(): readonly Branch<DecoderInputs>[] {
    return this.#branches;
  }
}

export const makeSandwichLayer: MakeLayer = (config, weights, i) =>
  new SandwichLayer(config, weights, i);

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
    ignoredTensors: [],
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
