/** Loading for classification: labelled data, a model with a head, and what is tuned of it. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { AdapterModel } from '../adapters/adapter_model.ts';
import { FullModel } from '../adapters/full_model.ts';
import { savedShape } from '../adapters/peft_folder.ts';
import type { TunedModel } from '../adapters/tuned_model.ts';
import { LabelledBatches, type LabelledOptions } from '../data/labelled_batches.ts';
import { openRows } from '../data/open_rows.ts';
import { readConfigJson } from '../models/config_keys.ts';
import {
  AutoModelForSequenceClassification,
  type ClassifierOptions,
  checkpointHead,
  resolveModel,
  type SequenceClassifier,
} from '../models/index.ts';
import { Tokenizer } from '../text/tokenizer.ts';
import { copyHead, warmUpHead } from '../train/head_warmup.ts';
import type { Progress } from './progress.ts';
import { formatBytes } from './terminal.ts';
import type { TrainSettings } from './train_options.ts';
import { kTrainDefaults, type LabelledSetup, type TrainSetup } from './train_setup.ts';

/** A labelled file as micro-batches; warnings go to the user. */
export async function openLabelled(
  path: string,
  tokenizer: Tokenizer,
  options: LabelledOptions & { columns: readonly string[] | undefined; progress: Progress },
): Promise<LabelledBatches> {
  const { progress, columns, signal, ...labelled } = options;
  const rows = await openRows(path, {
    ...(columns === undefined ? {} : { columns }),
    ...(signal === undefined ? {} : { signal }),
  });
  try {
    return await LabelledBatches.create(rows, tokenizer, {
      ...labelled,
      ...(signal === undefined ? {} : { signal }),
      onWarning: ({ message }) => progress.warn(`${path}: ${message}`),
    });
  } finally {
    await rows.close();
  }
}

/** The tokenizer of a model folder. */
export async function loadTokenizer(path: string): Promise<Tokenizer> {
  return Tokenizer.fromPretrained(await resolveModel(path));
}

/** A head that has been trained: the adapter's own, else the checkpoint's. */
export interface TrainedHead {
  readonly labels: number;
  readonly inAdapter: boolean;
}

/** The trained head of a model with an adapter; null where neither has one. */
export async function trainedHead(
  path: string,
  adapter: string | undefined,
): Promise<TrainedHead | null> {
  const { weight, labels } = await checkpointHead(await resolveModel(path));
  const saved = adapter === undefined ? undefined : savedShape(adapter, weight)?.[0];
  if (saved !== undefined) return { labels: saved, inAdapter: true };
  return labels === null ? null : { labels, inAdapter: false };
}

/** Names of a head's labels by id, as the run that left the folder had them; null where it had none, or is not there. */
export async function trainedNames(folder: string, labels: number): Promise<string[] | null> {
  const path = join(folder, 'run', 'config.json');
  if (!existsSync(path)) return null;
  const { command } = (await readConfigJson(path)) as { command?: Record<string, unknown> };
  const names = command?.['label-names'];
  if (!Array.isArray(names) || names.length !== labels) return null;
  return names.every((name) => typeof name === 'string') ? names : null;
}

/** A model with a head for these labels. */
export async function loadClassifier(
  path: string,
  { numLabels, problemType }: Pick<ClassifierOptions, 'numLabels' | 'problemType'>,
  options: Pick<ClassifierOptions, 'dtype' | 'device' | 'trainable' | 'seed' | 'newHead'>,
): Promise<SequenceClassifier> {
  return AutoModelForSequenceClassification.fromPretrained(await resolveModel(path), {
    ...options,
    ...(numLabels === undefined ? {} : { numLabels }),
    ...(problemType === undefined ? {} : { problemType }),
  });
}

interface Surroundings {
  readonly data: LabelledBatches;
  readonly progress: Progress;
  readonly signal: AbortSignal;
}

/** The model of the settings, its head warmed up if asked for, with what is to be trained. */
export async function loadTunedClassifier(
  settings: TrainSettings,
  setup: TrainSetup & { labelled: LabelledSetup },
  { data, progress, signal }: Surroundings,
): Promise<TunedModel<SequenceClassifier>> {
  const path = settings.model as string;
  const { dtype, device, seed, newHead = false } = { ...kTrainDefaults, ...settings };
  const load = (trainable: boolean) =>
    loadClassifier(path, data.scheme, { dtype, device, trainable, seed, newHead });
  const model = await load(setup.adapter === null);
  if (model.newlyInitialized.length > 0) {
    const why = newHead ? '' : `, since ${path} has none`;
    progress.message(`drawn anew${why}: ${model.newlyInitialized.join(', ')}`);
  }
  const { headWarmupEpochs: epochs } = setup.labelled;
  if (epochs > 0) {
    const { loss, examples } = await warmUpHead(model, data, { epochs, seed, signal });
    progress.message(`head warmed up on ${examples} examples: loss ${loss.toFixed(4)}`);
  }
  if (setup.adapter !== null) {
    if (settings.adapter === undefined) return AdapterModel.create(model, setup.adapter, { seed });
    const tuned = await AdapterModel.load(model, settings.adapter, { seed });
    for (const warning of tuned.warnings) progress.warn(warning);
    return tuned;
  }
  if (setup.method.regularizers.consistencyWeight === 0) return new FullModel(model);
  const teacher = await load(false);
  copyHead(model, teacher);
  const full = new FullModel(model, { teacher });
  progress.message(
    `a consistency weight with --method full keeps a second copy of the model: ${formatBytes(full.teacherBytes)}`,
  );
  return full;
}
