/** From the settings of `balora train` to the library's own options: names change hands here, nothing is decided. */
import type { LoraConfigInput } from '../adapters/config.ts';
import { METHOD_OPTION_NAMES } from '../adapters/methods/registry.ts';
import { ArgumentError } from '../errors.ts';
import { type ResolvedMethod, resolveMethod } from '../train/methods.ts';
import { REGULARIZER_OPTIONS, type RegularizerOptions } from '../train/regularizers.ts';
import type { MethodName } from '../train/types.ts';
import { kebab, toConfig } from './option_table.ts';
import { kTrainDefaults, listOf, pick } from './settings.ts';
import type { TrainSetup } from './tasks/cli_task.ts';
import { CLI_TASKS, cliTaskOf } from './tasks/list.ts';
import type { TrainSettings } from './train_options.ts';

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
      regularizers: method.regularizers,
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
