/**
 * Facts about the families of decoders that their golden checkpoints do not contain: the meaning of their configurations, and
 * their GGUF files. There is one entry per checkpoint, under its name in test/fixtures/architectures.
 */
import type { DecoderConfig } from '../../lib/models/index.ts';
import {
  type Conversion,
  decoder,
  type Json,
  kDecoderBlock,
  kDecoderTop,
  kSandwichBlock,
  llama,
  ropeOf,
  thetaOf,
  transposed,
  withOne,
} from './gguf_conversions.ts';

type Part<T> = T extends object ? { readonly [K in keyof T]?: Part<T[K]> } : T;
type Code = 'ERR_FORMAT' | 'ERR_UNSUPPORTED';

interface DecoderFacts {
  /**
   * Whether its RMSNorm rounds to the model's dtype before it multiplies by its weight, as in modeling_<type>.py; null without an
   * RMSNorm. No other test checks it: f32 and f64 do not round, and the difference is within the tolerance of bf16.
   */
  readonly roundsBeforeWeight: boolean | null;
  /** Changes of the golden configuration (undefined removes a key), with the configuration that they are read as. */
  readonly reads?: readonly (readonly [what: string, change: Json, config: Part<DecoderConfig>])[];
  /** Changes that are refused, with message and code of the error. */
  readonly refusals?: readonly (readonly [change: Json, message: RegExp, code: Code])[];
  /** The conversion to GGUF, as in llama.cpp's converter; absent where llama.cpp does not have the architecture. */
  readonly gguf?: Conversion;
}

/** Layers with attention windows of these widths; 0 for none. */
const windows = (...widths: number[]): Part<DecoderConfig> => ({
  layers: widths.map((window) => ({ window })),
});
const kTooMany: [Json, RegExp, Code] = [
  { num_hidden_layers: 2 ** 40, layer_types: undefined },
  /num_hidden_layers: .*4096 \(the file has 1099511627776\)/,
  'ERR_FORMAT',
];

export const kDecoders: Readonly<Record<string, DecoderFacts>> = {
  'llama-tied': { roundsBeforeWeight: true, refusals: [kTooMany] },
  'llama-untied-gqa': { roundsBeforeWeight: true, gguf: llama },
  'llama-biases': { roundsBeforeWeight: true, gguf: llama },
  mistral: {
    roundsBeforeWeight: true,
    reads: [
      ['a window of 4096 where left out', { sliding_window: undefined }, windows(4096, 4096)],
      ['no window for null', { sliding_window: null }, windows(0, 0)],
    ],
    refusals: [
      [{ hidden_act: 'gelu' }, /hidden_act "gelu" is not supported/, 'ERR_UNSUPPORTED'],
      [{ num_local_experts: 8 }, /num_local_experts is not understood/, 'ERR_UNSUPPORTED'],
    ],
    gguf: { ...llama, unsaid: { sliding_window: null } },
  },
  gemma: {
    roundsBeforeWeight: false,
    refusals: [
      [{ hidden_activation: 'gelu' }, /hidden_activation "gelu"/, 'ERR_UNSUPPORTED'],
      [
        { use_bidirectional_attention: true },
        /use_bidirectional_attention true/,
        'ERR_UNSUPPORTED',
      ],
    ],
    gguf: { ...decoder, architecture: 'gemma', metadata: () => ({}), change: withOne },
  },
  gemma2: {
    roundsBeforeWeight: false,
    reads: [
      ['windows in every other layer', { layer_types: undefined }, windows(6, 0)],
      [
        'windows by layer_types',
        { layer_types: ['full_attention', 'sliding_attention'] },
        windows(0, 6),
      ],
      [
        'soft-caps of its own where left out',
        { attn_logit_softcapping: undefined, final_logit_softcapping: undefined },
        { attentionSoftcap: 50, headSoftcap: 30 },
      ],
      [
        'no soft-caps for null',
        { attn_logit_softcapping: null, final_logit_softcapping: null },
        { attentionSoftcap: 0, headSoftcap: 0 },
      ],
    ],
    refusals: [
      [
        { layer_types: ['full_attention'] },
        /layer_types must have one entry for each of the 2 layers, got 1; correct/,
        'ERR_FORMAT',
      ],
      [{ final_logit_softcapping: -1 }, /final_logit_softcapping/, 'ERR_FORMAT'],
    ],
    gguf: {
      architecture: 'gemma2',
      top: kDecoderTop,
      block: kSandwichBlock,
      metadata: (config) => ({
        attn_logit_softcapping: { f32: config.attn_logit_softcapping as number },
        final_logit_softcapping: { f32: config.final_logit_softcapping as number },
        'attention.sliding_window': config.sliding_window as number,
      }),
      change: withOne,
      unsaid: { query_pre_attn_scalar: 16 },
    },
  },
  'gemma3-text': {
    roundsBeforeWeight: false,
    reads: [
      [
        'windows by its pattern',
        { layer_types: undefined, _sliding_window_pattern: 2 },
        windows(6, 0, 6),
      ],
    ],
    refusals: [kTooMany],
    gguf: {
      architecture: 'gemma3',
      top: kDecoderTop,
      block: kSandwichBlock,
      metadata: (config) => ({
        'attention.sliding_window': config.sliding_window as number,
        'attention.sliding_window_pattern': 3,
        'rope.freq_base': { f32: (ropeOf(config).full_attention as Json).rope_theta as number },
        'rope.scaling.type': 'linear',
        'rope.scaling.factor': { f32: (ropeOf(config).full_attention as Json).factor as number },
      }),
      change: withOne,
      unsaid: { query_pre_attn_scalar: 12, layer_types: null, _sliding_window_pattern: 3 },
    },
  },
  qwen2: {
    roundsBeforeWeight: true,
    reads: [
      [
        'no window unless switched on',
        { sliding_window: 4, max_window_layers: 0, layer_types: undefined },
        windows(0, 0),
      ],
      [
        'windows from max_window_layers on',
        {
          ...{ sliding_window: 4, use_sliding_window: true },
          ...{ max_window_layers: 1, layer_types: undefined },
        },
        windows(0, 4),
      ],
    ],
    refusals: [[{ use_mrope: true }, /use_mrope true/, 'ERR_UNSUPPORTED']],
    gguf: { ...decoder, architecture: 'qwen2' },
  },
  qwen3: {
    roundsBeforeWeight: true,
    refusals: [[{ layer_types: ['linear_attention'] }, /layer_types/, 'ERR_FORMAT']],
    gguf: { ...decoder, architecture: 'qwen3' },
  },
  phi3: {
    roundsBeforeWeight: true,
    reads: [['windows in every layer', { sliding_window: 5 }, windows(5, 5)]],
    refusals: [
      [
        { rope_parameters: { rope_type: 'longrope' } },
        /rope_type "longrope" is not supported/,
        'ERR_UNSUPPORTED',
      ],
      [{ resid_pdrop: 0.1 }, /resid_pdrop 0\.1/, 'ERR_UNSUPPORTED'],
      [
        { rope_parameters: { rope_type: 'default', partial_rotary_factor: 0.25 } },
        /rotates 3 of a head's 12 channels/,
        'ERR_FORMAT',
      ],
    ],
    gguf: {
      architecture: 'phi3',
      top: kDecoderTop,
      block: { ...kDecoderBlock, 'self_attn.qkv_proj': 'attn_qkv', 'mlp.gate_up_proj': 'ffn_up' },
      metadata: (config) => ({
        ...thetaOf(config),
        'rope.dimension_count': 6,
        'rope.scaling.original_context_length': config.original_max_position_embeddings as number,
        'attention.sliding_window': 0,
      }),
    },
  },
  olmo2: {
    roundsBeforeWeight: false,
    refusals: [[{ partial_rotary_factor: 0.4 }, /partial_rotary_factor 0\.4/, 'ERR_UNSUPPORTED']],
    gguf: {
      ...decoder,
      architecture: 'olmo2',
      block: {
        ...kDecoderBlock,
        post_attention_layernorm: 'post_attention_norm',
        post_feedforward_layernorm: 'post_ffw_norm',
      },
    },
  },
  gpt2: {
    roundsBeforeWeight: null,
    refusals: [
      [{ n_layer: 4097 }, /n_layer: .*4096 \(the file has 4097\)/, 'ERR_FORMAT'],
      [{ n_head: 3 }, /n_embd 40 must be a multiple of n_head 3; correct/, 'ERR_FORMAT'],
      [{ activation_function: 'mish' }, /activation_function "mish"/, 'ERR_UNSUPPORTED'],
      [{ add_cross_attention: true }, /add_cross_attention true/, 'ERR_UNSUPPORTED'],
    ],
    gguf: {
      architecture: 'gpt2',
      top: {
        'transformer.wte': 'token_embd',
        'transformer.wpe': 'position_embd',
        'transformer.ln_f': 'output_norm',
      },
      block: {
        ln_1: 'attn_norm',
        'attn.c_attn': 'attn_qkv',
        'attn.c_proj': 'attn_output',
        ln_2: 'ffn_norm',
        'mlp.c_fc': 'ffn_up',
        'mlp.c_proj': 'ffn_down',
      },
      metadata: () => ({}),
      change: (hf, array) => (/\.c_\w+\.weight$/.test(hf) ? transposed(array) : array),
    },
  },
};
