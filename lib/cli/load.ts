/** Loading for the commands: data, model with tokenizer, and what is tuned of it. */
import { AdapterModel } from '../adapters/adapter_model.ts';
import { FullModel } from '../adapters/full_model.ts';
import type { TunedModel } from '../adapters/tuned_model.ts';
import { Batches, type BatchOptions } from '../data/batches.ts';
import { JsonlFile } from '../data/jsonl.ts';
import {
  AutoModelForCausalLM,
  type CausalLM,
  checkCausalLM,
  resolveModel,
} from '../models/index.ts';
import { Tokenizer } from '../text/tokenizer.ts';
import type { Progress } from './progress.ts';
import { formatBytes } from './terminal.ts';
import type { TrainSettings } from './train_options.ts';
import { kTrainDefaults, type TrainSetup } from './train_setup.ts';

/** Rows below which encoding is over before anyone wonders. */
const kRowsWorthALine = 20_000;

/** A JSON Lines file as micro-batches; warnings and slow progress go to the user. */
export async function openBatches(
  path: string,
  tokenizer: Tokenizer,
  options: BatchOptions & { progress: Progress },
): Promise<{ batches: Batches; close: () => Promise<void> }> {
  const { progress, ...batchOptions } = options;
  const rows = await JsonlFile.open(path, batchOptions);
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

/** A model and its tokenizer. `folder` is where they lie on this machine. */
export async function loadModel(
  path: string,
  options: { dtype: 'f32' | 'bf16'; device?: string; trainable?: boolean },
): Promise<{ model: CausalLM; tokenizer: Tokenizer }> {
  const folder = await resolveModel(path);
  // What the model is comes before what its tokenizer lacks.
  await checkCausalLM(folder, options);
  const tokenizer = await Tokenizer.fromPretrained(folder);
  return { model: await AutoModelForCausalLM.fromPretrained(folder, options), tokenizer };
}

/** The model of the settings with what is to be trained: a fresh adapter, a loaded one, or all of its weights. */
export async function loadTuned(
  settings: TrainSettings,
  { method, adapter }: TrainSetup,
  progress: Progress,
): Promise<{ tuned: TunedModel; tokenizer: Tokenizer }> {
  const path = settings.model as string;
  const { dtype, device, seed } = { ...kTrainDefaults, ...settings };
  const trainable = adapter === null;
  const { model, tokenizer } = await loadModel(path, { dtype, device, trainable });
  if (adapter === null) {
    if (method.regularizers.consistencyWeight === 0) {
      return { tuned: new FullModel(model), tokenizer };
    }
    const second = await loadModel(path, { dtype, device });
    const full = new FullModel(model, { teacher: second.model });
    progress.message(
      `a consistency weight with --method full keeps a second copy of the model: ${formatBytes(full.teacherBytes)}`,
    );
    return { tuned: full, tokenizer };
  }
  if (settings.adapter === undefined) {
    return { tuned: await AdapterModel.create(model, adapter, { seed }), tokenizer };
  }
  const tuned = await AdapterModel.load(model, settings.adapter, { seed });
  for (const warning of tuned.warnings) progress.warn(warning);
  return { tuned, tokenizer };
}
