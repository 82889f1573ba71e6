// Options that the studies need, and rows of JSON Lines for language models.
import { arrayRows } from 'balora';
import { JsonlFile } from 'balora/data';

/** The options for `parseArgs` of a study that trains a language model from several seeds and evaluates it on held-out rows. */
export const kTrainingOptions = {
  model: { type: 'string' },
  data: { type: 'string' },
  'eval-data': { type: 'string' },
  'prompt-field': { type: 'string' },
  'response-field': { type: 'string' },
  seeds: { type: 'string', default: '0,1,2' },
  'eval-rows': { type: 'string', default: '48' },
  'batch-size': { type: 'string', default: '4' },
  rank: { type: 'string', default: '16' },
  'learning-rate': { type: 'string', default: '1e-4' },
  table: { type: 'boolean', default: false },
};

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
