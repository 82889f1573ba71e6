// Positions for which a table or a list would take all memory are refused by name, before anything is allocated.
import { describe, expect, it } from 'vitest';
import { ArgumentError } from '../../lib/errors.ts';
import {
  AutoModelForCausalLM,
  AutoModelForSeq2SeqLM,
  AutoModelForSequenceClassification,
} from '../../lib/models/index.ts';
import { RopeCache } from '../../lib/models/rope.ts';
import { architecture, goldenNames } from '../support/golden_checkpoints.ts';

const batch = (positions: number[]) => ({
  inputIds: Int32Array.from(positions, (_, i) => i + 3),
  positions: Int32Array.from(positions),
  cuSeqlens: Int32Array.of(0, positions.length),
});
const kRefused = /^forward: positions\[2\] must be below \d+, .*, got 100000000$/;

describe('a position of 1e8 is refused', () => {
  it.each(goldenNames('causal_lm'))('by the language model %s', async (name) => {
    const model = await AutoModelForCausalLM.fromPretrained(architecture(`${name}/model`));
    expect(() => model.forward(batch([0, 1, 1e8]))).toThrow(kRefused);
    expect(() => model.forward(batch([0, 1, 1e8]))).toThrow(ArgumentError);
    model.forward(batch([0, 1, 2])).dispose();
    model.dispose();
  });

  it.each(goldenNames('seq_cls'))('by the classifier %s', async (name) => {
    const model = await AutoModelForSequenceClassification.fromPretrained(
      architecture(`${name}/model`),
    );
    expect(() => model.forward(batch([0, 1, 1e8]))).toThrow(kRefused);
    model.forward(batch([0, 1, 2])).dispose();
    model.dispose();
  });

  it.each(goldenNames('seq2seq_lm'))('by the encoder-decoder %s, on both sides', async (name) => {
    const model = await AutoModelForSeq2SeqLM.fromPretrained(architecture(`${name}/model`));
    const [good, bad] = [batch([0, 1, 2]), batch([0, 1, 1e8])];
    expect(() => model.forward({ ...bad, decoder: good })).toThrow(kRefused);
    expect(() => model.forward({ ...good, decoder: bad })).toThrow(kRefused);
    model.forward({ ...good, decoder: good }).dispose();
    model.dispose();
  });
});

it('the rotary tables of a configuration that allows such positions are refused', () => {
  const cache = new RopeCache({ type: 'default', theta: 10_000, dim: 128 }, 'f32');
  expect(() => cache.tables(1e8)).toThrow(
    "the rotary embedding's tables for position 99999999 would be too large; give positions below 4194304",
  );
  cache.dispose();
});
