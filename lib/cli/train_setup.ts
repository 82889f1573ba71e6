/**
 * The conversion from the settings of `balora train` to the options of the library. Only names change; no decision is
 * made here.
 */
import type { LoraConfigInput } from '../adapters/config.ts';
import { loraChecks, loraOptions } from '../adapters/lora_options.ts';
import { METHODS } from '../adapters/methods/registry.ts';
import {
  type CorruptionOptions,
  corruptionChecks,
  corruptionOptions,
} from '../data/corruption_options.ts';
import { checkWeights } from '../data/mixed_rows.ts';
import { ArgumentError } from '../errors.ts';
import { hubIdOf } from '../io/hub/names.ts';
import {
  checkTogether,
  defaultsOf,
  normalized,
  type OptionTable,
  type ResolvedOf,
  type ValuesOf,
} from '../options/option.ts';
import { TASKS, type TaskName } from '../tasks/list.ts';
import { type ResolvedMethod, resolveMethod, withOptimizationOf } from '../train/methods.ts';
import { resolveOptions } from '../train/options.ts';
import { REGULARIZER_OPTIONS } from '../train/regularizers.ts';
import {
  bestOptions,
  optimizationOptions,
  outputOptions,
  resourceOptions,
  trainerChecks,
} from '../train/schema.ts';
import type { MethodName } from '../train/types.ts';
import { flagOf, listOf, pick, toConfig } from './option_table.ts';
import type { TrainSetup } from './tasks/cli_task.ts';
import { CLI_TASKS, cliTaskOf } from './tasks/list.ts';
import { kTrainDefaults, type TrainSettings } from './train_options.ts';

/**
 * Distributes the settings over the options of the library.
 * @throws ArgumentError for settings that exclude each other
 */
export function trainSetup(settings: TrainSettings): TrainSetup {
  checkTask(settings);
  checkTogether(trainerChecks, settings, { name: flagOf });
  checkWeights([settings.data ?? []].flat().length, settings.dataWeights);
  const task = cliTaskOf(settings);
  const seed = settings.seed ?? kTrainDefaults.seed;
  const method = chooseMethod(settings);
  const batchSize = settings.perDeviceTrainBatchSize ?? kTrainDefaults.perDeviceTrainBatchSize;
  const evalBatchSize = settings.perDeviceEvalBatchSize ?? batchSize;
  const shuffle = settings.shuffle ?? kTrainDefaults.shuffle;
  const training = {
    ...pickOptions(settings, optimizationOptions),
    ...pickOptions(settings, outputOptions),
    ...pickOptions(settings, bestOptions),
    ...pickOptions(settings, resourceOptions),
    regularizers: pickOptions(settings, REGULARIZER_OPTIONS), // they override those of the method, which the adapter records
    seed,
    runConfig: toConfig({ ...kTrainDefaults, ...settings }),
  };
  // The options are checked here, before a model is loaded.
  const { regularizers } = method;
  resolveOptions(
    {
      ...withOptimizationOf(method.name, training),
      ...{ regularizers, ...pick(settings, ['evalData', 'samplePrompts']) },
    },
    task.task.name,
  );
  return {
    task: task.task.name,
    method,
    adapter: method.adapter && {
      ...method.adapter,
      taskType: task.taskType,
      ...(settings.model === undefined
        ? {}
        : { baseModelNameOrPath: hubIdOf(settings.model) ?? settings.model }),
    },
    training,
    columns: listOf(settings.columns),
    dataWeights: settings.dataWeights,
    examples: task.examples(settings, {
      ...{ batchSize, evalBatchSize, seed, shuffle },
      corruption: corruptionOf(settings),
    }),
  };
}

/** The corruptions of the training data; undefined where none is asked for. */
function corruptionOf(settings: TrainSettings): CorruptionOptions | undefined {
  const given = pickOptions(settings, corruptionOptions);
  checkTogether(corruptionChecks, given, { name: flagOf });
  return Object.keys(given).length === 0 ? undefined : given;
}

/**
 * Refuses an option that only other tasks use.
 * @throws ArgumentError naming the option
 */
export function checkTask(settings: TrainSettings): void {
  const task = cliTaskOf(settings);
  const others = Object.values(CLI_TASKS).flatMap(({ ownOptions }) => ownOptions);
  const foreign = others.find(
    (key) =>
      !task.ownOptions.includes(key) && settings[key] !== undefined && settings[key] !== false,
  );
  if (foreign === undefined) return;
  const owners = Object.values(CLI_TASKS).filter(({ ownOptions }) => ownOptions.includes(foreign));
  const [owner] = owners;
  throw new ArgumentError(
    settings.task === undefined && owners.length === 1 && owner !== undefined
      ? `${flagOf(foreign)} needs --task ${owner.task.name}`
      : `${flagOf(foreign)} has no meaning for --task ${task.task.name}; leave it out`,
  );
}

/** The settings that belong to a table of options. */
function pickOptions<T extends OptionTable>(settings: TrainSettings, table: T): ValuesOf<T> {
  return pick(settings as object, Object.keys(table) as never[]) as ValuesOf<T>;
}

function chooseMethod(settings: TrainSettings): ResolvedMethod {
  const name: MethodName = settings.method ?? kTrainDefaults.method;
  const adapter = pickOptions(settings, loraOptions);
  const [shape] = Object.keys(adapter);
  if (settings.adapter !== undefined && shape !== undefined) {
    throw new ArgumentError(
      `${flagOf(shape)} cannot be set with --adapter, which brings its own; leave one of them out`,
    );
  }
  if (settings.adapter !== undefined && name === 'full') {
    throw new ArgumentError(
      '--adapter cannot go with --method full; merge it into the model first, with balora merge',
    );
  }
  const { task = 'causal-lm' } = settings;
  const regularizers = pickOptions(settings, REGULARIZER_OPTIONS);
  checkCombinations(name, task, { adapter, regularizers });
  return resolveMethod(name, { adapter: adapter as LoraConfigInput, regularizers, task });
}

/** Runs the library's checks of combined options here, so that their messages name flags. */
function checkCombinations(
  method: MethodName,
  task: TaskName,
  { adapter, regularizers }: { adapter: object; regularizers: object },
): void {
  const preset = METHODS[method];
  const spelling = { name: flagOf };
  const weights = {
    ...defaultsOf(REGULARIZER_OPTIONS, { task }),
    ...preset.regularizers?.[task],
    ...regularizers,
  };
  for (const { checks = [] } of TASKS[task].terms) checkTogether(checks, weights, spelling);
  if (preset.adapter === null) return;
  const given: Record<string, unknown> = { ...preset.adapter, ...adapter };
  const shape = Object.fromEntries(
    Object.entries({ ...defaultsOf(loraOptions), ...given }).map(([key, value]) => [
      key,
      normalized(loraOptions[key as keyof typeof loraOptions], value),
    ]),
  );
  checkTogether(loraChecks, shape as ResolvedOf<typeof loraOptions>, spelling);
}
