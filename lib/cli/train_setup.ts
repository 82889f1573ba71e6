/**
 * The conversion from the settings of `balora train` to the options of the library. Only names change; no decision is
 * made here.
 */
import { type LoraConfigInput, loraConfig } from '../adapters/config.ts';
import type { AdapterMethodName } from '../adapters/create.ts';
import { loraChecks, loraOptions } from '../adapters/lora_options.ts';
import { presetSettings } from '../adapters/methods/preset.ts';
import type { MethodName } from '../adapters/methods/registry.ts';
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
import { TASKS } from '../tasks/list.ts';
import { REGULARIZER_OPTIONS, termOptionsOf } from '../train/regularizers.ts';
import { resolveRun } from '../train/resolve_run.ts';
import { runConfigOf } from '../train/run_config.ts';
import {
  bestOptions,
  optimizationOptions,
  outputOptions,
  resourceOptions,
} from '../train/schema.ts';
import { fileOptions, flagOf, listOf, pick } from './option_table.ts';
import type { TrainSetup } from './tasks/cli_task.ts';
import { CLI_TASKS, cliTaskOf } from './tasks/list.ts';
import { kTrainDefaults, kTrainOptions, type TrainSettings } from './train_options.ts';

/**
 * Distributes the settings over the options of the library.
 * @param fromFile options that a configuration file gives
 * @throws ArgumentError for settings that exclude each other
 */
export function trainSetup(
  settings: TrainSettings,
  fromFile: ReadonlySet<string> = new Set(),
): TrainSetup {
  checkTask(settings);
  checkWeights([settings.data ?? []].flat().length, settings.dataWeights);
  const task = cliTaskOf(settings);
  const whole = { ...kTrainDefaults, ...settings };
  const { seed, method, shuffle, perDeviceTrainBatchSize: batchSize } = whole;
  const adapter = adapterOf(settings, method);
  const evalBatchSize = settings.perDeviceEvalBatchSize ?? batchSize;
  const training = {
    ...pickOptions(settings, { ...optimizationOptions, ...outputOptions }),
    ...pickOptions(settings, { ...bestOptions, ...resourceOptions }),
    ...pick(settings, ['evalData', 'samplePrompts']),
    regularizers: pickOptions(settings, REGULARIZER_OPTIONS),
    seed,
    ...task.runSettings?.(settings),
  };
  const about = { task: task.task.name, method };
  const table = recordedOptions(settings, adapter);
  const config = runConfigOf(table, settings, { ...about, fromFile });
  return {
    run: resolveRun(training, { ...about, name: flagOf, config }),
    adapter: adapter && {
      ...adapter,
      method: method as AdapterMethodName,
      taskType: task.taskType,
      ...(settings.model === undefined
        ? {}
        : { baseModelNameOrPath: hubIdOf(settings.model) ?? settings.model }),
    },
    columns: listOf(settings.columns),
    dataWeights: settings.dataWeights,
    examples: task.examples(settings, {
      ...{ batchSize, evalBatchSize, seed, shuffle },
      corruption: corruptionOf(settings),
    }),
  };
}

/** The options that run/config.json records: those that have a meaning for the run. */
function recordedOptions(settings: TrainSettings, adapter: LoraConfigInput | null): OptionTable {
  const { task, ownOptions } = cliTaskOf(settings);
  const tasks = Object.values(CLI_TASKS).flatMap((other) => other.ownOptions as string[]);
  const kinds = {
    task: { all: tasks, own: ownOptions as readonly string[] },
    terms: {
      all: Object.keys(REGULARIZER_OPTIONS),
      own: Object.keys(termOptionsOf(TASKS[task.name])),
    },
    adapter: {
      all: Object.keys(loraOptions),
      own:
        adapter === null || settings.adapter !== undefined ? [] : Object.keys(loraConfig(adapter)),
    },
  };
  const entries = Object.entries(fileOptions(kTrainOptions)).filter(([key]) =>
    Object.values(kinds).every(({ all, own }) => !all.includes(key) || own.includes(key)),
  );
  return Object.fromEntries(entries);
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

/**
 * The settings of a new adapter; null for full fine-tuning. The checks of combined options are run here as well, so that their
 * messages name flags.
 */
function adapterOf(settings: TrainSettings, method: MethodName): LoraConfigInput | null {
  const given = pickOptions(settings, loraOptions);
  const [shape] = Object.keys(given);
  if (settings.adapter !== undefined && shape !== undefined) {
    throw new ArgumentError(
      `${flagOf(shape)} cannot be set with --adapter, which brings its own; leave one of them out`,
    );
  }
  if (settings.adapter !== undefined && method === 'full') {
    throw new ArgumentError(
      '--adapter cannot go with --method full; merge it into the model first, with balora merge',
    );
  }
  const adapter = presetSettings(method, given as LoraConfigInput);
  if (adapter === null) return null;
  const whole = Object.entries({ ...defaultsOf(loraOptions), ...adapter }).map(([key, value]) => [
    key,
    normalized(loraOptions[key as keyof typeof loraOptions], value),
  ]);
  const values = Object.fromEntries(whole) as ResolvedOf<typeof loraOptions>;
  checkTogether(loraChecks, values, { name: flagOf });
  return adapter;
}
