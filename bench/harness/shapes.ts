/** Shapes of well-known models, as in their config.json: with random weights they run as fast as the real ones. */
import { ArgumentError } from '../../lib/errors.ts';

export interface ModelShape {
  readonly model_type: 'llama';
  readonly vocab_size: number;
  readonly hidden_size: number;
  readonly intermediate_size: number;
  readonly num_hidden_layers: number;
  readonly num_attention_heads: number;
  readonly num_key_value_heads: number;
  readonly head_dim?: number;
  readonly max_position_embeddings: number;
  readonly rope_theta: number;
  readonly rms_norm_eps: number;
  readonly tie_word_embeddings: boolean;
}

const smollm2 = { model_type: 'llama', vocab_size: 49152, tie_word_embeddings: true } as const;
const smollm2Rest = { max_position_embeddings: 8192, rope_theta: 100000, rms_norm_eps: 1e-5 };

export const kShapes = {
  'smollm2-135m': {
    ...smollm2,
    ...{ hidden_size: 576, intermediate_size: 1536, num_hidden_layers: 30 },
    ...{ num_attention_heads: 9, num_key_value_heads: 3 },
    ...smollm2Rest,
  },
  'smollm2-360m': {
    ...smollm2,
    ...{ hidden_size: 960, intermediate_size: 2560, num_hidden_layers: 32 },
    ...{ num_attention_heads: 15, num_key_value_heads: 5 },
    ...smollm2Rest,
  },
  'tinyllama-1.1b': {
    ...{ model_type: 'llama', vocab_size: 32000, tie_word_embeddings: false },
    ...{ hidden_size: 2048, intermediate_size: 5632, num_hidden_layers: 22 },
    ...{ num_attention_heads: 32, num_key_value_heads: 4 },
    ...{ max_position_embeddings: 2048, rope_theta: 10000, rms_norm_eps: 1e-5 },
  },
  'llama-7b': {
    ...{ model_type: 'llama', vocab_size: 32000, tie_word_embeddings: false },
    ...{ hidden_size: 4096, intermediate_size: 11008, num_hidden_layers: 32 },
    ...{ num_attention_heads: 32, num_key_value_heads: 32 },
    ...{ max_position_embeddings: 4096, rope_theta: 10000, rms_norm_eps: 1e-5 },
  },
  /** A shape to try the benchmark itself; its figures mean nothing. */
  tiny: {
    ...{ model_type: 'llama', vocab_size: 512, tie_word_embeddings: true },
    ...{ hidden_size: 64, intermediate_size: 160, num_hidden_layers: 2 },
    ...{ num_attention_heads: 4, num_key_value_heads: 2 },
    ...{ max_position_embeddings: 2048, rope_theta: 10000, rms_norm_eps: 1e-5 },
  },
} as const satisfies Record<string, ModelShape>;

/** all-MiniLM-L6-v2's configuration. */
export const kMiniLm = {
  ...{ model_type: 'bert', vocab_size: 30522, hidden_size: 384, intermediate_size: 1536 },
  ...{ num_hidden_layers: 6, num_attention_heads: 12, hidden_act: 'gelu' },
  ...{ max_position_embeddings: 512, type_vocab_size: 2, layer_norm_eps: 1e-12 },
} as const;

/** A tiny configuration to try the encoder's row. */
export const kTinyBert = {
  ...kMiniLm,
  ...{ vocab_size: 512, hidden_size: 64, intermediate_size: 160 },
  ...{ num_hidden_layers: 2, num_attention_heads: 4 },
} as const;

export type ShapeName = keyof typeof kShapes;
export const kShapeNames = Object.keys(kShapes) as ShapeName[];

/** The shape of a name. @throws ArgumentError that lists the known shapes */
export function shapeNamed(name: string): ModelShape {
  if (!Object.hasOwn(kShapes, name)) {
    throw new ArgumentError(`shape must be one of ${kShapeNames.join(', ')}, got "${name}"`);
  }
  return kShapes[name as ShapeName];
}

/** The number of weights of a model of this shape. */
export function weightCount(shape: ModelShape): number {
  const { c, f, layers, v, heads, keyValueHeads, d } = sizesOf(shape);
  const layer = 2 * c * heads * d + 2 * c * keyValueHeads * d + 3 * c * f + 2 * c;
  return layers * layer + (shape.tie_word_embeddings ? 1 : 2) * v * c + c;
}

/** Sizes by the letters of the documentation: C hidden, F mlp, L layers, V vocabulary, H heads, D head size. */
export interface Sizes {
  readonly c: number;
  readonly f: number;
  readonly layers: number;
  readonly v: number;
  readonly heads: number;
  readonly keyValueHeads: number;
  readonly d: number;
  /** Whether every token attends to every other one and the mlp has no gate. Default false. */
  readonly encoder?: boolean;
}

export function sizesOf(shape: ModelShape): Sizes {
  const heads = shape.num_attention_heads;
  return {
    c: shape.hidden_size,
    f: shape.intermediate_size,
    layers: shape.num_hidden_layers,
    v: shape.vocab_size,
    heads,
    keyValueHeads: shape.num_key_value_heads,
    d: shape.head_dim ?? shape.hidden_size / heads,
  };
}

/** Sizes of a bert with so many labels: the head's outputs, which count as its vocabulary here. */
export function encoderSizes(
  shape: Pick<ModelShape, 'hidden_size' | 'intermediate_size' | 'num_hidden_layers'> & {
    readonly num_attention_heads: number;
  },
  labels: number,
): Sizes {
  const heads = shape.num_attention_heads;
  return {
    ...{ c: shape.hidden_size, f: shape.intermediate_size, layers: shape.num_hidden_layers },
    ...{ v: labels, heads, keyValueHeads: heads, d: shape.hidden_size / heads, encoder: true },
  };
}
