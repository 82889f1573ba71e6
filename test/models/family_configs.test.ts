// The configurations of the families: the meaning of keys that are absent, null or unusual, and refusals.
import { describe, expect, it } from 'vitest';
import { AutoModelForCausalLM, type DecoderLM } from '../../lib/models/index.ts';
import { classifierKind, kFamilies } from '../../lib/models/registry.ts';
import { t5Config } from '../../lib/models/t5_config.ts';
import { kDecoders } from '../support/decoder_families.ts';
import { goldenConfig } from '../support/golden_checkpoints.ts';

type Json = Record<string, unknown>;

/** The golden configuration with changes; a change to undefined removes the key. */
const changed = (name: string, change: Json): Json =>
  Object.fromEntries(
    Object.entries({ ...goldenConfig(name), ...change }).filter(([, value]) => value !== undefined),
  );

const decoders = Object.entries(kDecoders);

it.each(decoders.filter(([, { roundsBeforeWeight }]) => roundsBeforeWeight !== null))(
  'the configuration of %s determines when its norms round',
  async (name, { roundsBeforeWeight }) => {
    using model = await AutoModelForCausalLM.fromConfig(changed(name, {}));
    expect((model as DecoderLM).config.norm.castBeforeWeight).toBe(roundsBeforeWeight);
  },
);

describe.each(decoders)('the configuration of %s', (name, facts) => {
  const { reads = [], refusals = [] } = facts;
  const load = (change: Json) => AutoModelForCausalLM.fromConfig(changed(name, change));

  it.each(['constructor', 'toString', '__proto__'])('has no key %s', async (key) => {
    const json = JSON.parse(`{"${key}": 1}`) as Json;
    const whole = Object.fromEntries([
      ...Object.entries(changed(name, {})),
      ...Object.entries(json),
    ]);
    await expect(AutoModelForCausalLM.fromConfig(whole)).rejects.toThrow(
      `${key} is not understood and may change the mathematics`,
    );
  });

  it.each(reads)('is read as %s', async (_, change, config) => {
    using model = await load(change);
    expect((model as DecoderLM).config).toMatchObject(config);
  });

  it.each(refusals)('is refused with %o', async (change, message, code) => {
    const error = await load(change).then(
      () => null,
      (reason: Error & { code: string }) => reason,
    );
    expect(error?.message).toMatch(message);
    expect(error?.code).toBe(code);
  });
});

it('the table has every family of decoders', () => {
  const told = new Set(decoders.map(([name]) => goldenConfig(name).model_type));
  expect(kFamilies.map(({ modelType }) => modelType).filter((type) => !told.has(type))).toEqual([]);
});

describe('keys of published checkpoints that transformers does not read are ignored', () => {
  it.each<[string, Json]>([
    ['gpt2', { n_special: 0, predict_special_tokens: true, output_past: true }], // gpt2-medium
    ['gpt2', { _num_labels: 1 }], // distilgpt2
    ['llama-tied', { max_sequence_length: 2048 }], // huggyllama/llama-7b
  ])('of %s: %o', async (name, change) => {
    const model = await AutoModelForCausalLM.fromConfig(changed(name, change));
    expect(model.vocabSize).toBeGreaterThan(0);
    model.dispose();
  });
});

// Encoders and T5 are checked without weights.
const path = 'config.json';
const read = (name: string, change: Json, ignoreKeys: string[] = []): unknown => {
  const json = changed(name, change);
  const options = { path, ignoreKeys };
  return json.model_type === 't5'
    ? t5Config(json, options)
    : classifierKind(String(json.model_type), path).fromJson(json, options);
};

describe('refusals of encoders and t5', () => {
  const [unsupported, format] = ['ERR_UNSUPPORTED', 'ERR_FORMAT'];
  it.each<[string, Json, RegExp, string | undefined]>([
    ...['bert', 'roberta'].flatMap((name): [string, Json, RegExp, string | undefined][] => [
      [
        name,
        { position_embedding_type: 'relative_key' },
        /position_embedding_type "relative_key" is not supported/,
        unsupported,
      ],
      [name, { is_decoder: true }, /is_decoder true is not supported/, unsupported],
      [name, { hidden_act: 'mish' }, /hidden_act "mish" .*known: gelu, /, unsupported],
      [
        name,
        { num_attention_heads: 3 },
        /hidden_size 40 must be a multiple of num_attention_heads 3/,
        format,
      ],
      [name, { embedding_size: 20 }, /embedding_size is not understood/, unsupported],
      [name, { type_vocab_size: 0 }, /type_vocab_size: .*\(the file has 0\)/, format],
      [name, { vocab_size: undefined }, /vocab_size: .*\(the file does not have it\)/, format],
    ]),
    ...['-1', -1, 1.5].map((id): [string, Json, RegExp, string | undefined] => [
      'roberta',
      { pad_token_id: id },
      /pad_token_id must be a whole number, after which positions begin; correct/,
      format,
    ]),
    ['distilbert', { n_heads: 3 }, /dim 40 must be a multiple of n_heads 3/, format],
    ['distilbert', { activation: 'mish' }, /activation "mish" is not supported/, unsupported],
    ['distilbert', { hidden_size: 40 }, /hidden_size is not understood/, unsupported],
    ...[
      ...['bert', 'roberta', 'deberta-v2'].map((name) => [name, 'num_hidden_layers'] as const),
      ['distilbert', 'n_layers'] as const,
      ...['num_layers', 'num_decoder_layers'].map((key) => ['t5', key] as const),
    ].map(([name, key]): [string, Json, RegExp, string | undefined] => [
      name,
      { [key]: 2 ** 40 },
      new RegExp(`${key}: .*4096 \\(the file has 1099511627776\\)`),
      format,
    ]),
    ['distilbert', { n_layers: 0 }, /n_layers: .*\(the file has 0\)/, format],
    ['deberta-v2', { relative_attention: false }, /relative_attention false/, unsupported],
    ['deberta-v2', { relative_attention: undefined }, /relative_attention false/, unsupported],
    ['deberta-v2', { conv_kernel_size: 3 }, /conv_kernel_size 3 is not supported/, unsupported],
    ['deberta-v2', { embedding_size: 20 }, /embedding_size 20 is not supported/, unsupported],
    ['deberta-v2', { pooler_hidden_size: 20 }, /pooler_hidden_size 20/, unsupported],
    ['deberta-v2', { attention_head_size: 5 }, /attention_head_size 5/, unsupported],
    ['deberta-v2', { pos_att_type: 'c2p|p2p' }, /pos_att_type p2p is not/, unsupported],
    ['deberta-v2', { pos_att_type: ['c2c', 'p2c'] }, /pos_att_type c2c is not/, unsupported],
    ['deberta-v2', { hidden_act: 'mish' }, /hidden_act "mish"/, unsupported],
    ['deberta-v2', { pooler_hidden_act: 'mish' }, /pooler_hidden_act "mish"/, unsupported],
    [
      'deberta-v2',
      { num_attention_heads: 3 },
      /hidden_size 40 must be a multiple of num_attention_heads 3/,
      format,
    ],
    ['deberta-v2', { attention_bias: true }, /attention_bias is not understood/, unsupported],
    ['deberta-v2', { type_vocab_size: -1 }, /type_vocab_size: .*\(the file has -1\)/, format],
    ...['t5', 't5-v1.1'].flatMap((name): [string, Json, RegExp, string | undefined][] => [
      [name, { feed_forward_proj: 'mish' }, /feed_forward_proj "mish" is not/, unsupported],
      [name, { feed_forward_proj: 'gated-mish' }, /feed_forward_proj "mish" is not/, unsupported],
      [name, { feed_forward_proj: 'gelu-gated' }, /feed_forward_proj "gelu-gated"/, unsupported],
      [name, { feed_forward_proj: 'gated-gelu-x' }, /feed_forward_proj "gated-g/, unsupported],
      [name, { feed_forward_proj: 'gated' }, /feed_forward_proj "gated" is not/, unsupported],
      [
        name,
        { relative_attention_num_buckets: 3 },
        /relative_attention_num_buckets must be >= 4, got 3/,
        format,
      ],
      [name, { d_kv: undefined }, /d_kv: .*\(the file does not have it\)/, format],
      [name, { num_layers: 1.5 }, /num_layers: .*\(the file has 1\.5\)/, format],
      [name, { rope_theta: 1e4 }, /rope_theta is not understood/, unsupported],
    ]),
  ])('%s with %o', (name, change, message, code) => {
    let error: (Error & { code?: string }) | null = null;
    try {
      read(name, change);
    } catch (caught) {
      error = caught as Error;
    }
    expect(error?.message).toMatch(message);
    expect(error?.message).toMatch(/^config\.json: /);
    expect(error?.code).toBe(code);
  });

  it.each<[string, Json]>([
    ['bert', { position_embedding_type: 'absolute', is_decoder: false, hidden_act: 'gelu_new' }],
    ['roberta', { pad_token_id: undefined }],
    ['distilbert', { activation: 'relu', sinusoidal_pos_embds: true }],
    ['deberta-v2', { pos_att_type: 'P2C | c2p', norm_rel_ebd: 'Layer_Norm', conv_kernel_size: 0 }],
    ['deberta-v2', { embedding_size: 40, attention_head_size: 10, pooler_hidden_size: null }],
    ['t5', { relative_attention_num_buckets: 4, feed_forward_proj: 'gated-silu' }],
    // Keys of published checkpoints that transformers' classes do not read.
    [
      'bert', // bert-base-chinese
      {
        ...{ directionality: 'bidi', pooler_fc_size: 768, pooler_num_attention_heads: 12 },
        ...{ pooler_num_fc_layers: 3, pooler_size_per_head: 128 },
        pooler_type: 'first_token_transform',
      },
    ],
    ['roberta', { _num_labels: 3 }], // roberta-large-mnli
    ['distilbert', { output_past: true }], // distilbert-base-uncased-finetuned-sst-2-english
    ['t5', { output_past: true }], // t5-small
    [
      'bert', // cross-encoder/ms-marco-MiniLM-L-6-v2
      {
        sbert_ce_default_activation_function: 'torch.nn.modules.linear.Identity',
        sentence_transformers: { version: '4.1.0' },
      },
    ],
  ])('are none for %s with %o', (name, change) => {
    expect(() => read(name, change)).not.toThrow();
  });

  it('do not apply to a key that the caller ignores', () => {
    expect(() => read('bert', { embedding_size: 20 }, ['embedding_size'])).not.toThrow();
  });
});
