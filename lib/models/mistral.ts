/** Mistral 7B and what was built like it: Llama with a window in every layer. llama.cpp writes it as the llama architecture. */
import { type DecoderConfig, makePreNormLayer } from './decoder.ts';
import { kWindowKeys, type ReadOptions, readDecoder, slidingLayers } from './decoder_config.ts';
import { decoderFamily } from './family.ts';

const kDefaults = {
  rmsNormEps: 1e-6,
  ropeTheta: 10_000,
  tied: false,
  maxPositions: 131_072,
  numKeyValueHeads: 8,
};

function mistralConfig(json: Record<string, unknown>, options: ReadOptions): DecoderConfig {
  const { config, keys } = readDecoder(json, options, { extra: kWindowKeys, defaults: kDefaults });
  const { sliding_window = 4096, layer_types: layerTypes } = keys; // null: none
  const window = sliding_window ?? 0;
  const layers = slidingLayers(config, {
    layerTypes,
    isSliding: () => true,
    window,
    path: options.path,
  });
  return { ...config, layers };
}

export const mistral = decoderFamily({
  modelType: 'mistral',
  architecture: 'MistralForCausalLM',
  features: 'sliding window; its GGUF files have the llama architecture',
  makeLayer: makePreNormLayer,
  configure: mistralConfig,
  gguf: null,
});
