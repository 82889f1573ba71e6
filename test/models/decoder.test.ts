// Settings of a decoder's configuration that no family of the registry uses.
import { describe, expect, it } from 'vitest';
import { makePreNormLayer } from '../../lib/models/decoder.ts';
import { readDecoder } from '../../lib/models/decoder_config.ts';
import { decoderFamily } from '../../lib/models/family.ts';
import { RandomWeights } from '../../lib/models/random_weights.ts';
import { WeightLoader } from '../../lib/models/weights.ts';
import { noGrad } from '../../lib/tensor.ts';
import { values } from '../support/compare.ts';

const kJson = {
  ...{ vocab_size: 20, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2 },
  ...{ num_attention_heads: 4, num_key_value_heads: 2 },
};
const kDefaults = { rmsNormEps: 1e-6, ropeTheta: 100, tied: true, maxPositions: 64 };

/** Hidden states of a Llama whose layer i has the rope ropes[i], for tokens at these positions. */
function statesOf(ropes: readonly (number | null)[], positions: readonly number[]): number[] {
  const family = decoderFamily({
    ...{ modelType: 'test', architecture: 'TestForCausalLM', features: '', gguf: null },
    makeLayer: makePreNormLayer,
    configure: (json, options) => {
      const { config } = readDecoder(json, options, { extra: {}, defaults: kDefaults });
      const layers = ropes.map((rope) => ({ window: 0, rope }));
      return { ...config, layers };
    },
  });
  const { causalLM, tied } = family.configure(kJson, { path: 'config.json' });
  const read = { dtype: 'f64', checkFinite: false, share: false } as const;
  const origin = { nameOrPath: 'random weights', folder: '', dtype: read.dtype };
  const make = (weights: WeightLoader) => causalLM({ weights, origin, tied });
  const source = new RandomWeights(WeightLoader.plan(read, make), { seed: 1, deviation: 0.5 });
  using model = WeightLoader.build(source, read, make);
  const batch = {
    inputIds: Int32Array.from(positions, (_, i) => (7 * i) % kJson.vocab_size),
    positions: Int32Array.from(positions),
    cuSeqlens: Int32Array.of(0, positions.length),
  };
  return Array.from(values(noGrad(() => model.forward(batch))));
}

describe('layers without a rope', () => {
  const [near, far] = [
    [0, 1, 2, 3, 4],
    [0, 3, 4, 9, 11],
  ];

  it('do not depend on the distances between positions', () => {
    expect(statesOf([null, null], far)).toEqual(statesOf([null, null], near));
  });

  it('do not change the ropes of other layers', () => {
    for (const ropes of [
      [0, null],
      [null, 0],
    ]) {
      expect(statesOf(ropes, far)).not.toEqual(statesOf(ropes, near));
      expect(statesOf(ropes, near)).not.toEqual(statesOf([0, 0], near));
    }
  });
});
