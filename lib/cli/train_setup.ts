/** From the settings of `balora train` to the library's own options: names change hands here, nothing is decided. */
import type { LoraConfigInput } from '../adapters/config.ts';
import { METHOD_OPTION_NAMES } from '../adapters/methods/registry.ts';
import type { BatchOptions } from '../data/batches.ts';
import type { FormatOptions } from '../data/example_format.ts';
import { glueTask, type MetricName } from '../data/glue.ts';
import type { LabelledOptions } from '../data/labelled_batches.ts';
import { ArgumentError } from '../errors.ts';
import { type ResolvedMethod, resolveMethod } from '../train/methods.ts';
import type { OptionsInput } from '../train/options.ts';
import type { MethodName } from '../train/types.ts';
import { kebab, toConfig } from './option_table.ts';
import { kLabelOptions, type TrainSettings } from './train_options.ts';

/** What the command line chooses where the library leaves the choice open. */
export const kTrainDefaults = {
  method: 'balora',
  dtype: 'f32',
  device: 'cpu',
  perDeviceTrainBatchSize: 8,
  maxLength: 512,
  seed: 42,
  shuffle: true,
} as const satisfies Partial<TrainSettings>;

export interface TrainSetup {
  readonly method: ResolvedMethod;
  /** What a fresh adapter is made with; null for full fine-tuning. */
  readonly adapter: LoraConfigInput | null;
  /** Options of the Trainer. */
  readonly training: OptionsInput;
  readonly batches: BatchOptions;
  /** Held-out data: in order, never packed, so that results belong to rows. */
  readonly evalBatches: BatchOptions;
  /** Columns of files without header. */
  readonly columns: readonly string[] | undefined;
  /** The same of a classifier; null for a language model. */
  readonly labelled: LabelledSetup | null;
}

/** What a classifier has instead of prompts and responses. */
export interface LabelledSetup {
  readonly data: LabelledOptions;
  readonly evalData: LabelledOptions;
  /** Passes of the linear probe; 0: none. */
  readonly headWarmupEpochs: number;
  readonly metricForBestModel: MetricName | undefined;
}

/**
 * Sorts the settings.
 * @throws ArgumentError for settings that exclude each other
 */
export function trainSetup(settings: TrainSettings): TrainSetup {
  checkTask(settings);
  const seed = settings.seed ?? kTrainDefaults.seed;
  const method = chooseMethod(settings);
  const batchSize = settings.perDeviceTrainBatchSize ?? kTrainDefaults.perDeviceTrainBatchSize;
  const evalBatchSize = settings.perDeviceEvalBatchSize ?? batchSize;
  const examples = exampleOptions(settings);
  return {
    method,
    adapter: method.adapter && {
      ...method.adapter,
      taskType: isClassification(settings) ? 'SEQ_CLS' : 'CAUSAL_LM',
      ...(settings.model === undefined ? {} : { baseModelNameOrPath: settings.model }),
    },
    training: {
      ...pick(settings, kOptimizationKeys),
      ...pick(settings, kOutputKeys),
      ...pick(settings, ['memoryBudget', 'cacheTeacher', 'captureGraphs']),
      regularizers: method.regularizers,
      seed,
      runConfig: toConfig({ ...kTrainDefaults, ...settings }),
    },
    batches: {
      ...examples,
      batchSize,
      seed,
      packing: settings.packing ?? false,
      shuffle: settings.shuffle ?? kTrainDefaults.shuffle,
    },
    evalBatches: { ...examples, batchSize: evalBatchSize, shuffle: false },
    columns: listOf(settings.columns),
    labelled: isClassification(settings)
      ? labelledSetup(settings, { batchSize, evalBatchSize, seed })
      : null,
  };
}

function labelledSetup(
  settings: TrainSettings,
  { batchSize, evalBatchSize, seed }: Record<'batchSize' | 'evalBatchSize' | 'seed', number>,
): LabelledSetup {
  const shared = labelledOptions(settings);
  return {
    data: {
      ...shared,
      batchSize,
      seed,
      shuffle: settings.shuffle ?? kTrainDefaults.shuffle,
      groupByLength: settings.groupByLength ?? false,
    },
    evalData: { ...shared, batchSize: evalBatchSize, shuffle: false },
    headWarmupEpochs: settings.headWarmupEpochs ?? 0,
    metricForBestModel: settings.metricForBestModel ?? glueMetric(settings),
  };
}

/** What GLUE judges its task by, where evaluations on the way have to choose. */
function glueMetric({ glue, evalData, evalSteps = 0 }: TrainSettings): MetricName | undefined {
  if (glue === undefined || evalData === undefined || evalSteps === 0) return undefined;
  return glueTask(glue).metrics[0];
}

/** Fields, labels and length of labelled rows. */
export function labelledOptions(
  settings: Pick<
    TrainSettings,
    | 'glue'
    | 'textField'
    | 'textPairField'
    | 'labelField'
    | 'numLabels'
    | 'labelNames'
    | 'problemType'
    | 'maxLength'
  >,
): LabelledOptions & { maxLength: number } {
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
    maxLength: settings.maxLength ?? kTrainDefaults.maxLength,
  };
}

export function isClassification({ task }: Pick<TrainSettings, 'task'>): boolean {
  return task === 'sequence-classification';
}

/** Options of one task mean nothing to the other. @throws ArgumentError for one that is given all the same */
export function checkTask(settings: TrainSettings): void {
  const classifier = isClassification(settings);
  const keys: readonly (keyof TrainSettings)[] = classifier
    ? ['promptTemplate', 'promptField', 'responseField', 'packing']
    : [
        ...(Object.keys(kLabelOptions) as (keyof TrainSettings)[]),
        'groupByLength',
        'newHead',
        'headWarmupEpochs',
        'metricForBestModel',
      ];
  const odd = keys.find((key) => settings[key] !== undefined && settings[key] !== false);
  if (odd === undefined) return;
  throw new ArgumentError(
    classifier
      ? `--${kebab(odd)} has no meaning for --task sequence-classification`
      : `--${kebab(odd)} needs --task sequence-classification`,
  );
}

export function listOf(value: string | string[] | undefined): string[] | undefined {
  return typeof value === 'string' ? [value] : value;
}

/** Template, fields and length. */
export function exampleOptions(
  settings: Pick<TrainSettings, 'promptTemplate' | 'promptField' | 'responseField' | 'maxLength'>,
): FormatOptions & { maxLength: number } {
  return {
    ...pick(settings, ['promptTemplate', 'promptField', 'responseField']),
    maxLength: settings.maxLength ?? kTrainDefaults.maxLength,
  };
}

const kOptimizationKeys = [
  'optim',
  'loraplusLrRatio',
  'learningRate',
  'lrSchedulerType',
  'lrSchedulerKwargs',
  'warmupSteps',
  'weightDecay',
  'adamBeta1',
  'adamBeta2',
  'adamEpsilon',
  'maxGradNorm',
  'numTrainEpochs',
  'maxSteps',
  'gradientAccumulationSteps',
] as const;

const kOutputKeys = [
  'output',
  'overwrite',
  'resume',
  'saveSteps',
  'saveMinutes',
  'evalSteps',
  'loggingSteps',
  'export',
] as const;

const kAdapterKeys = [
  'r',
  'loraAlpha',
  'rankPattern',
  'alphaPattern',
  'initLoraWeights',
  'targetModules',
  'excludeModules',
  'layersToTransform',
  'layersPattern',
  'modulesToSave',
  'loraDropout',
  ...METHOD_OPTION_NAMES,
] as const;

const kRegularizerKeys = [
  'consistencyWeight',
  'diversityWeight',
  'svdWeight',
  'temperature',
  'entropyTopK',
  'svdTopK',
  'svdNorm',
  'positions',
  'variant',
  'consistencySchedule',
  'consistencyWeightMin',
  'consistencyWeightMax',
  'regularizerSchedule',
  'regularizerWarmupRatio',
  'regularizerRampRatio',
  'regularizerWarmupSteps',
] as const;

function chooseMethod(settings: TrainSettings): ResolvedMethod {
  const name: MethodName = settings.method ?? kTrainDefaults.method;
  const adapter = pick(settings, kAdapterKeys);
  const [shape] = Object.keys(adapter);
  if (settings.adapter !== undefined && shape !== undefined) {
    throw new ArgumentError(`--${kebab(shape)} cannot be set: --adapter brings its own shape`);
  }
  if (settings.adapter !== undefined && name === 'full') {
    throw new ArgumentError(
      '--adapter cannot go with --method full: merge it into the model first',
    );
  }
  if (settings.resume && settings.output === undefined) {
    throw new ArgumentError('--resume needs --output, the folder of the run');
  }
  return resolveMethod(name, {
    adapter: adapter as LoraConfigInput,
    regularizers: pick(settings, kRegularizerKeys),
    task: settings.task ?? 'causal-lm',
  });
}

/** The given keys that have a value. */
function pick<T extends object, const K extends keyof T>(from: T, keys: readonly K[]): Pick<T, K> {
  return Object.fromEntries(
    keys.filter((key) => from[key] !== undefined).map((key) => [key, from[key]]),
  ) as Pick<T, K>;
}
