/** The examples of a data file as text, with what is trained on in brackets. */
import { fileURLToPath } from 'node:url';
import { Batches, type BatchOptions } from '../../lib/data/batches.ts';
import type { Example } from '../../lib/data/example.ts';
import { openRows } from '../../lib/data/open_rows.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { tinyTokenizer, tinyTokenizerConfig, tinyTokenizerJson } from './tiny_tokenizer.ts';

/** Path of a file of test/data/forms/files. */
export function formFile(name: string): string {
  return fileURLToPath(new URL(`../data/forms/files/${name}`, import.meta.url));
}

/** The tiny tokenizer with another chat template. */
export function withChatTemplate(chat_template: string): Tokenizer {
  return Tokenizer.fromJson(tinyTokenizerJson(), { ...tinyTokenizerConfig(), chat_template });
}

/** The text of an example, with each run of supervised tokens in brackets. */
export function shownExample(
  { ids, supervised }: Example,
  by: Tokenizer = tinyTokenizer(),
): string {
  const parts: Buffer[] = [];
  let isInside = false;
  const mark = (supervisedNow: boolean): void => {
    if (supervisedNow !== isInside) parts.push(Buffer.from(supervisedNow ? '[' : ']'));
    isInside = supervisedNow;
  };
  ids.forEach((id, t) => {
    mark(supervised[t] === 1);
    parts.push(Buffer.from(by.tokenBytes(id)));
  });
  mark(false);
  return Buffer.concat(parts).toString();
}

/** The examples of all rows of a file of test/data/forms/files, or at another path. */
export async function shownRows(
  file: string,
  options: BatchOptions = {},
  tokenizer: Tokenizer = tinyTokenizer(),
): Promise<string[]> {
  const rows = await openRows(file.includes('/') ? file : formFile(file));
  try {
    const data = await Batches.create(rows, tokenizer, { maxLength: 4096, ...options });
    const all = Array.from({ length: rows.length }, (_, row) => data.example(row));
    return (await Promise.all(all)).map((example) => shownExample(example, tokenizer));
  } finally {
    await rows.close();
  }
}
