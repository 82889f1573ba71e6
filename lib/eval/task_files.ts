/** Files of tasks' data by the names that they have in a folder. */
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { ArgumentError } from '../errors.ts';
import type { DataPart, ScoringTask } from './tasks/task.ts';

const kExtensions = ['jsonl', 'json', 'csv', 'tsv', 'parquet', 'txt', 'raw', 'tokens'];

/** Ends of a name without its extension, by preference: of files of items, and of files of examples. */
const kOfItems = ['', '/test', '/validation', '/val'];
const kOfExamples = ['.train', '/train', '.dev', '/dev'];

/**
 * The file of a task in a folder: `mmlu.jsonl` or `mmlu/test.jsonl` for its items, `mmlu.train.jsonl`, `mmlu/train.jsonl` or the same
 * with dev for its examples; also .json, .csv, .tsv, .parquet and plain text. Where the only file of a benchmark has all parts, it is
 * that of its examples, too.
 * @throws ArgumentError with the names that were looked for
 */
export async function findTaskFile(
  folder: string,
  { name, dataName = name, belongsTo }: Pick<ScoringTask, 'name' | 'dataName' | 'belongsTo'>,
  part: DataPart,
): Promise<string> {
  const own = [...new Set([name, dataName])];
  const hasItems = part === 'items' || belongsTo !== undefined;
  const names = [
    ...own.flatMap((one) => (part === 'examples' ? kOfExamples.map((end) => one + end) : [])),
    ...own.flatMap((one) => (hasItems ? [...kOfItems, `/${one}`].map((end) => one + end) : [])),
  ];
  for (const stem of names) {
    for (const extension of kExtensions) {
      const path = join(folder, `${stem}.${extension}`);
      const found = await stat(path).catch(() => null);
      if (found?.isFile()) return path;
    }
  }
  throw new ArgumentError(
    `${folder} has no ${part} of the task ${name}: none of ${names.join(', ')} with the extension ${kExtensions.join(', ')}; ` +
      `name the file: ${name}=FILE`,
  );
}
