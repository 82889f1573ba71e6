/** Loading shared by the commands: data files, models with their tokenizers, and adapters. */
import type { LoadOptions } from '../adapters/adapter_model.ts';
import { openRows } from '../data/open_rows.ts';
import type { RowSource } from '../data/rows.ts';
import { findModel, hubTable } from '../io/hub.ts';
import type { FromPretrainedOptions, Model } from '../models/index.ts';
import { optionsOf } from '../options/call.ts';
import { Tokenizer } from '../text/tokenizer.ts';
import type { Progress } from './progress.ts';
import { kTrainDefaults, type TrainSettings } from './train_options.ts';

/** The number of rows below which reading is too quick for progress messages. */
const kMinRowsForProgress = 20_000;

/** Path of a data file, or of several. */
export type DataPaths = string | readonly string[];

/** Options for opening data files. */
export interface DataOptions {
  /** Names of the columns, for a file that has no header. */
  readonly columns: readonly string[] | undefined;
  /** Weights of several files. Default: none. */
  readonly dataWeights?: readonly number[] | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Opens data files as a source of rows. */
export function openData(
  paths: DataPaths,
  { columns, dataWeights, signal }: DataOptions,
): Promise<RowSource> {
  return openRows(paths, { columns, dataWeights, signal });
}

/** The name of data files in messages: that of the first, and the number of the others. */
export function nameOfData(paths: DataPaths): string {
  if (typeof paths === 'string') return paths;
  const [first, ...others] = paths;
  return others.length === 0 ? `${first}` : `${first} and ${others.length} more`;
}

/** Callbacks for opening data that show warnings and progress to the user. */
export interface DataCallbacks {
  readonly onWarning: (warning: { readonly message: string }) => void;
  readonly onProgress: (rowsRead: number, rows: number) => void;
}

/** Opens data files and makes micro-batches from them; warnings and the progress of slow reads are shown to the user. */
export async function openBatches<B>(
  paths: DataPaths,
  make: (rows: RowSource, callbacks: DataCallbacks) => Promise<B>,
  { progress, ...options }: DataOptions & { progress: Progress },
): Promise<{ batches: B; close: () => Promise<void> }> {
  const rows = await openData(paths, options);
  const path = nameOfData(paths);
  try {
    let shown = 0;
    const batches = await make(rows, {
      onWarning: ({ message }) => progress.warn(`${path}: ${message}`),
      onProgress: (read, all) => {
        if (all < kMinRowsForProgress || read - shown < all / 10) return;
        shown = read;
        progress.message(`${path}: ${read} of ${all} rows read`);
      },
    });
    return { batches, close: () => rows.close() };
  } catch (error) {
    await rows.close();
    throw error;
  }
}

/** The options of loading a model that the commands pass on. */
export type ModelLoadOptions = Pick<
  FromPretrainedOptions,
  | 'dtype'
  | 'baseFormat'
  | 'baseOffload'
  | 'offloadFolder'
  | 'device'
  | 'trainable'
  | 'ignoreKeys'
  | 'onDownload'
  | 'onProgress'
>;

/** The settings by which a model is loaded. */
export type LoadSetting =
  | 'dtype'
  | 'baseFormat'
  | 'baseOffload'
  | 'offloadFolder'
  | 'device'
  | 'ignoreKeys';

/** The loading options that follow from the settings; downloads from the Hub and loading progress are shown to the user. */
export function loadOptions(
  settings: Pick<TrainSettings, LoadSetting>,
  progress: Progress,
): ModelLoadOptions {
  const { dtype, baseFormat, baseOffload, offloadFolder, device, ignoreKeys } = {
    ...kTrainDefaults,
    ...settings,
  };
  return {
    ...{ dtype, baseFormat, baseOffload, offloadFolder, device, ignoreKeys },
    onDownload: progress.download,
    onProgress: (loaded, total) => progress.status(`loading: ${loaded} of ${total} tensors`),
  };
}

/** Says how far a model is from that of its files, where it was quantised as it was read. */
export function tellQuantization({ quantizationError }: Model, progress: Progress): void {
  if (quantizationError === null) return;
  const share = (100 * quantizationError).toFixed(2);
  progress.message(
    `the weights in NF4 are ${share}% from those of the files (relative Frobenius norm)`,
  );
}

/** Loads the tokenizer of a model that is loaded with these options. */
export function openTokenizer(path: string, options: ModelLoadOptions): Promise<Tokenizer> {
  return Tokenizer.fromPretrained(path, optionsOf(hubTable, options));
}

/**
 * Finds the folder of a model, downloading it if necessary, and loads its tokenizer.
 * @param check refuses a model of the wrong kind; called before the tokenizer is loaded, so that its error comes first
 */
export async function openModel(
  path: string,
  check: (folder: string, options: ModelLoadOptions) => Promise<void>,
  options: ModelLoadOptions,
): Promise<{ folder: string; tokenizer: Tokenizer }> {
  const folder = await findModel(path, options);
  await check(folder, options);
  return { folder, tokenizer: await Tokenizer.fromPretrained(folder) };
}

/** The options of loading an adapter that follow from the settings. */
export function adapterOptions({
  allowOtherBase = false,
}: Pick<TrainSettings, 'allowOtherBase'>): Pick<LoadOptions, 'allowOtherBase'> {
  return { allowOtherBase };
}

/** Shows the warnings of a loaded adapter or model to the user, and returns it. */
export function showWarnings<T extends { warnings: readonly string[] }>(
  tuned: T,
  progress: Progress,
): T {
  for (const warning of tuned.warnings) progress.warn(warning);
  return tuned;
}
