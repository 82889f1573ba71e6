/** A tiny t5 with a tokenizer of a few words, and rows for tests that train encoder-decoders. */
import { cp, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { arrayRows, type Row } from '../../lib/data/rows.ts';
import { Seq2SeqBatches, type Seq2SeqBatchOptions } from '../../lib/data/seq2seq_batches.ts';
import { fixturePath } from './fixtures.ts';
import {
  kTinyT5TokenizerConfig,
  tinyT5Tokenizer,
  tinyT5TokenizerJson,
} from './tiny_t5_tokenizer.ts';

/** The path of the golden t5, which has no tokenizer. */
export const kTinyT5 = fixturePath('architectures/t5/model');

/** Writes the golden t5 with the tiny tokenizer as a folder for the command line. */
export async function writeTinySeq2Seq(folder: string): Promise<void> {
  await cp(kTinyT5, folder, { recursive: true });
  const files = {
    'tokenizer.json': tinyT5TokenizerJson(),
    'tokenizer_config.json': kTinyT5TokenizerConfig,
  };
  for (const [name, json] of Object.entries(files)) {
    await writeFile(join(folder, name), JSON.stringify(json));
  }
}

/** Rows whose target can be learned from the source: its one to four words in reverse order. */
export function tinySeq2SeqRows(count: number): (Row & { prompt: string; response: string })[] {
  const words = ['the', 'cat', 'sat', 'a', 'Katze'];
  return Array.from({ length: count }, (_, i) => {
    const chosen = Array.from({ length: 1 + (i % 4) }, (_, t) => words[(i * 3 + t * 2) % 5]);
    return { prompt: chosen.join(' '), response: chosen.reverse().join(' ') };
  });
}

/** Micro-batches of {@link tinySeq2SeqRows} for the golden t5, whose decoder starts with 0. */
export function tinySeq2SeqData(
  count: number,
  options: Partial<Seq2SeqBatchOptions> = {},
): Promise<Seq2SeqBatches> {
  return Seq2SeqBatches.create(arrayRows(tinySeq2SeqRows(count)), tinyT5Tokenizer(), {
    decoderStartTokenId: 0,
    ...options,
  });
}
