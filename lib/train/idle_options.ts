/**
 * Options of a run that were given and change nothing in it, such as the momentum of another optimiser. They are said rather than
 * refused: the run is sound, and one that was begun with such an option can be resumed.
 */
import { isDeepStrictEqual } from 'node:util';
import { METHODS } from '../adapters/methods/registry.ts';
import { learningRateSchedule, type ScheduleInput } from '../optim/schedulers.ts';
import { defaultsOf, type OptionTable } from '../options/option.ts';
import { shown } from '../shown.ts';
import { type AnyTask, taskOf } from '../tasks/list.ts';
import type { ResolvedOptimization, ResolvedOptions, ResolvedOutput } from './options.ts';
import { REGULARIZER_OPTIONS } from './regularizers.ts';
import { optimizationOptions, outputOptions } from './schema.ts';
import type { AnyTrainerOptions } from './trainer_options.ts';

/** Options that need another option, and the words for what they need. */
interface Need<V> {
  readonly keys: readonly (keyof V & string)[];
  readonly needs: string;
  readonly isMet: (values: V) => boolean;
}

const kOptimization: readonly Need<ResolvedOptimization>[] = [
  { keys: ['momentum'], needs: 'optim sgd', isMet: ({ optim }) => optim === 'sgd' },
  {
    keys: ['adamBeta1', 'adamBeta2', 'adamEpsilon'],
    needs: 'optim adamw, lora_fa or riemannian',
    isMet: ({ optim }) => ['adamw', 'lora_fa', 'riemannian'].includes(optim),
  },
  {
    keys: ['riemannianReg'],
    needs: 'optim riemannian',
    isMet: ({ optim }) => optim === 'riemannian',
  },
  {
    keys: ['warmupSteps'],
    needs: 'a schedule with a warm-up, which lrSchedulerType constant has not',
    isMet: ({ lrSchedulerType, warmupSteps }) =>
      lrSchedulerType !== 'constant' || warmupSteps === 0,
  },
];

const kOutput: readonly Need<ResolvedOutput>[] = [
  {
    keys: ['overwrite', 'saveSteps', 'saveTotalLimit', 'export'],
    needs: 'output',
    isMet: ({ output }) => output !== null,
  },
  {
    keys: ['saveMinutes'],
    needs: 'output',
    isMet: ({ output, saveMinutes }) => output !== null || saveMinutes === 0,
  },
  {
    keys: ['saveTotalLimit'],
    needs: 'saveSteps or saveMinutes above 0',
    isMet: ({ output, saveSteps, saveMinutes }) =>
      output === null || saveSteps > 0 || saveMinutes > 0,
  },
];

/** Messages that name the options which change nothing in a run, and what each of them needs. */
export function idleOptions(input: AnyTrainerOptions, options: ResolvedOptions): string[] {
  const { optimization, output } = options;
  const evalSteps: Need<ResolvedOutput> = {
    keys: ['evalSteps'],
    needs: 'evalData',
    isMet: () => input.evalData !== undefined,
  };
  return [
    ...unmet(optimizationOptions, optimization, kOptimization),
    ...idleKwargs(optimization),
    ...unmet(outputOptions, output, [...kOutput, evalSteps]),
    ...idleRegularizers(input, options, taskOf(input.tuned.model)),
    ...idleMethod(input, options, taskOf(input.tuned.model)),
  ];
}

/** The message about a method whose terms of the loss have weights of 0. */
function idleMethod(
  { tuned, loss, terms: own = [] }: AnyTrainerOptions,
  { regularizers }: ResolvedOptions,
  task: AnyTask,
): string[] {
  const { method = null } = tuned;
  if (method === null || loss !== undefined || own.length > 0) return [];
  const { regularizers: weights, adapter } = METHODS[method];
  const keys = Object.keys(weights?.[task.name] ?? {}).filter((key) => key.endsWith('Weight'));
  if (keys.length === 0 || keys.some((key) => (regularizers as Values)[key] !== 0)) return [];
  const start = shown(adapter?.initLoraWeights);
  return [
    `method ${shown(method)} adds nothing to its start (initLoraWeights ${start}): it needs ${keys.join(' or ')} above 0`,
  ];
}

/** Messages about settings with which a run trains nothing, or nothing in some modules. */
export function withoutTraining(
  { tuned }: Pick<AnyTrainerOptions, 'tuned'>,
  { optimization }: ResolvedOptions,
): string[] {
  const { adapter = {} } = tuned.identity() as { adapter?: Values };
  const { loraAlpha, alphaPattern } = adapter;
  const alphas = (Array.isArray(alphaPattern) ? alphaPattern : []) as readonly [string, number][];
  const zeros = alphas.filter(([, alpha]) => alpha === 0);
  return [
    ...(loraAlpha === 0
      ? [
          'loraAlpha 0 multiplies what the adapter adds by 0, so that it trains nothing; give it a value above 0',
        ]
      : []),
    ...zeros.map(
      ([name]) =>
        `alphaPattern ${shown(name)}: 0 multiplies what the adapter adds there by 0, so that it trains nothing; give it a value above 0`,
    ),
    ...(optimization.learningRate === 0
      ? ['learningRate 0 trains nothing; give it a value above 0']
      : []),
  ];
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

type Values = Readonly<Record<string, unknown>>;

function idleRegularizers(
  { loss, terms: own = [] }: AnyTrainerOptions,
  { regularizers }: ResolvedOptions,
  task: AnyTask,
): string[] {
  const table: OptionTable = REGULARIZER_OPTIONS;
  const values: Values = { ...regularizers };
  if (loss !== undefined) {
    const needs = "the task's own loss, which a loss of one's own replaces";
    return unmet(table, values, [{ keys: Object.keys(table), needs, isMet: () => false }], task);
  }
  const isOn = (key: string): boolean => (values[`${key}Weight`] as number) > 0;
  const needs: Need<Values>[] = Object.keys(table).flatMap((key) => {
    const readers = task.terms.filter(({ options }) => Object.hasOwn(options, key));
    const weights = readers.map((term) => `${term.key}Weight`);
    if (weights.includes(key)) return [];
    // An option of no term selects the rows of all of them, those of the caller's own too.
    const isMet = () =>
      readers.length > 0
        ? readers.some((term) => isOn(term.key))
        : own.length > 0 || task.terms.some((term) => isOn(term.key));
    const wanted = readers.length > 0 ? weights : task.terms.map((term) => `${term.key}Weight`);
    return [{ keys: [key], needs: `${wanted.join(' or ')} above 0`, isMet }];
  });
  const grows = task.terms.some(
    (term) => isOn(term.key) && Object.hasOwn(term.options, 'regularizerSchedule'),
  );
  return unmet(table, values, [...needs, ...(grows ? kGrowth : [])], task);
}

/** Settings of single schedules of the regularizers' weights. */
const kGrowth: readonly Need<Values>[] = [
  {
    keys: ['regularizerWarmupRatio', 'regularizerRampRatio'],
    needs: 'regularizerSchedule two_phase',
    isMet: ({ regularizerSchedule }) => regularizerSchedule === 'two_phase',
  },
  {
    keys: ['regularizerWarmupSteps'],
    needs: 'regularizerSchedule linear_warmup or quadratic_warmup',
    isMet: ({ regularizerSchedule }) =>
      /^(linear|quadratic)_warmup$/.test(`${regularizerSchedule}`),
  },
];

/** Messages about the options that differ from their default and lack what they need. */
function unmet<V extends object>(
  table: OptionTable,
  values: V,
  needs: readonly Need<V>[],
  task?: Pick<AnyTask, 'name'>,
): string[] {
  const defaults: Values = defaultsOf(table, { task: task?.name ?? 'causal-lm' });
  return needs
    .filter(({ isMet }) => !isMet(values))
    .flatMap(({ keys, needs: wanted }) =>
      keys
        .filter((key) => !isDeepStrictEqual(values[key], defaults[key]))
        .map((key) => `${key} ${shown(values[key])} has no effect: it needs ${wanted}`),
    );
}
