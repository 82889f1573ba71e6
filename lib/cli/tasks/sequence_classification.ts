/** The classification task on the command line: labelled data, a head that may be new, and the meaning of its label ids. */
import { AdapterModel } from '../../adapters/adapter_model.ts';
import { BATCH_SIZES } from '../../data/data_options.ts';
import { glueTask, type MetricName } from '../../data/glue.ts';
import type { LabelledBatches, LabelledOptions } from '../../data/labelled_batches.ts';
import type { LabelOptions } from '../../data/labels.ts';
import { ArgumentError } from '../../errors.ts';
import { evaluateClassifier } from '../../eval/classify.ts';
import { AutoModelForSequenceClassification } from '../../models/index.ts';
import { sequenceClassification } from '../../tasks/sequence_classification.ts';
import { withDataValues } from '../../train/run_config.ts';
import type { AnyTrainerOptions } from '../../train/trainer_options.ts';
import type { EvaluateSettings } from '../evaluate_options.ts';
import { classifierText } from '../evaluation_view.ts';
import type { ShownExample } from '../example_view.ts';
import {
  adapterOptions,
  type DataOptions,
  type DataPaths,
  loadOptions,
  openTokenizer,
  showWarnings,
} from '../load.ts';
import { listOf, pick } from '../option_table.ts';
import type { Progress } from '../progress.ts';
import { kLabelOptions, kLabelTrainOptions, type TrainSettings } from '../train_options.ts';
import {
  type LabelledExamples,
  loadClassifier,
  loadTunedClassifier,
  openLabelled,
  type TrainedHead,
  trainedHead,
} from './classifier_load.ts';
import type { CliTask } from './cli_task.ts';
import { namesOfHead, warnOfGuessedLabels } from './head_names.ts';

export const sequenceClassificationCli: CliTask<LabelledExamples> = {
  task: sequenceClassification,
  taskType: 'SEQ_CLS',
  ownOptions: [
    ...(Object.keys({ ...kLabelOptions, ...kLabelTrainOptions }) as (keyof TrainSettings)[]),
    'maxLength',
    'labelNoise',
    'classImbalance',
    'rareClass',
  ],
  examples: (settings, { batchSize, evalBatchSize, seed, shuffle, corruption }) => {
    const shared = labelledOptions(settings);
    const groupByLength = settings.groupByLength ?? false;
    return {
      data: {
        ...{ ...shared, batchSize, seed, shuffle, groupByLength },
        ...(corruption && { corruption }),
      },
      evalData: { ...shared, batchSize: evalBatchSize, shuffle: false },
      headWarmupEpochs: settings.headWarmupEpochs ?? 0,
    };
  },
  runSettings: (settings) => {
    const { headWarmupEpochs = 0, metricForBestModel = glueMetric(settings) } = settings;
    return {
      preparation: headWarmupEpochs > 0 ? { headWarmupEpochs } : undefined,
      metricForBestModel,
    };
  },
  prepare: async (settings, setup, { progress, signal }) => {
    const { data: dataOptions, evalData: evalOptions } = setup.examples;
    const path = settings.model as string;
    const modelOptions = loadOptions(settings, progress);
    // The model is checked before its tokenizer is loaded, so that an error about the model comes first.
    const head = await trainedHead(path, { adapter: settings.adapter, ...modelOptions });
    const tokenizer = await openTokenizer(path, modelOptions);
    const open = (files: DataPaths, options: LabelledOptions & Partial<DataOptions>) =>
      openLabelled(files, tokenizer, { ...options, columns: setup.columns, progress, signal });
    const kept = head !== null && (head.inAdapter || !settings.newHead) ? head : null;
    const headNames = kept === null ? undefined : namesOfHead(kept, settings, progress);
    const data = await open(settings.data as DataPaths, {
      ...dataOptions,
      dataWeights: setup.dataWeights,
      ...(headNames === undefined ? {} : { labelNames: headNames }),
    });
    if (kept !== null) warnOfGuessedLabels(kept, data.scheme, { ...settings, progress });
    // The held-out data is read with the label ids of the training data.
    const { numLabels, problemType, names } = data.scheme;
    const known = { numLabels, problemType, ...(names === null ? {} : { labelNames: names }) };
    const evalData =
      settings.evalData === undefined
        ? null
        : await open(settings.evalData, { ...evalOptions, ...known });
    const tuned = await loadTunedClassifier(settings, setup, { data, progress, signal });
    // The record of the head's outputs and label ids, which `evaluate` and `merge` read.
    const meaning = { problemType, labelNames: names ?? undefined };
    return {
      run: { ...setup.run, config: withDataValues(setup.run.config, meaning) },
      input: {
        tuned,
        data,
        ...(evalData === null ? {} : { evalData }),
        signal,
      } as unknown as AnyTrainerOptions,
      tokenizer,
      statistics: data.statistics,
      format: data.format,
      examples: async () => data.firstRows.map((row) => shownExample(data, row)),
      close: async () => {},
    };
  },
  loadBase: async (path, { adapter, progress, ...options }) => {
    const head = await trainedHead(path, { adapter, ...options });
    const newHead = head?.inAdapter ?? false;
    const model = await AutoModelForSequenceClassification.fromPretrained(path, {
      ...(head === null ? {} : labelOptionsOf(head)),
      ...options,
      newHead,
    });
    if (head !== null && head.problemType === null && head.labels > 1) {
      progress.warn(
        `${head.where} does not say what its ${head.labels} outputs mean, so ${model.problemType} becomes the problem_type of ` +
          'the merged config.json; change it there if it is another one',
      );
    }
    return { model, tokenizer: await openTokenizer(path, options) };
  },
  evaluate: async (settings, { progress, signal }) => {
    const { adapter } = settings;
    const path = settings.model as string;
    const modelOptions = loadOptions(settings, progress);
    const head = await trainedHead(path, { adapter, ...modelOptions });
    const tokenizer = await openTokenizer(path, modelOptions);
    const data = await openLabelled(settings.data as string, tokenizer, {
      ...labelledOptions(settings),
      ...(head === null ? {} : labelsOf(head, settings, progress)),
      columns: listOf(settings.columns),
      batchSize: settings.perDeviceEvalBatchSize ?? BATCH_SIZES.command,
      shuffle: false,
      progress,
      signal,
    });
    if (head !== null) warnOfGuessedLabels(head, data.scheme, { ...settings, progress });
    const newHead = head?.inAdapter ?? false;
    const model = await loadClassifier(path, data.scheme, { ...modelOptions, newHead });
    model.checkLength(data.statistics.longest);
    if (adapter !== undefined)
      showWarnings(
        await AdapterModel.fromPretrained(model, adapter, adapterOptions(settings)),
        progress,
      );
    if (head === null) {
      const drawn = model.newlyInitialized.join(', ');
      progress.warn(
        `${path} has no trained head (newly initialized: ${drawn}), so the numbers mean nothing; pass --adapter, or a trained model`,
      );
    }
    const result = await evaluateClassifier(model, data.batches(), { signal });
    return { result, text: classifierText(result, data.scheme.names) };
  },
};

/** A text with its label, of which no token is trained on: the head learns from the whole text. */
function shownExample(data: LabelledBatches, row: number): ShownExample {
  const { inputIds: ids, labels } = data.collate([row]);
  const { names, problemType } = data.scheme;
  const nameOf = (id: number) => names?.[id] ?? String(id);
  const label =
    problemType === 'single_label_classification'
      ? nameOf(labels[0] as number)
      : problemType === 'regression'
        ? [...labels].join(', ')
        : [...labels].flatMap((on, id) => (on ? [nameOf(id)] : [])).join(', ') || 'none';
  return { where: `row ${row}`, ids, supervised: new Uint8Array(ids.length), label };
}

/** The metric by which GLUE ranks its task, used to choose the best step where evaluations are made during training. */
function glueMetric({ glue, evalData, evalSteps = 0 }: TrainSettings): MetricName | undefined {
  if (glue === undefined || evalData === undefined || evalSteps === 0) return undefined;
  return glueTask(glue).metrics[0];
}

/** Options of labelled rows: their fields, labels and greatest length. */
function labelledOptions(
  settings: Pick<TrainSettings, keyof typeof kLabelOptions | 'maxLength'>,
): LabelledOptions {
  const labelNames = listOf(settings.labelNames);
  return {
    ...pick(settings, [
      'glue',
      'textField',
      'textPairField',
      'labelField',
      'numLabels',
      'problemType',
    ]),
    ...(labelNames === undefined ? {} : { labelNames }),
    maxLength: settings.maxLength,
  };
}

/**
 * The labels to evaluate with: those of the trained head, unless the settings state more. Deriving them from the held-out data
 * could be wrong: it may lack a class, so that its sorted names get other ids, and the targets of a regression with several
 * outputs look like those of a multi-label task.
 * @throws ArgumentError for another number of labels
 */
function labelsOf(head: TrainedHead, settings: EvaluateSettings, progress: Progress): LabelOptions {
  const { numLabels, labelNames, glue } = settings;
  const problemType = settings.problemType ?? (glue === undefined ? head.problemType : null);
  const requested = numLabels ?? listOf(labelNames)?.length;
  if (requested !== undefined && requested !== head.labels) {
    const option = numLabels === undefined ? 'label-names' : 'num-labels';
    throw new ArgumentError(
      `the head in ${head.where} has ${head.labels} labels, and --${option} says ${requested}; leave --${option} out`,
    );
  }
  const names = namesOfHead(head, settings, progress);
  const meaning = problemType === null ? {} : { problemType };
  if (names !== undefined) return { ...meaning, labelNames: names };
  const isOpen = glue === undefined && labelNames === undefined;
  return { ...meaning, ...(isOpen ? { numLabels: head.labels } : {}) };
}

/** The labels of a trained head, as the options with which its model is loaded. */
function labelOptionsOf({ labels, names, problemType }: TrainedHead): LabelOptions {
  const meaning = problemType === null ? {} : { problemType };
  return { numLabels: labels, labelNames: names, ...meaning };
}
