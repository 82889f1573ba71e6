/** The tiny bert checkpoint of the fixtures with a WordPiece tokenizer, and sentences that contain the word of their class. */
import { cp, mkdir, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { LabelledBatches, type LabelledOptions } from '../../lib/data/labelled_batches.ts';
import { arrayRows, type Row } from '../../lib/data/rows.ts';
import { loadSafetensors, saveSafetensors } from '../../lib/io/index.ts';
import {
  AutoModelForSequenceClassification,
  type ClassifierOptions,
  type SequenceClassifier,
} from '../../lib/models/index.ts';
import type { Tokenizer } from '../../lib/text/tokenizer.ts';
import { fixturePath } from './fixtures.ts';
import { kTinyWordPieceConfig, tinyWordPiece, tinyWordPieceJson } from './tiny_wordpiece.ts';

const kWords = ['bad', 'so', 'good', 'a', 'film', 'the', 'plot', 'was', 'and'];
export const kTinyBert = fixturePath('architectures/bert/model');

export function tinyClassifierTokenizer(): Tokenizer {
  return tinyWordPiece(kWords);
}

/** Writes model and tokenizer as a Hugging Face folder; without `head` like a checkpoint before fine-tuning. */
export async function writeTinyClassifier(
  folder: string,
  { head = true }: { head?: boolean } = {},
): Promise<void> {
  await mkdir(folder, { recursive: true });
  await cp(kTinyBert, folder, { recursive: true });
  if (!head) {
    const path = join(folder, 'model.safetensors');
    const { tensors } = await loadSafetensors(path);
    const kept = Object.entries(tensors).filter(([name]) => !name.startsWith('classifier.'));
    await saveSafetensors(path, Object.fromEntries(kept));
  }
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tinyWordPieceJson(kWords)));
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify(kTinyWordPieceConfig));
}

/** Rows whose second word is bad (label 0), so (1) or good (2); every other row has an additional word. */
export function tinyRows(count: number): (Row & { text: string; label: number })[] {
  return Array.from({ length: count }, (_, i) => {
    const label = (7 * i + (i % 5)) % 3;
    const tail = i % 2 === 0 ? 'film' : 'film and plot';
    return { text: `a ${kWords[label]} ${tail}`, label };
  });
}

export function tinyLabelled(
  count: number,
  options: LabelledOptions = {},
): Promise<LabelledBatches> {
  return LabelledBatches.create(arrayRows(tinyRows(count)), tinyClassifierTokenizer(), {
    shuffle: false,
    numLabels: 3,
    ...options,
  });
}

export function tinyClassifier(options: ClassifierOptions = {}): Promise<SequenceClassifier> {
  return AutoModelForSequenceClassification.fromPretrained(kTinyBert, options);
}
