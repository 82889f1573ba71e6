// Options that the studies need, and rows of JSON Lines for language models.
import { arrayRows } from 'balora';
import { JsonlFile } from 'balora/data';

/** Refuses a command without an option that it needs. */
export function requireOptions(options, names) {
  const missing = names.find((name) => !options[name]);
  if (missing) throw new Error(`--${missing} is missing; the file's head shows the command`);
}

/** The fields of the rows and the size of a micro-batch, for `Batches.create`. */
export const formatOf = (options) => ({
  promptField: options['prompt-field'],
  responseField: options['response-field'],
  batchSize: Number(options['batch-size']),
});

/** The first `count` rows of a file. */
export async function firstRows(path, count) {
  const file = await JsonlFile.open(path);
  const rows = [];
  for (let i = 0; i < Math.min(file.length, count); ++i) rows.push(await file.row(i));
  await file.close();
  return arrayRows(rows);
}
