/** Files of tasks' data by the names that they have in a folder. */
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { ArgumentError } from '../errors.ts';
import type { ScoringTask } from './tasks/task.ts';

/** The part of a task's data: the items, or those from which examples are taken. */
export type DataPart = 'items' | 'examples';

const kExtensions = ['jsonl', 'json', 'csv', 'tsv', 'parquet', 'txt'];

/** Names of a file without its extension, by preference. A task's data may be that of another one. */
function stems(name: string, part: DataPart): readonly string[] {
  return part === 'items'
    ? [name, ...['test', 'validation', 'val', name].map((split) => `${name}/${split}`)]
    : ['train', 'dev'].flatMap((split) => [`${name}.${split}`, `${name}/${split}`]);
}

/**
 * The file of a task in a folder: `mmlu.jsonl` or `mmlu/test.jsonl` for its items, `mmlu.train.jsonl`, `mmlu/train.jsonl` or the same
 * with dev for its examples; also .json, .csv, .tsv, .parquet and .txt.
 * @throws ArgumentError with the names that were looked for
 */
export async function findTaskFile(
  folder: string,
  { name, dataName = name }: Pick<ScoringTask, 'name' | 'dataName'>,
  part: DataPart,
): Promise<string> {
  const names = [...new Set([name, dataName])].flatMap((one) => stems(one, part));
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
