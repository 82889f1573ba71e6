/** The names and the layout that the weights of a model have in a GGUF file of its architecture. */
import { UnsupportedError } from '../errors.ts';
import { add } from '../ops/index.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import { DecoderLM } from './decoder.ts';
import { type GgufNames, type GgufTable, ggufName, interleavedRows } from './gguf.ts';
import { llama } from './llama.ts';
import type { Model } from './model.ts';
import { kFamilies } from './registry.ts';

/** The layout of a model's weights in a GGUF file. */
export interface GgufLayout {
  /** general.architecture. */
  readonly architecture: string;
  /** The name of a weight in the file, by its Hugging Face name; null where the architecture has none. */
  nameOf(hf: string): string | null;
  /** A tensor whose rows are those of a weight, such as B of a pair, with the rows in the file's order. The result is a new tensor. */
  rowsOf(hf: string, tensor: Tensor): Tensor;
  /** The values of a weight as the file holds them. The result is a new tensor. */
  valuesOf(hf: string, weight: Tensor): Tensor;
}

/** Families without an architecture of their own, with that as which llama.cpp holds their files. */
const kWrittenAs: Readonly<Record<string, GgufTable | null>> = { mistral: llama.gguf };

/**
 * The layout of a causal language model.
 * @throws UnsupportedError for a model of another task, or a family that has no GGUF files here
 */
export function ggufLayoutOf(model: Model): GgufLayout {
  const { modelType } = model;
  const table =
    kWrittenAs[modelType] ??
    kFamilies.find((family) => family.modelType === modelType)?.gguf ??
    null;
  if (model.taskType !== 'CAUSAL_LM' || table === null) {
    throw new UnsupportedError(
      `a ${modelType} model for ${model.taskType} has no GGUF form here; GGUF files are written for causal language models of: ` +
        `${[...kFamilies.flatMap(({ gguf, modelType: type }) => (gguf === null ? [] : [type])), ...Object.keys(kWrittenAs)].join(', ')}`,
    );
  }
  const names = table.names as GgufNames; // a function only for encoders and encoder-decoders
  const heads = headsOf(model);
  return {
    architecture: table.architecture,
    nameOf: (hf) => ggufName(hf, names),
    rowsOf: (hf, tensor) => {
      const { permutedHeads = 0 } = table.stored?.(hf, heads) ?? {};
      return scope(() =>
        noGrad(() =>
          permutedHeads === 0 ? tensor.detach() : interleavedRows(tensor, permutedHeads),
        ),
      );
    },
    valuesOf: (hf, weight) => {
      const { permutedHeads = 0, offset = 0 } = table.stored?.(hf, heads) ?? {};
      return scope(() =>
        noGrad(() => {
          const decoded = weight.encoding === null ? weight.detach() : weight.to(weight.dtype);
          const values = offset === 0 ? decoded : add(decoded, offset);
          return permutedHeads === 0 ? values : interleavedRows(values, permutedHeads);
        }),
      );
    },
  };
}

/** The numbers of heads under their keys in config.json, whose own numbers may be left out. */
function headsOf(model: Model): Readonly<Record<string, unknown>> {
  if (!(model instanceof DecoderLM)) return {};
  const { numHeads, numKeyValueHeads } = model.config;
  return { num_attention_heads: numHeads, num_key_value_heads: numKeyValueHeads };
}
