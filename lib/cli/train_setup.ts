/** From the settings of `balora train` to the library's own options: names change hands here, nothing is decided. */
import type { LoraConfigInput } from '../adapters/config.ts';
import type { AdapterConfigInput } from '../adapters/make_adapter.ts';
import { METHOD_OPTION_NAMES } from '../adapters/methods/registry.ts';
import { ArgumentError } from '../errors.ts';
import type { TaskName } from '../tasks/list.ts';
import { type ResolvedMethod, resolveMethod } from '../train/methods.ts';
import type { OptionsInput } from '../train/options.ts';
import { REGULARIZER_OPTIONS, type RegularizerOptions } from '../train/regularizers.ts';
import type { MethodName } from '../train/types.ts';
import { kebab, toConfig } from './option_table.ts';
import type { Examples } from './tasks/cli_task.ts';
import { CLI_TASKS, cliTaskOf } from './tasks/list.ts';
import type { TrainSettings } from './train_options.ts';

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

/** Settings sorted by who needs them. E is what the task makes of the options of its data. */
export interface TrainSetup<E extends Examples = Examples> {
  readonly task: TaskName;
  readonly method: ResolvedMethod;
  /** What a fresh adapter is made with; null for full fine-tuning. */
  readonly adapter: AdapterConfigInput | null;
  /** Options of the Trainer. */
  readonly training: OptionsInput;
  /** Columns of files without header. */
  readonly columns: readonly string[] | undefined;
  /** Options of the data. */
  readonly examples: E;
}

/**
 * Sorts the settings.
 * @throws ArgumentError for settings that exclude each other
 */
export function trainSetup(settings: TrainSettings): TrainSetup {
  checkTask(settings);
  const task = cliTaskOf(settings);
  const seed = settings.seed ?? kTrainDefaults.seed;
  const method = chooseMethod(settings);
  const batchSize = settings.perDeviceTrainBatchSize ?? kTrainDefaults.perDeviceTrainBatchSize;
  const evalBatchSize = settings.perDeviceEvalBatchSize ?? batchSize;
  const shuffle = settings.shuffle ?? kTrainDefaults.shuffle;
  return {
    task: task.task.name,
    method,
    adapter: method.adapter && {
      ...method.adapter,
      taskType: task.taskType,
      ...(settings.model === undefined ? {} : { baseModelNameOrPath: settings.model }),
    },
    training: {
      ...pick(settings, kOptimizationKeys),
      ...pick(settings, kOutputKeys),
      ...pick(settings, ['memoryBudget', 'cacheTeacher', 'captureGraphs']),
      regularizers: pick(settings, kRegularizerKeys), // over those of the method, which the adapter carries
      seed,
      runConfig: toConfig({ ...kTrainDefaults, ...settings }),
    },
    columns: listOf(settings.columns),
    examples: task.examples(settings, { batchSize, evalBatchSize, seed, shuffle }),
  };
}

/** Refuses an option that only other tasks have a use for. @throws ArgumentError naming the option */
export function checkTask(settings: TrainSettings): void {
  const task = cliTaskOf(settings);
  const others = Object.values(CLI_TASKS).flatMap(({ own }) => own);
  const odd = others.find(
    (key) => !task.own.includes(key) && settings[key] !== undefined && settings[key] !== false,
  );
  if (odd === undefined) return;
  const owners = Object.values(CLI_TASKS).filter(({ own }) => own.includes(odd));
  const [owner] = owners;
  throw new ArgumentError(
    settings.task === undefined && owners.length === 1 && owner !== undefined
      ? `--${kebab(odd)} needs --task ${owner.task.name}`
      : `--${kebab(odd)} has no meaning for --task ${task.task.name}`,
  );
}

export function listOf(value: string | string[] | undefined): string[] | undefined {
  return typeof value === 'string' ? [value] : value;
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

const kRegularizerKeys = Object.keys(REGULARIZER_OPTIONS) as (keyof RegularizerOptions &
  keyof TrainSettings)[];

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
export function pick<T extends object, const K extends keyof T>(
  from: T,
  keys: readonly K[],
): Pick<T, K> {
  return Object.fromEntries(
    keys.filter((key) => from[key] !== undefined).map((key) => [key, from[key]]),
  ) as Pick<T, K>;
}
