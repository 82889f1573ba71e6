// Tiny models for the targets: the fixtures' folders by family, and a short use of a model that was loaded.
import { readdirSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  AutoModelForCausalLM,
  AutoModelForSeq2SeqLM,
  AutoModelForSequenceClassification,
  noGrad,
  scope,
} from 'balora';
import { require } from './finding.mjs';

export const kFixtures = fileURLToPath(new URL('../fixtures', import.meta.url));
const kArchitectures = join(kFixtures, 'architectures');
const kClassifiers = /^(bert|distilbert|roberta|deberta|llama-seqcls)/;

/** Every model folder of the fixtures: its path, its loader and its config.json. */
export function modelFolders() {
  return readdirSync(kArchitectures, { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map(({ name }) => {
      const folder = join(kArchitectures, name, 'model');
      const loader = /^t5/.test(name)
        ? AutoModelForSeq2SeqLM
        : kClassifiers.test(name)
          ? AutoModelForSequenceClassification
          : AutoModelForCausalLM;
      return { name, folder, loader, config: JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')) };
    });
}

/** Links the weights of a model folder into another one. */
export function linkWeights(from, to) {
  for (const name of readdirSync(from)) {
    if (/\.safetensors/.test(name)) symlinkSync(join(from, name), join(to, name));
  }
}

function batchOf(rows, first = 0) {
  return {
    inputIds: Int32Array.from({ length: rows }, (_, t) => (t + first) % 8),
    positions: Int32Array.from({ length: rows }, (_, t) => t),
    cuSeqlens: Int32Array.of(0, rows),
  };
}

/** Runs a loaded model on a few ids, and checks that there is a number for each row, of the decoder where it has one, and channel. */
export async function useModel(model) {
  const isSeq2Seq = model.taskType === 'SEQ_2_SEQ_LM';
  const [batch, rows] = [batchOf(5), isSeq2Seq ? 4 : 5];
  const hidden = scope(() =>
    noGrad(() => model.forward(isSeq2Seq ? { ...batch, decoder: { ...batchOf(rows), targets: batch.inputIds.slice(0, rows) } } : batch)),
  );
  const { shape } = hidden;
  const values = await hidden.data();
  hidden.dispose();
  require(shape.length === 2 && shape[0] === rows, () => `hidden states of the shape ${shape} for ${rows} rows`);
  require(shape[1] > 0 && values.length === rows * shape[1], () => `${values.length} values for the shape ${shape}`);
}
