// GGUF files of encoders, written as by llama.cpp's converter, against the checkpoints that they were made from: bit-identical
// hidden states, heads where the file contains them completely, and refusals where the file does not determine the family.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import {
  AutoModelForSequenceClassification as Auto,
  AutoModelForCausalLM,
  type SequenceClassifier,
  saveModel,
} from '../../lib/models/index.ts';
import { noGrad } from '../../lib/tensor.ts';
import { values } from '../support/compare.ts';
import { kEncoderConversions, writeGoldenGguf } from '../support/gguf_models.ts';
import { architecture } from '../support/golden_checkpoints.ts';
import { type ClassifierGolden, readClassifierGolden } from '../support/golden_classifiers.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-encoder-gguf-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const kFamilies = Object.keys(kEncoderConversions);
const kHead = /(?:^|\.)(?:pre_)?classifier\./;
const checkpoint = (family: string): string => architecture(`${family}/model`);

type Batch = Pick<ClassifierGolden, 'batch'>;
const statesOf = (model: SequenceClassifier, { batch }: Batch) =>
  values(noGrad(() => model.forward(batch)));
const logitsOf = (model: SequenceClassifier, { batch }: Batch) =>
  values(noGrad(() => model.logits(model.forward(batch), batch)));

function written(
  name: string,
  family: string,
  ...rest: [Parameters<typeof writeGoldenGguf>[2]?, Parameters<typeof writeGoldenGguf>[3]?]
): string {
  const path = join(folder, `${name}.gguf`);
  writeGoldenGguf(path, family, ...rest);
  return path;
}

describe.each(kFamilies)('a GGUF file of %s', (family) => {
  it.each(['f32', 'bf16'] as const)(
    'gives the hidden states of its checkpoint in %s',
    async (dtype) => {
      const golden = await readClassifierGolden(family);
      const got = await Auto.fromPretrained(written(`${family}-${dtype}`, family), { dtype });
      const want = await Auto.fromPretrained(checkpoint(family), { dtype });
      expect(got.modelType).toBe(family);
      expect(statesOf(got, golden)).toEqual(statesOf(want, golden));
    },
  );

  it('of the bare model gets a new head, determined by the seed, and is the same after saving and loading', async () => {
    const golden = await readClassifierGolden(family);
    const path = written(`${family}-bare`, family, {}, { skip: kHead });
    const options = { numLabels: 4, seed: 7 };
    const model = await Auto.fromPretrained(path, options);
    const paths = [...model.namedParameters()].map(([name]) => name);
    const fresh = paths.filter((name) => /classifier\.|\.pooler\./.test(name));
    expect(new Set(model.newlyInitialized)).toEqual(new Set(fresh));
    expect(logitsOf(await Auto.fromPretrained(path, options), golden)).toEqual(
      logitsOf(model, golden),
    );
    const saved = join(folder, `${family}-saved`);
    await saveModel(model, saved);
    const again = await Auto.fromPretrained(saved);
    expect([again.modelType, again.numLabels, again.newlyInitialized]).toEqual([family, 4, []]);
    expect(logitsOf(again, golden)).toEqual(logitsOf(model, golden));
  });
});

describe('the head of a GGUF file', () => {
  it.each(['distilbert', 'roberta'])('of %s is read with its labels', async (family) => {
    const golden = await readClassifierGolden(family);
    const path = written(`${family}-head`, family, { 'classifier.output_labels': ['no', 'yes'] });
    const got = await Auto.fromPretrained(path);
    const want = await Auto.fromPretrained(checkpoint(family));
    expect(got.newlyInitialized).toEqual([]);
    expect(logitsOf(got, golden)).toEqual(logitsOf(want, golden));
    expect(got.configJson()).toMatchObject({
      model_type: family,
      id2label: { 0: 'no', 1: 'yes' },
      label2id: { no: 0, yes: 1 },
    });
  });

  it('of bert is new like the pooler, which the converter drops', async () => {
    const model = await Auto.fromPretrained(written('bert-head', 'bert'), { numLabels: 5 });
    expect([...model.newlyInitialized].sort()).toEqual([
      'bert.pooler.dense.bias',
      'bert.pooler.dense.weight',
      'classifier.bias',
      'classifier.weight',
    ]);
  });
});

describe('a position table', () => {
  it('of roberta has zeros for the rows up to the padding id, which the file lacks', async () => {
    const model = await Auto.fromPretrained(written('roberta-table', 'roberta'));
    const tableOf = (m: SequenceClassifier): number[] => {
      const name = 'roberta.embeddings.position_embeddings.weight';
      const table = new Map(m.namedParameters()).get(name);
      expect(table?.shape).toEqual([26, 40]);
      return Array.from(values(table as NonNullable<typeof table>), Number);
    };
    const [got, want] = [model, await Auto.fromPretrained(checkpoint('roberta'))].map(tableOf);
    expect(got?.slice(0, 80)).toEqual(new Array(80).fill(0));
    expect(got?.slice(80)).toEqual(want?.slice(80));
  });
});

describe('a file of the bert architecture is refused', () => {
  const model = 'tokenizer.ggml.model';
  it.each([
    [
      'sentencepiece',
      'roberta',
      { vocabulary: { [model]: 't5' } },
      /"t5" and token_types\.weight of 1 row/,
    ],
    [
      'one token type',
      'roberta',
      { vocabulary: { [model]: 'bert' } },
      /"bert" and token_types\.weight of 1 row/,
    ],
    [
      'gpt2 without types',
      'distilbert',
      { vocabulary: { [model]: 'gpt2' } },
      /"gpt2" and token_types\.weight missing/,
    ],
  ])('with %s, which does not determine the family', async (name, family, changes, message) => {
    const path = written(name.replaceAll(' ', '-'), family, {}, changes);
    await expect(Auto.fromPretrained(path)).rejects.toThrow(message);
  });

  it('that is causal, has another epsilon than DistilBERT, or unknown keys', async () => {
    await expect(
      Auto.fromPretrained(written('causal', 'bert', { 'attention.causal': true })),
    ).rejects.toThrow(/bert\.attention\.causal true is not supported/);
    const eps = { 'attention.layer_norm_epsilon': { f32: 1e-5 } };
    await expect(Auto.fromPretrained(written('eps', 'distilbert', eps))).rejects.toThrow(
      /bert\.attention\.layer_norm_epsilon 0\.0000.* must be DistilBERT's/,
    );
    await expect(
      Auto.fromPretrained(written('moe', 'bert', { moe_every_n_layers: 2 })),
    ).rejects.toThrow(/bert\.moe_every_n_layers is not understood/);
  });

  it('as a language model', async () => {
    await expect(AutoModelForCausalLM.fromPretrained(written('lm', 'bert'))).rejects.toThrow(
      /general\.architecture "bert" is not supported as a language model, only as classification: AutoModelForSeq/,
    );
  });
});
