/** Loading for the commands: data, model with tokenizer, and what is tuned of it. */
import { AdapterModel } from '../adapters/adapter_model.ts';
import { FullModel } from '../adapters/full_model.ts';
import type { TunedModel } from '../adapters/tuned_model.ts';
import { Batches, type BatchOptions } from '../data/batches.ts';
import { openRows } from '../data/open_rows.ts';
import type { RowSource } from '../data/rows.ts';
import { resolveModel } from '../io/hub.ts';
import {
  AutoModelForCausalLM,
  type CausalLM,
  checkCausalLM,
  type FromPretrainedOptions,
} from '../models/index.ts';
import { Tokenizer } from '../text/tokenizer.ts';
import type { Progress } from './progress.ts';
import { formatBytes } from './terminal.ts';
import type { TrainSettings } from './train_options.ts';
import { kTrainDefaults, type TrainSetup } from './train_setup.ts';

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

/** A data file as micro-batches; warnings and slow progress go to the user. */
export async function openBatches(
  path: string,
  tokenizer: Tokenizer,
  options: BatchOptions & DataOptions & { progress: Progress },
): Promise<{ batches: Batches; close: () => Promise<void> }> {
  const { progress, columns, ...batchOptions } = options;
  const rows = await openData(path, { columns, signal: batchOptions.signal });
  try {
    let said = 0;
    const batches = await Batches.create(rows, tokenizer, {
      ...batchOptions,
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
  'dtype' | 'device' | 'trainable' | 'ignoreKeys' | 'onDownload'
>;

/** What the settings say of it; files that come from the Hub are told. */
export function loadOptions(
  settings: Pick<TrainSettings, 'dtype' | 'device' | 'ignoreKeys'>,
  { download: onDownload }: Progress,
): ModelLoadOptions {
  const { dtype, device, ignoreKeys } = { ...kTrainDefaults, ...settings };
  return { dtype, device, ignoreKeys, onDownload };
}

/** A language model and its tokenizer. */
export async function loadModel(
  path: string,
  options: ModelLoadOptions,
): Promise<{ model: CausalLM; tokenizer: Tokenizer }> {
  const folder = await resolveModel(path, options);
  // What the model is comes before what its tokenizer lacks.
  await checkCausalLM(folder, options);
  const tokenizer = await Tokenizer.fromPretrained(folder);
  return { model: await AutoModelForCausalLM.fromPretrained(folder, options), tokenizer };
}

/** The model of the settings with what is to be trained: a fresh adapter, a loaded one, or all of its weights. */
export async function loadTuned(
  settings: TrainSettings,
  { method, adapter }: TrainSetup,
  { progress, signal }: { progress: Progress; signal: AbortSignal },
): Promise<{ tuned: TunedModel; tokenizer: Tokenizer }> {
  const path = settings.model as string;
  const seed = settings.seed ?? kTrainDefaults.seed;
  const trainable = adapter === null;
  const how = loadOptions(settings, progress);
  const { model, tokenizer } = await loadModel(path, { ...how, trainable });
  // The start of an adapter may take as long again.
  signal.throwIfAborted();
  if (adapter === null) {
    if (method.regularizers.consistencyWeight === 0) {
      return { tuned: new FullModel(model), tokenizer };
    }
    const teacher = await AutoModelForCausalLM.fromPretrained(path, how);
    const full = new FullModel(model, { teacher });
    progress.message(
      `a consistency weight with --method full keeps a second copy of the model: ${formatBytes(full.teacherBytes)}`,
    );
    return { tuned: full, tokenizer };
  }
  if (settings.adapter === undefined) {
    return { tuned: await AdapterModel.create(model, adapter, { seed }), tokenizer };
  }
  const tuned = warned(await AdapterModel.load(model, settings.adapter, { seed }), progress);
  return { tuned, tokenizer };
}

/** An adapter; what is to be known of it is told. */
export function warned<T extends { warnings: readonly string[] }>(tuned: T, progress: Progress): T {
  for (const warning of tuned.warnings) progress.warn(warning);
  return tuned;
}
