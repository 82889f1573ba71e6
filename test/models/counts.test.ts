// Numbers of configurations and of GGUF metadata that no checkpoint has: each is refused, or changes nothing that takes memory,
// before anything is made of it, in every family.
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { BaloraError, FormatError } from '../../lib/errors.ts';
import { GgufFile } from '../../lib/io/gguf.ts';
import {
  AutoModelForCausalLM,
  AutoModelForSeq2SeqLM,
  AutoModelForSequenceClassification,
} from '../../lib/models/index.ts';
import {
  kConversions,
  kEncoderConversions,
  kSeq2SeqConversions,
  writeGoldenGguf,
} from '../support/gguf_models.ts';
import {
  architecture,
  type GoldenTask,
  goldenConfig,
  goldenNames,
} from '../support/golden_checkpoints.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-counts-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const kLoaders = {
  causal_lm: AutoModelForCausalLM,
  seq_cls: AutoModelForSequenceClassification,
  seq2seq_lm: AutoModelForSeq2SeqLM,
};

/** The first checkpoint of every model_type. */
const kCheckpoints = Object.keys(kLoaders).flatMap((task) => {
  const byType = new Map(
    goldenNames(task as GoldenTask).map((name) => [goldenConfig(name).model_type, name]),
  );
  return Array.from(byType, ([type, name]) => ({ type, name, task: task as GoldenTask }));
});

const kLayers = /^(num_hidden_layers|n_layers?|num_layers|num_decoder_layers)$/;
const kExtents = /^(vocab_size|intermediate_size|d_ff|hidden_dim|n_positions|type_vocab_size)$/;

/** Loads, and returns the error; null where the number changes nothing that is loaded. */
async function load(task: GoldenTask, path: string): Promise<BaloraError | null> {
  const before = process.memoryUsage().rss;
  const error = await kLoaders[task].fromPretrained(path).then(
    (model) => {
      model.dispose();
      return null;
    },
    (error: unknown) => error,
  );
  expect(process.memoryUsage().rss - before).toBeLessThan(2 ** 29);
  if (error !== null) expect(error, String((error as Error).stack)).toBeInstanceOf(BaloraError);
  return error as BaloraError | null;
}

describe.each(kCheckpoints)('config.json of $type for $task', ({ name, task }) => {
  it('with numbers that no checkpoint has', async () => {
    const path = join(folder, `${name}-${task}`);
    cpSync(architecture(`${name}/model`), path, { recursive: true });
    const config = goldenConfig(name);
    const numbers = Object.entries(config).filter(([, value]) => typeof value === 'number');
    expect(numbers.length).toBeGreaterThan(5);
    for (const [key] of numbers) {
      for (const value of [2 ** 31, 2e6, 3000, -1, 1.5, 1e300]) {
        writeFileSync(join(path, 'config.json'), JSON.stringify({ ...config, [key]: value }));
        const error = await load(task, path);
        if (kLayers.test(key) && value === 3000) {
          // The list of a layer for each is compared first, where the file has one.
          const message = config.layer_types
            ? 'layer_types must have one entry for each of the 3000 layers'
            : `${key} is 3000, but the checkpoint has `;
          expect(error?.message).toContain(message);
        } else if (kExtents.test(key) && value >= 3000 && value < 1e300) {
          expect(error?.message).toContain(
            `${key} is ${value}, but the largest extent of a tensor`,
          );
        } else if (kLayers.test(key) || kExtents.test(key)) {
          expect(error?.message, `${key} ${value}`).toContain(`${key}: `);
        }
      }
    }
  });
});

const kGguf: { family: string; task: GoldenTask }[] = [
  ...Object.keys(kConversions).map((family) => ({ family, task: 'causal_lm' as const })),
  ...Object.keys(kEncoderConversions).map((family) => ({ family, task: 'seq_cls' as const })),
  ...Object.keys(kSeq2SeqConversions).map((family) => ({ family, task: 'seq2seq_lm' as const })),
];

describe.each(kGguf)('GGUF metadata of $family', ({ family, task }) => {
  it('with numbers that no checkpoint has', async () => {
    const path = join(folder, `${family}.gguf`);
    writeGoldenGguf(path, family);
    const { metadata } = GgufFile.open(path);
    const prefix = `${metadata.get('general.architecture')}.`;
    const keys = [...metadata.keys()].filter(
      (key) => key.startsWith(prefix) && typeof metadata.get(key) === 'number',
    );
    expect(keys.length).toBeGreaterThan(4);
    for (const key of keys.map((key) => key.slice(prefix.length))) {
      for (const value of [0, 3000, 2e6, 2 ** 32 - 1, { f32: -1 }, { f32: 1.5 }]) {
        writeGoldenGguf(path, family, { [key]: value });
        const error = await load(task, path);
        if (key === 'block_count') expect(error).toBeInstanceOf(FormatError);
      }
    }
    for (const id of [2 ** 32 - 1, 2e6, { f32: -1 }]) {
      writeGoldenGguf(path, family, {}, { vocabulary: { 'tokenizer.ggml.padding_token_id': id } });
      await load(task, path);
    }
  });
});

describe('a classifier', () => {
  const json = (name: string) => join(folder, name, 'config.json');

  it('with more labels than any task has is refused, where the checkpoint has no head', async () => {
    const path = join(folder, 'labels');
    cpSync(architecture('llama-tied/model'), path, { recursive: true });
    const config = JSON.parse(readFileSync(json('labels'), 'utf8'));
    for (const num_labels of [2 ** 31, -1, 1.5]) {
      writeFileSync(json('labels'), JSON.stringify({ ...config, num_labels }));
      await expect(AutoModelForSequenceClassification.fromPretrained(path)).rejects.toThrow(
        /num_labels must be a whole number from 1 to 1048576, got/,
      );
    }
    writeFileSync(json('labels'), JSON.stringify({ ...config, initializer_range: 'wide' }));
    await expect(AutoModelForSequenceClassification.fromPretrained(path)).rejects.toThrow(
      /initializer_range must be a number from 0 on, got "wide"/,
    );
  });

  it('of roberta whose padding id leaves no position is refused', async () => {
    const path = join(folder, 'padding');
    cpSync(architecture('roberta/model'), path, { recursive: true });
    const config = JSON.parse(readFileSync(json('padding'), 'utf8'));
    writeFileSync(json('padding'), JSON.stringify({ ...config, pad_token_id: 1e9 }));
    await expect(AutoModelForSequenceClassification.fromPretrained(path)).rejects.toThrow(
      /pad_token_id 1000000000 leaves no row of the \d+ in max_position_embeddings/,
    );
  });
});
