// Models with random weights, created from a configuration.
import { describe, expect, it } from 'vitest';
import { ArgumentError, FormatError, UnsupportedError } from '../../lib/errors.ts';
import {
  AutoModelForCausalLM,
  AutoModelForSequenceClassification,
  type Model,
} from '../../lib/models/index.ts';

const kConfig = {
  model_type: 'llama',
  ...{ vocab_size: 40, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2 },
  ...{ num_attention_heads: 4, num_key_value_heads: 2, attention_bias: true },
};

async function values(options: Parameters<typeof AutoModelForCausalLM.fromConfig>[1]) {
  using model = await AutoModelForCausalLM.fromConfig(kConfig, options);
  const all: Record<string, Float32Array> = {};
  for (const [name, tensor] of model.namedParameters()) {
    all[name] = (await tensor.data()) as Float32Array;
  }
  return all;
}

describe('fromConfig', () => {
  it('creates every weight: matrices are normal, norms 1, biases 0', async () => {
    const all = await values({ seed: 3 });
    expect(Object.keys(all)).toHaveLength(1 + 2 * (2 + 7 + 4) + 1 + 1);
    expect(new Set(all['model.norm.weight'])).toEqual(new Set([1]));
    expect(new Set(all['model.layers.0.self_attn.q_proj.bias'])).toEqual(new Set([0]));
    const matrix = all['model.layers.1.mlp.up_proj.weight'] as Float32Array;
    const variance = matrix.reduce((sum, x) => sum + x * x, 0) / matrix.length;
    expect(Math.sqrt(variance)).toBeGreaterThan(0.017);
    expect(Math.sqrt(variance)).toBeLessThan(0.023);
  });

  it('is determined by the seed, and differs between seeds and tensors', async () => {
    const [a, b, c] = [
      await values({ seed: 3 }),
      await values({ seed: 3 }),
      await values({ seed: 4 }),
    ];
    expect(a).toEqual(b);
    const name = 'model.layers.0.mlp.up_proj.weight';
    expect(a[name]).not.toEqual(c[name]);
    expect(a[name]).not.toEqual(a['model.layers.1.mlp.up_proj.weight']);
  });

  it('runs, in bf16 too, with the head tied where the configuration says so', async () => {
    const config = { ...kConfig, tie_word_embeddings: true, initializer_range: 0.1 };
    using model = await AutoModelForCausalLM.fromConfig(config, { dtype: 'bf16' });
    const batch = {
      inputIds: Int32Array.of(1, 2, 3),
      positions: Int32Array.of(0, 1, 2),
      cuSeqlens: Int32Array.of(0, 3),
    };
    using hidden = model.forward(batch);
    expect(hidden.shape).toEqual([3, 16]);
    expect((await hidden.data()).every(Number.isFinite)).toBe(true);
    expect([...model.namedParameters()].some(([name]) => name.startsWith('lm_head'))).toBe(false);
  });

  it('refuses a configuration as fromPretrained does', async () => {
    const load = (config: Record<string, unknown>) => AutoModelForCausalLM.fromConfig(config);
    await expect(load({})).rejects.toThrow(UnsupportedError);
    await expect(load({ ...kConfig, hidden_size: undefined })).rejects.toThrow(FormatError);
    await expect(load({ ...kConfig, novel_key: 1 })).rejects.toThrow(/novel_key/);
  });
});

describe('fromConfig of a classifier', () => {
  const kBert = {
    ...{ model_type: 'bert', vocab_size: 40, hidden_size: 16, intermediate_size: 24 },
    ...{ num_hidden_layers: 2, num_attention_heads: 4, hidden_act: 'gelu' },
    ...{ max_position_embeddings: 8, type_vocab_size: 2 },
  };
  const load = AutoModelForSequenceClassification.fromConfig;

  it('creates trunk and head from the seed, and lists all of them as new', async () => {
    using model = await load(kBert, { numLabels: 3, seed: 5 });
    using same = await load(kBert, { numLabels: 3, seed: 5 });
    using other = await load(kBert, { numLabels: 3, seed: 6 });
    const head = (from: Model) => new Map(from.namedParameters()).get('classifier.weight')?.data();
    const [a, b, c] = await Promise.all([model, same, other].map(head));
    expect(a).toEqual(b);
    expect(a).not.toEqual(c);
    expect(a).toHaveLength(3 * 16);
    const names = Array.from(model.namedParameters(), ([name]) => name);
    expect([...model.newlyInitialized].sort()).toEqual(names.sort());
  });

  it('runs, in bf16 too', async () => {
    using model = await load(kBert, { numLabels: 2, dtype: 'bf16' });
    using outputs = model.outputs({
      inputIds: Int32Array.of(1, 2, 3, 4),
      positions: Int32Array.of(0, 1, 2, 0),
      cuSeqlens: Int32Array.of(0, 3, 4),
    });
    expect(outputs.shape).toEqual([2, 2]);
    expect((await outputs.data()).every(Number.isFinite)).toBe(true);
  });

  it('refuses a configuration as fromPretrained does', async () => {
    await expect(load({})).rejects.toThrow(UnsupportedError);
    await expect(load({ ...kBert, num_attention_heads: 5 })).rejects.toThrow(FormatError);
    await expect(load({ ...kBert, novel_key: 1 })).rejects.toThrow(/novel_key/);
    await expect(load(kBert, { numLabels: 0 })).rejects.toThrow(ArgumentError);
  });
});
