/** Qwen3 (dense): Qwen2 without its biases, with an RMSNorm of each head of q and k. */
import { type DecoderConfig, makePreNormLayer } from './decoder.ts';
import type { ReadOptions } from './decoder_config.ts';
import { decoderFamily } from './family.ts';
import { qwenConfig, qwenGguf } from './qwen2.ts';

function qwen3Config(json: Record<string, unknown>, options: ReadOptions): DecoderConfig {
  const { config, attentionBias } = qwenConfig(json, options, { headDim: 128 });
  const bias = attentionBias ?? false;
  return { ...config, qkNorm: 'head', qkvBias: bias, outputBias: bias };
}

export const qwen3 = decoderFamily({
  modelType: 'qwen3',
  architecture: 'Qwen3ForCausalLM',
  features: 'dense models: norms of q and k, one per head',
  makeLayer: makePreNormLayer,
  configure: qwen3Config,
  gguf: qwenGguf('qwen3'),
});
