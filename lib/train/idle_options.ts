/**
 * Options of a run that were given and change nothing in it, such as the momentum of another optimiser. They are said rather than
 * refused: the run is sound, and one that was begun with such an option can be resumed.
 */
import { METHODS } from '../adapters/methods/registry.ts';
import { learningRateSchedule, type ScheduleInput } from '../optim/schedulers.ts';
import type { Requirement, Values } from '../options/option.ts';
import { anyAbove0, unmet } from '../options/requirements.ts';
import { shown } from '../shown.ts';
import { type AnyTask, taskOf } from '../tasks/list.ts';
import { REGULARIZER_OPTIONS } from './regularizers.ts';
import type { ResolvedOptimization, ResolvedRun } from './resolve_run.ts';
import { optimizationOptions, outputOptions } from './schema.ts';
import type { AnyTrainerOptions } from './trainer_options.ts';

/** Messages that name the options which change nothing in a run, and what each of them needs. */
export function idleOptions(input: AnyTrainerOptions, options: ResolvedRun): string[] {
  const { optimization, output, regularizers } = options;
  const { evalData, terms, loss } = input;
  const task = taskOf(input.tuned.model);
  const values = { ...optimization, ...output, ...regularizers, evalData, terms, loss };
  return [
    ...unmet({ ...optimizationOptions, ...outputOptions }, values),
    ...idleKwargs(optimization),
    ...unmet(REGULARIZER_OPTIONS, values, { task: task.name }, kOwnLoss),
    ...idleMethod(input, options, task),
  ];
}

/** The need of every option of the terms. */
const kOwnLoss: Requirement = {
  holds: ({ loss }) => loss === undefined,
  needs: () => "the task's own loss, which a loss of one's own replaces",
};

/** The message about a method whose terms of the loss have weights of 0. */
function idleMethod(
  { tuned, loss, terms: own = [] }: AnyTrainerOptions,
  { regularizers }: ResolvedRun,
  task: AnyTask,
): string[] {
  const { method = null } = tuned;
  if (method === null || loss !== undefined || own.length > 0) return [];
  const { regularizers: weights, adapter } = METHODS[method];
  const keys = Object.keys(weights?.[task.name] ?? {}).filter((key) => key.endsWith('Weight'));
  const { holds, needs } = anyAbove0(...keys);
  if (keys.length === 0 || holds({ ...regularizers })) return [];
  const start = shown(adapter?.initLoraWeights);
  return [
    `method ${shown(method)} adds nothing to its start (initLoraWeights ${start}): it needs ${needs(String)}`,
  ];
}

/** Messages about settings with which a run trains nothing, or nothing in some modules. */
export function withoutTraining(
  { tuned }: Pick<AnyTrainerOptions, 'tuned'>,
  { optimization }: ResolvedRun,
): string[] {
  const { adapter = {} } = tuned.identity() as { adapter?: Values };
  const { loraAlpha, alphaPattern } = adapter;
  const alphas = (Array.isArray(alphaPattern) ? alphaPattern : []) as readonly [string, number][];
  const zeros = alphas.filter(([, alpha]) => alpha === 0);
  const found = [
    loraAlpha === 0 && 'loraAlpha 0 multiplies what the adapter adds by 0, so that it',
    ...zeros.map(
      ([name]) =>
        `alphaPattern ${shown(name)}: 0 multiplies what the adapter adds there by 0, so that it`,
    ),
    optimization.learningRate === 0 && 'learningRate 0',
  ];
  return found.filter(Boolean).map((what) => `${what} trains nothing; give it a value above 0`);
}

/** Settings of the schedule that it does not read. */
function idleKwargs({
  lrSchedulerType: scheduler,
  lrSchedulerKwargs: options,
  learningRate,
}: ResolvedOptimization): string[] {
  const unread = unreadOptions({ scheduler, learningRate, options, total: 1, warmup: 0 });
  return unread.map(
    (key) => `lrSchedulerKwargs: ${key} has no effect: the schedule ${scheduler} does not read it`,
  );
}

/** Names of the options that were given and that the schedule does not read. */
export function unreadOptions({ options = {}, ...input }: ScheduleInput): string[] {
  const read = new Set<string | symbol>();
  const watched = new Proxy(options, {
    get: (target, key) => {
      read.add(key);
      return Reflect.get(target, key);
    },
  });
  learningRateSchedule({ ...input, options: watched });
  return Object.keys(options).filter((key) => !read.has(key));
}
