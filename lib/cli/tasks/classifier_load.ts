/** Loading for classification: labelled data, a model with a head, and the adapter or full model to train. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { savedParameterShape } from '../../adapters/adapter_folder.ts';
import { AdapterModel } from '../../adapters/adapter_model.ts';
import { FullModel } from '../../adapters/full_model.ts';
import type { TunedModel } from '../../adapters/tuned_model.ts';
import { LabelledBatches, type LabelledOptions } from '../../data/labelled_batches.ts';
import type { LabelKind, LabelScheme } from '../../data/labels.ts';
import { formatBytes } from '../../io/format_bytes.ts';
import { findModel } from '../../io/hub.ts';
import { RUN_FILES, recordOf } from '../../io/run_folder.ts';
import { kProblemTypes } from '../../losses/problem_type.ts';
import { readConfigJson } from '../../models/config_keys.ts';
import {
  AutoModelForSequenceClassification,
  type ClassifierOptions,
  checkpointHead,
  type SequenceClassifier,
} from '../../models/index.ts';
import { findFiles } from '../../models/opened.ts';
import type { Values } from '../../options/option.ts';
import type { Tokenizer } from '../../text/tokenizer.ts';
import { copyHead, warmUpHead } from '../../train/head_warmup.ts';
import {
  adapterOptions,
  type DataOptions,
  type DataPaths,
  loadOptions,
  type ModelLoadOptions,
  nameOfData,
  openData,
  showWarnings,
} from '../load.ts';
import { newAdapter } from '../new_adapter.ts';
import type { Progress } from '../progress.ts';
import type { TrainSettings } from '../train_options.ts';
import type { Examples, RunContext, TrainSetup } from './cli_task.ts';

/** Options of labelled data, and of the preparation of the head before training. */
export interface LabelledExamples extends Examples {
  readonly data: LabelledOptions;
  readonly evalData: LabelledOptions;
  /** Passes of the linear probe over the data; 0 skips it. */
  readonly headWarmupEpochs: number;
}

/** Opens labelled files as micro-batches; warnings are shown to the user. */
export async function openLabelled(
  paths: DataPaths,
  tokenizer: Tokenizer,
  options: LabelledOptions & DataOptions & { progress: Progress },
): Promise<LabelledBatches> {
  const { progress, columns, dataWeights, signal, ...labelled } = options;
  const rows = await openData(paths, { columns, dataWeights, signal });
  const path = nameOfData(paths);
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

/** A description of a classification head that has been trained: the adapter's if it has one, else the checkpoint's. */
export interface TrainedHead {
  readonly labels: number;
  readonly inAdapter: boolean;
  /** Path of the model, or of the adapter's folder, for messages. */
  readonly where: string;
  /** Names of the labels by id; null where they are not recorded. */
  readonly names: readonly string[] | null;
  /** Meaning of the outputs (regression or a kind of classification); null where it is not recorded. */
  readonly problemType: LabelKind | null;
}

/** The trained head of a model and its adapter; null where neither has one. */
export async function trainedHead(
  path: string,
  { adapter, ...options }: ModelLoadOptions & { adapter?: string | undefined },
): Promise<TrainedHead | null> {
  const { weight, labels, labelNames } = await checkpointHead(path, options);
  const configured = await configuredProblemType(path, options);
  const saved =
    adapter === undefined ? undefined : (await savedParameterShape(adapter, weight))?.[0];
  if (adapter !== undefined && saved !== undefined) {
    const { names, problemType } = await labelsOfRun(adapter, saved);
    // A configuration with another number of labels describes another head.
    const own = labels === null || labels === saved ? configured : null;
    const meaning = { names, problemType: problemType ?? own };
    return { labels: saved, inAdapter: true, where: adapter, ...meaning };
  }
  if (labels === null) return null;
  // The record of the run takes precedence over the configuration.
  const { names, problemType } = await labelsOfRun(path, labels);
  const meaning = { names: names ?? labelNames, problemType: problemType ?? configured };
  return { labels, inAdapter: false, where: path, ...meaning };
}

/** The label names and problem type that the run recorded in its output folder; null for each one that is not recorded. */
async function labelsOfRun(
  folder: string,
  labels: number,
): Promise<Pick<TrainedHead, 'names' | 'problemType'>> {
  const path = join(recordOf(folder), RUN_FILES.config);
  if (!existsSync(path)) return { names: null, problemType: null };
  // The settings of a run of version 0.2.0 are under `command`.
  const { values, command } = (await readConfigJson(path)) as Readonly<Record<string, Values>>;
  const recorded = values ?? command;
  const names = recorded?.['label-names'];
  const isComplete = Array.isArray(names) && names.length === labels;
  return {
    names: isComplete && names.every((name) => typeof name === 'string') ? names : null,
    problemType: problemTypeOf(recorded?.['problem-type']),
  };
}

/** The problem type that the configuration of a model states; null for a GGUF file, whose metadata has none. */
async function configuredProblemType(
  path: string,
  options: ModelLoadOptions,
): Promise<LabelKind | null> {
  const { path: folder, gguf } = await findFiles(await findModel(path, options));
  if (gguf) return null;
  return problemTypeOf((await readConfigJson(join(folder, 'config.json'))).problem_type);
}

function problemTypeOf(value: unknown): LabelKind | null {
  return kProblemTypes.find((type) => type === value) ?? null;
}

/** Loads a model with a head for these labels. */
export async function loadClassifier(
  path: string,
  { numLabels, problemType, names: labelNames }: LabelScheme,
  options: ModelLoadOptions & Pick<ClassifierOptions, 'seed' | 'newHead'>,
): Promise<SequenceClassifier> {
  const labels = { numLabels, problemType, labelNames };
  return AutoModelForSequenceClassification.fromPretrained(path, { ...options, ...labels });
}

/**
 * Loads the model that the settings name, warms its head up if asked to, and adds the adapter or makes all weights trainable.
 */
export async function loadTunedClassifier(
  settings: TrainSettings,
  setup: TrainSetup<LabelledExamples>,
  { data, progress, signal }: RunContext & { readonly data: LabelledBatches },
): Promise<TunedModel<SequenceClassifier>> {
  const path = settings.model as string;
  const { seed, newHead } = settings;
  const modelOptions = loadOptions(settings, progress);
  const load = (trainable: boolean) =>
    loadClassifier(path, data.scheme, { ...modelOptions, trainable, seed, newHead });
  const model = await load(setup.adapter === null);
  if (model.newlyInitialized.length > 0) {
    const why = newHead ? '' : `, since ${path} has no head`;
    progress.message(`newly initialized${why}: ${model.newlyInitialized.join(', ')}`);
  }
  const { headWarmupEpochs: epochs } = setup.examples;
  const { consistencyWeight } = setup.run.regularizers;
  if (epochs > 0) {
    const { loss, examples } = await warmUpHead(model, data, { epochs, seed, signal });
    progress.message(`head trained on ${examples} examples before tuning: loss ${loss.toFixed(4)}`);
  } else if (model.newlyInitialized.length > 0 && consistencyWeight > 0) {
    progress.warn(
      'the head is newly initialized, so the consistency term pulls the model towards noise; pass --head-warmup-epochs 20 or --consistency-weight 0',
    );
  }
  signal.throwIfAborted();
  if (setup.adapter !== null) {
    if (settings.adapter === undefined)
      return newAdapter(model, setup.adapter, { data, settings, progress, signal });
    return showWarnings(
      await AdapterModel.fromPretrained(model, settings.adapter, {
        ...adapterOptions(settings),
        seed,
        method: setup.adapter.method,
      }),
      progress,
    );
  }
  if (consistencyWeight === 0) return new FullModel(model);
  const teacher = await load(false);
  copyHead(model, teacher);
  const full = new FullModel(model, { teacher });
  progress.message(
    `--consistency-weight with --method full needs a second copy of the model: ${formatBytes(full.teacherBytes)}`,
  );
  return full;
}
