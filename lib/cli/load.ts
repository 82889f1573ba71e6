/** Loading for the commands: data, model with tokenizer, and what is tuned of it. */
import { openRows } from '../data/open_rows.ts';
import type { RowSource } from '../data/rows.ts';
import { resolveModel } from '../io/hub.ts';
import type { FromPretrainedOptions } from '../models/index.ts';
import { Tokenizer } from '../text/tokenizer.ts';
import type { Progress } from './progress.ts';
import { kTrainDefaults, type TrainSettings } from './train_options.ts';

/** Rows below which encoding is over before anyone wonders. */
const kRowsWorthALine = 20_000;

/** What is said of a data file itself. */
export interface DataOptions {
  /** Its columns, where it has no header. */
  readonly columns: readonly string[] | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A data file as rows. */
export function openData(path: string, { columns, signal }: DataOptions): Promise<RowSource> {
  return openRows(path, {
    ...(columns === undefined ? {} : { columns }),
    ...(signal === undefined ? {} : { signal }),
  });
}

/** The options of data that the commands fill in themselves. */
export interface TellingOptions {
  readonly onWarning: (warning: { readonly message: string }) => void;
  readonly onProgress: (rowsRead: number, rows: number) => void;
}

/** A data file as micro-batches; warnings and slow progress go to the user. */
export async function openBatches<B>(
  path: string,
  make: (rows: RowSource, telling: TellingOptions) => Promise<B>,
  { progress, ...options }: DataOptions & { progress: Progress },
): Promise<{ batches: B; close: () => Promise<void> }> {
  const rows = await openData(path, options);
  try {
    let said = 0;
    const batches = await make(rows, {
      onWarning: ({ message }) => progress.warn(`${path}: ${message}`),
      onProgress: (read, all) => {
        if (all < kRowsWorthALine || read - said < all / 10) return;
        said = read;
        progress.message(`${path}: ${read} of ${all} rows read`);
      },
    });
    return { batches, close: () => rows.close() };
  } catch (error) {
    await rows.close();
    throw error;
  }
}

/** How a model is loaded. */
export type ModelLoadOptions = Pick<
  FromPretrainedOptions,
  'dtype' | 'device' | 'trainable' | 'ignoreKeys' | 'onDownload' | 'onProgress'
>;

/** What the settings say of it; files that come from the Hub are told. */
export function loadOptions(
  settings: Pick<TrainSettings, 'dtype' | 'device' | 'ignoreKeys'>,
  progress: Progress,
): ModelLoadOptions {
  const { dtype, device, ignoreKeys } = { ...kTrainDefaults, ...settings };
  return {
    ...{ dtype, device, ignoreKeys },
    onDownload: progress.download,
    onProgress: (loaded, total) => progress.status(`loading: ${loaded} of ${total} tensors`),
  };
}

/**
 * The folder of a model of some task, and its tokenizer.
 * @param check refuses what is no such model: what a model is comes before what its tokenizer lacks
 */
export async function openModel(
  path: string,
  check: (folder: string, options: ModelLoadOptions) => Promise<void>,
  options: ModelLoadOptions,
): Promise<{ folder: string; tokenizer: Tokenizer }> {
  const folder = await resolveModel(path, options);
  await check(folder, options);
  return { folder, tokenizer: await Tokenizer.fromPretrained(folder) };
}

/** An adapter; what is to be known of it is told. */
export function warned<T extends { warnings: readonly string[] }>(tuned: T, progress: Progress): T {
  for (const warning of tuned.warnings) progress.warn(warning);
  return tuned;
}
