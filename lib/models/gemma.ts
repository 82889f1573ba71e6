/** Gemma 1, and what all Gemmas share: norms by 1 + weight, embeddings times sqrt(hidden), a tanh-approximated GELU gate. */
import type { z } from 'zod';
import { refuseValues } from './config_keys.ts';
import { type DecoderConfig, makePreNormLayer } from './decoder.ts';
import {
  type CommonKeys,
  type DecoderDefaults,
  flag,
  type ReadOptions,
  readDecoder,
  text,
} from './decoder_config.ts';
import { decoderFamily } from './family.ts';
import { decoderJson, type GgufKeys, type GgufTable, kDecoderNames } from './gguf.ts';

const kAct = 'gelu_pytorch_tanh';
const kKeys = { hidden_activation: text, attention_bias: flag, use_bidirectional_attention: flag };

/** @param extra keys of the generation */
export function readGemma<S extends z.ZodRawShape>(
  json: Record<string, unknown>,
  options: ReadOptions,
  { extra, defaults }: { extra: S; defaults: DecoderDefaults },
): { config: DecoderConfig; keys: CommonKeys & z.infer<z.ZodObject<S>> } {
  const { config, keys } = readDecoder(json, options, {
    extra: { ...kKeys, ...extra },
    defaults,
    hiddenAct: [kAct, 'gelu'], // "gelu" of old files means the approximation
  });
  const own = keys as z.infer<z.ZodObject<typeof kKeys>>;
  const activation = own.hidden_activation ?? kAct;
  refuseValues(options.path, {
    hidden_activation: activation === kAct ? null : activation,
    use_bidirectional_attention: own.use_bidirectional_attention || null,
  });
  const bias = own.attention_bias ?? false;
  return {
    config: {
      ...config,
      norm: { eps: config.norm.eps ?? 1e-6, weightOffset: 1, castBeforeWeight: false },
      activation: 'gelu_tanh',
      embeddingScale: Math.sqrt(config.hiddenSize),
      qkvBias: bias,
      outputBias: bias,
    },
    keys: keys as unknown as CommonKeys & z.infer<z.ZodObject<S>>,
  };
}

/** Gemma's norms are stored with the 1 that they add to their weights. */
export const storedWithOne: GgufTable['stored'] = (name) =>
  name.endsWith('norm.weight') ? { offset: 1 } : {};

/** Keys of config.json that all Gemmas have. */
export const gemmaJson = (keys: GgufKeys): Record<string, unknown> => ({
  ...decoderJson(keys),
  hidden_activation: kAct,
});

export const gemma = decoderFamily({
  modelType: 'gemma',
  architecture: 'GemmaForCausalLM',
  features: 'Gemma 1',
  makeLayer: makePreNormLayer,
  configure: (json, options) =>
    readGemma(json, options, {
      extra: {},
      defaults: {
        rmsNormEps: 1e-6,
        ropeTheta: 10_000,
        tied: true,
        maxPositions: 8192,
        headDim: 256,
        numKeyValueHeads: 16,
      },
    }).config,
  gguf: {
    architecture: 'gemma',
    names: kDecoderNames,
    configJson: gemmaJson,
    stored: storedWithOne,
  },
});
