// What the configurations of the families mean where keys are left out, null or out of the ordinary, and what is refused.
import { describe, expect, it } from 'vitest';
import {
  AutoModelForCausalLM,
  type DecoderConfig,
  type DecoderLM,
} from '../../lib/models/index.ts';
import { goldenConfig } from './golden.ts';

type Json = Record<string, unknown>;

/** The golden configuration with changes; a key changed to undefined is left out. */
const changed = (name: string, change: Json): Json =>
  Object.fromEntries(
    Object.entries({ ...goldenConfig(name), ...change }).filter(([, value]) => value !== undefined),
  );

async function configOf(name: string, change: Json): Promise<DecoderConfig> {
  const model = await AutoModelForCausalLM.fromConfig(changed(name, change));
  model.dispose();
  return (model as DecoderLM).config;
}

const windows = ({ layers }: DecoderConfig): number[] => layers.map(({ window }) => window);

describe('windows', () => {
  it.each<[string, string, Json, number[]]>([
    ['mistral: 4096 where left out', 'mistral', { sliding_window: undefined }, [4096, 4096]],
    ['mistral: none for null', 'mistral', { sliding_window: null }, [0, 0]],
    [
      'qwen2: none unless switched on',
      'qwen2',
      { sliding_window: 4, max_window_layers: 0, layer_types: undefined },
      [0, 0],
    ],
    [
      'qwen2: from max_window_layers on',
      'qwen2',
      { sliding_window: 4, use_sliding_window: true, max_window_layers: 1, layer_types: undefined },
      [0, 4],
    ],
    ['gemma2: every other layer', 'gemma2', { layer_types: undefined }, [6, 0]],
    [
      'gemma2: by layer_types',
      'gemma2',
      { layer_types: ['full_attention', 'sliding_attention'] },
      [0, 6],
    ],
    [
      'gemma3: by its pattern',
      'gemma3-text',
      { layer_types: undefined, _sliding_window_pattern: 2 },
      [6, 0, 6],
    ],
    ['phi3: in every layer', 'phi3', { sliding_window: 5 }, [5, 5]],
  ])('%s', async (_, name, change, wanted) => {
    expect(windows(await configOf(name, change))).toEqual(wanted);
  });
});

// The order in which transformers' modeling files round and multiply. Nothing else checks it: f32 and f64 do not round, and it
// is lost in the band that bf16 is allowed.
describe('norms', () => {
  it.each([
    ...['llama-tied', 'mistral', 'phi3', 'qwen2', 'qwen3'].map((name) => [name, true] as const),
    ...['gemma', 'gemma2', 'gemma3-text', 'olmo2'].map((name) => [name, false] as const),
  ])('of %s round before they multiply by the weight: %s', async (name, before) => {
    expect((await configOf(name, {})).norm.castBeforeWeight).toBe(before);
  });
});

describe('soft-caps', () => {
  it("are gemma2's own where left out, none for null", async () => {
    const caps = async (value: unknown): Promise<number[]> => {
      const change = { attn_logit_softcapping: value, final_logit_softcapping: value };
      const { attentionSoftcap, headSoftcap } = await configOf('gemma2', change);
      return [attentionSoftcap, headSoftcap];
    };
    expect(await caps(undefined)).toEqual([50, 30]);
    expect(await caps(null)).toEqual([0, 0]);
  });
});

describe('refusals', () => {
  it.each<[string, Json, RegExp, string]>([
    ['mistral', { hidden_act: 'gelu' }, /hidden_act "gelu" is not supported/, 'ERR_UNSUPPORTED'],
    ['mistral', { num_local_experts: 8 }, /num_local_experts is not understood/, 'ERR_UNSUPPORTED'],
    ['gemma', { hidden_activation: 'gelu' }, /hidden_activation "gelu"/, 'ERR_UNSUPPORTED'],
    [
      'gemma',
      { use_bidirectional_attention: true },
      /use_bidirectional_attention true/,
      'ERR_UNSUPPORTED',
    ],
    [
      'gemma2',
      { layer_types: ['full_attention'] },
      /layer_types has 1 entries for 2 layers/,
      'ERR_FORMAT',
    ],
    ['gemma2', { final_logit_softcapping: -1 }, /final_logit_softcapping/, 'ERR_FORMAT'],
    ['qwen2', { use_mrope: true }, /use_mrope true/, 'ERR_UNSUPPORTED'],
    ['qwen3', { layer_types: ['linear_attention'] }, /layer_types/, 'ERR_FORMAT'],
    ['olmo2', { partial_rotary_factor: 0.4 }, /partial_rotary_factor 0\.4/, 'ERR_UNSUPPORTED'],
    [
      'phi3',
      { rope_parameters: { rope_type: 'longrope' } },
      /rope_type "longrope" is not supported/,
      'ERR_UNSUPPORTED',
    ],
    ['phi3', { resid_pdrop: 0.1 }, /resid_pdrop 0\.1/, 'ERR_UNSUPPORTED'],
    [
      'phi3',
      { rope_parameters: { rope_type: 'default', partial_rotary_factor: 0.25 } },
      /turns 3 of a head's 12 channels/,
      'ERR_FORMAT',
    ],
    ['gpt2', { n_head: 3 }, /n_head 3 does not divide n_embd 40/, 'ERR_FORMAT'],
    ['gpt2', { activation_function: 'mish' }, /activation_function "mish"/, 'ERR_UNSUPPORTED'],
    ['gpt2', { add_cross_attention: true }, /add_cross_attention true/, 'ERR_UNSUPPORTED'],
  ])('%s with %o', async (name, change, message, code) => {
    const error = await AutoModelForCausalLM.fromConfig(changed(name, change)).then(
      () => null,
      (reason: Error & { code: string }) => reason,
    );
    expect(error?.message).toMatch(message);
    expect(error?.code).toBe(code);
  });
});
