/**
 * The options of a run, resolved once: every value is checked, every default filled in, and the terms of the loss are made. The
 * command line and the Trainer call resolveRun(), and everything else reads its result.
 */
import { ArgumentError } from '../errors.ts';
import type { Term } from '../losses/term.ts';
import { learningRateSchedule } from '../optim/schedulers.ts';
import { checkTogether, type InputOf, type ResolvedOf, resolveTable } from '../options/option.ts';
import { TASKS, type TaskName } from '../tasks/list.ts';
import { regularizersOf, withOptimizationOf } from './methods.ts';
import {
  type RegularizerOptions,
  type ResolvedRegularizers,
  resolveRegularizers,
  termOptionsOf,
  termsOf,
} from './regularizers.ts';
import { type RunConfig, runConfigOf } from './run_config.ts';
import {
  bestOptions,
  optimizationOptions,
  outputOptions,
  preparationOptions,
  resourceOptions,
  seedOptions,
  trainerChecks,
  trainerOptions,
} from './schema.ts';
import type {
  BestOptions,
  MethodName,
  OptimizationOptions,
  OutputOptions,
  ResourceOptions,
} from './types.ts';

export interface ResolvedOptimization extends ResolvedOf<typeof optimizationOptions> {}

export interface ResolvedOutput extends ResolvedOf<typeof outputOptions> {}

export interface ResolvedResources extends ResolvedOf<typeof resourceOptions> {}

/** The options that stand for themselves, in no group. */
const kSingleOptions = { ...seedOptions, ...preparationOptions, ...bestOptions };

/** Options of a run with every default filled in. */
export interface ResolvedRun extends Readonly<ResolvedOf<typeof kSingleOptions>> {
  readonly task: TaskName;
  /** The method whose settings fill in what the caller left open; null: none. */
  readonly method: MethodName | null;
  readonly optimization: ResolvedOptimization;
  readonly regularizers: ResolvedRegularizers;
  readonly output: ResolvedOutput;
  readonly resources: ResolvedResources;
  /** Terms of the loss beside that of the task; a loss of the caller's own replaces them all. */
  readonly terms: readonly Term[];
  /** The settings for run/config.json. */
  readonly config: RunConfig;
  /** The same settings resolved for another method. */
  forMethod(method: MethodName | null): ResolvedRun;
}

/** The option by which a run keeps its teacher's outputs; null if it does not. */
export function teacherCacheOption({
  resources,
}: ResolvedRun): 'cacheTeacher' | 'teacherCache' | null {
  if (resources.cacheTeacher) return 'cacheTeacher';
  return resources.teacherCache === null ? null : 'teacherCache';
}

/** The settings that a run is resolved from, as the caller gives them. */
export interface RunSettings
  extends OptimizationOptions,
    OutputOptions,
    ResourceOptions,
    BestOptions,
    InputOf<typeof seedOptions> {
  regularizers?: RegularizerOptions;
  /** Terms of the caller's own. */
  terms?: readonly Term[];
  /** A loss of the caller's own; here it only counts whether there is one, as with the data and the prompts. */
  loss?: unknown;
  evalData?: unknown;
  samplePrompts?: unknown;
}

/** The circumstances in which settings are resolved. */
interface RunCircumstances {
  /** Default causal-lm. */
  readonly task?: TaskName;
  /** Default null, no method. */
  readonly method?: MethodName | null;
  /** Gives the caller's spelling of an option's name; by default the library's. */
  readonly name?: (key: string) => string;
  /** The record of the settings, where there are more of them than those of the Trainer. */
  readonly config?: RunConfig;
}

/**
 * Checks the settings of a run and fills in what was left open: by the method, and then by defaults.
 * @throws ArgumentError with the option's name and value
 */
export function resolveRun(
  settings: RunSettings,
  { task = 'causal-lm', method = null, name, config }: RunCircumstances = {},
): ResolvedRun {
  const given = withOptimizationOf(method, settings);
  const optimization = resolveTable(optimizationOptions, given);
  const { output, ...whenWritten } = resolveTable(outputOptions, given);
  const single = resolveTable(kSingleOptions, given);
  checkTogether(trainerChecks, given, { name });
  checkSchedule(optimization);
  const own = settings.regularizers ?? {};
  const isCustom = settings.loss !== undefined;
  const weights = isCustom ? own : regularizersOf(method, { task, given: own });
  const regularizers = resolveRegularizers(weights, task, name);
  return {
    ...{ task, method, optimization, regularizers },
    resources: resolveTable(resourceOptions, given),
    output: { ...whenWritten, output },
    ...single,
    terms: isCustom ? [] : termsOf(TASKS[task], regularizers, settings.terms),
    config: config ?? configOf(settings, { task, method }),
    forMethod: (other) => resolveRun(settings, { task, method: other, name }),
  };
}

/** The record of the Trainer's own options. */
function configOf(
  settings: RunSettings,
  about: { task: TaskName; method: MethodName | null },
): RunConfig {
  const terms = settings.loss === undefined ? termOptionsOf(TASKS[about.task]) : {};
  const table = Object.entries({ ...trainerOptions, ...terms }).filter(
    ([, { only }]) => only !== 'library',
  );
  return runConfigOf(Object.fromEntries(table), { ...settings, ...settings.regularizers }, about);
}

/**
 * Refuses options from which no schedule can be made, whatever the length of the run.
 * @throws ArgumentError that names `lrSchedulerKwargs`
 */
function checkSchedule(options: ResolvedOptimization): void {
  try {
    learningRateSchedule({
      scheduler: options.lrSchedulerType,
      learningRate: options.learningRate,
      options: options.lrSchedulerKwargs,
      total: 1,
      warmup: 0,
    });
  } catch (error) {
    if (!(error instanceof ArgumentError)) throw error;
    throw new ArgumentError(`lrSchedulerKwargs: ${error.message}`);
  }
}
