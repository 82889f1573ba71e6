// Dropout in configurations: every rate that a family ignores is reported, and no rate is missed.
import { describe, expect, it } from 'vitest';
import { AutoModelForCausalLM } from '../../lib/models/auto.ts';
import { AutoModelForSequenceClassification } from '../../lib/models/auto_classifier.ts';
import { AutoModelForSeq2SeqLM } from '../../lib/models/auto_seq2seq.ts';
import { dropoutWarning, statedRates } from '../../lib/models/dropout_rates.ts';
import type { Model } from '../../lib/models/model.ts';
import { architecture, goldenConfig, goldenNames } from '../support/golden_checkpoints.ts';

/** Keys of dropout in heads of other tasks. */
const kOtherHeads: Readonly<Record<string, readonly string[]>> = {
  gpt2: ['summary_first_dropout'],
  distilbert: ['qa_dropout'],
  t5: ['classifier_dropout'],
};

const loaders = {
  causal_lm: (path: string): Promise<Model> => AutoModelForCausalLM.fromPretrained(path),
  seq_cls: (path: string): Promise<Model> =>
    AutoModelForSequenceClassification.fromPretrained(path),
  seq2seq_lm: (path: string): Promise<Model> => AutoModelForSeq2SeqLM.fromPretrained(path),
};
const cases = (Object.keys(loaders) as (keyof typeof loaders)[]).flatMap((task) =>
  goldenNames(task).map((name) => [name, task] as const),
);

describe('dropoutRates', () => {
  it.each(cases)('of %s are all those in its configuration', async (name, task) => {
    const config = goldenConfig(name) as Record<string, unknown>;
    const others = kOtherHeads[config.model_type as string] ?? [];
    const stated = Object.entries(config).filter(
      ([key, value]) => /dropout|pdrop/.test(key) && !others.includes(key) && Number(value) > 0,
    );
    const model = await loaders[task](architecture(`${name}/model`));
    expect(model.dropoutRates).toEqual(Object.fromEntries(stated));
    expect(dropoutWarning(model) === null).toBe(stated.length === 0);
  });

  it('are listed in a sentence', async () => {
    const t5 = await AutoModelForSeq2SeqLM.fromPretrained(architecture('t5/model'));
    expect(dropoutWarning(t5)).toBe(
      'the configuration of this t5 model asks for dropout (dropout_rate 0.1), which training does not apply',
    );
  });

  it('are only numbers above 0', () => {
    const source = { a: 0.1, b: 0, c: null, d: '0.1', e: 0.2 };
    expect(statedRates(source, ['a', 'b', 'c', 'd', 'f'])).toEqual({ a: 0.1 });
  });
});
