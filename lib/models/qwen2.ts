/** Qwen2 and Qwen2.5: biases on q, k and v; a window in the upper layers where it is switched on. */
import { z } from 'zod';
import { refuseValues } from './config_keys.ts';
import { type DecoderConfig, makePreNormLayer } from './decoder.ts';
import {
  type DecoderDefaults,
  flag,
  kWindowKeys,
  type ReadOptions,
  readDecoder,
  slidingLayers,
} from './decoder_config.ts';
import { decoderFamily } from './family.ts';
import { decoderJson, type GgufTable, kDecoderNames } from './gguf.ts';

const kKeys = {
  ...kWindowKeys,
  use_sliding_window: flag,
  max_window_layers: z.int().nonnegative().nullish(),
  use_mrope: flag,
  attention_bias: flag,
};

const kDefaults = {
  rmsNormEps: 1e-6,
  ropeTheta: 10_000,
  tied: false,
  maxPositions: 32_768,
  numKeyValueHeads: 32,
};

/** Reads the configuration of Qwen2 or Qwen3; the caller adds the biases. */
export function qwenConfig(
  json: Record<string, unknown>,
  options: ReadOptions,
  defaults: Partial<DecoderDefaults> = {},
): { config: DecoderConfig; attentionBias: boolean | null } {
  const { config, keys } = readDecoder(json, options, {
    extra: kKeys,
    defaults: { ...kDefaults, ...defaults },
  });
  refuseValues(options.path, { use_mrope: keys.use_mrope || null });
  const { sliding_window = 4096, max_window_layers = 28, layer_types: layerTypes } = keys;
  const layers = slidingLayers(config, {
    layerTypes,
    isSliding: (layer) => layer >= (max_window_layers ?? 0),
    // The width stands in files that do not use it.
    window: keys.use_sliding_window ? (sliding_window ?? 0) : 0,
    path: options.path,
  });
  return { config: { ...config, layers }, attentionBias: keys.attention_bias ?? null };
}

function qwen2Config(json: Record<string, unknown>, options: ReadOptions): DecoderConfig {
  const { config, attentionBias } = qwenConfig(json, options);
  refuseValues(options.path, { attention_bias: attentionBias });
  return { ...config, qkvBias: true };
}

/** The table of an architecture of Qwen's. */
export function qwenGguf(architecture: string): GgufTable {
  return {
    architecture,
    names: kDecoderNames,
    configJson: (keys) => ({ ...decoderJson(keys), hidden_act: 'silu', use_sliding_window: false }),
  };
}

export const qwen2 = decoderFamily({
  modelType: 'qwen2',
  architecture: 'Qwen2ForCausalLM',
  features: 'Qwen2 and 2.5: biases on q, k, v; windows in the upper layers',
  makeLayer: makePreNormLayer,
  configure: qwen2Config,
  gguf: qwenGguf('qwen2'),
});
