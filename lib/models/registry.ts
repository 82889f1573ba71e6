/** The architectures that can be loaded: one row a model_type (general.architecture in GGUF files). */
import { UnsupportedError } from '../errors.ts';
import type { GgufFile } from '../io/index.ts';
import type { CausalLM } from './causal_lm.ts';
import type { ConfigOptions } from './config_keys.ts';
import { GgufWeights, ggufLlamaConfig, ggufRopeFactors } from './gguf_llama.ts';
import { LlamaForCausalLM } from './llama.ts';
import { type LlamaConfig, llamaConfig } from './llama_config.ts';
import type { ModelOrigin } from './model.ts';
import type { WeightLoader, WeightSource } from './weights.ts';

export interface MakeInput {
  readonly weights: WeightLoader;
  readonly origin: ModelOrigin;
  /** Whether the head is the embedding: the configuration's word, corrected by what the file holds. */
  readonly tied: boolean;
}

/** A configuration that has been read and understood. */
interface Understood {
  /** By the configuration. */
  readonly tied: boolean;
  readonly make: (input: MakeInput) => CausalLM;
}

export interface OpenedModel extends Understood {
  readonly source: WeightSource;
}

interface ModelKind {
  /** @throws FormatError, UnsupportedError for a configuration that is wrong or not understood */
  fromJson(json: Record<string, unknown>, options: ConfigOptions & { path: string }): Understood;
  fromGguf(file: GgufFile, options: ConfigOptions): Promise<OpenedModel>;
}

const llama: ModelKind = {
  fromJson: (json, options) => understood(llamaConfig(json, options)),
  async fromGguf(file, options) {
    const config = ggufLlamaConfig(file, await ggufRopeFactors(file), options);
    return { ...understood(config), source: new GgufWeights(file, config) };
  },
};

function understood(config: LlamaConfig): Understood {
  return {
    tied: config.tied,
    make: ({ weights, origin, tied }) => new LlamaForCausalLM({ ...config, tied }, weights, origin),
  };
}

const kModels: Readonly<Record<string, ModelKind>> = { llama };

/** @throws UnsupportedError naming the types that are known */
export function modelKind(type: string, path: string): ModelKind {
  const kind = Object.hasOwn(kModels, type) ? kModels[type] : undefined;
  if (kind !== undefined) return kind;
  const known = Object.keys(kModels).join(', ');
  throw new UnsupportedError(`${path}: model_type "${type}" is not supported (known: ${known})`);
}
