/**
 * A run's options with every default filled in and every value checked, and the run's identity: the part that must be
 * the same for a checkpoint to go on bit for bit.
 */
import { ArgumentError } from '../errors.ts';
import { defaultsOf } from '../losses/options.ts';
import { learningRateSchedule, SCHEDULER_NAMES } from '../optim/schedulers.ts';
import { checkMemoryBudget, type MemoryBudget } from './memory_plan.ts';
import type { TaskName } from '../tasks/list.ts';
import {
  REGULARIZER_OPTIONS,
  type RegularizerOptions,
  type ResolvedRegularizers,
  resolveRegularizers,
} from './regularizers.ts';
import {
  OPTIMIZER_NAMES,
  type OptimizationOptions,
  type OutputOptions,
  type ResourceOptions,
} from './types.ts';

export interface ResolvedOptimization extends Required<Omit<OptimizationOptions, 'maxSteps'>> {
  /** null: numTrainEpochs decides. */
  readonly maxSteps: number | null;
}

export interface ResolvedOutput
  extends Required<Omit<OutputOptions, 'output' | 'preparation' | 'runConfig'>> {
  readonly output: string | null;
  readonly runConfig: unknown;
}

/** Options of a run with every default filled in. */
export interface ResolvedOptions {
  readonly optimization: ResolvedOptimization;
  readonly regularizers: ResolvedRegularizers;
  readonly output: ResolvedOutput;
  readonly resources: ResolvedResources;
  readonly seed: number;
}

export interface ResolvedResources {
  /** null: the default. */
  readonly memoryBudget: MemoryBudget | null;
  readonly cacheTeacher: boolean;
  readonly captureGraphs: boolean;
}

const kOptimization: ResolvedOptimization = {
  optim: 'adamw',
  learningRate: 2e-5,
  lrSchedulerType: 'cosine',
  lrSchedulerKwargs: {},
  warmupSteps: 0.03,
  weightDecay: 0,
  adamBeta1: 0.9,
  adamBeta2: 0.999,
  adamEpsilon: 1e-8,
  momentum: 0,
  loraplusLrRatio: 1,
  maxGradNorm: 1,
  numTrainEpochs: 1,
  maxSteps: null,
  gradientAccumulationSteps: 1,
};

const kOutput: Omit<ResolvedOutput, 'output' | 'runConfig'> = {
  overwrite: false,
  resume: false,
  saveSteps: 0,
  saveMinutes: 10,
  evalSteps: 0,
  loggingSteps: 1,
  saveTotalLimit: 2,
  export: 'lora',
};

/** [least, most, whole] of every number; the ends count, `open` excludes the upper one. */
const kRanges: Record<string, { least: number; below?: number; whole?: true; positive?: true }> = {
  learningRate: { least: 0 },
  warmupSteps: { least: 0 },
  weightDecay: { least: 0 },
  adamBeta1: { least: 0, below: 1 },
  adamBeta2: { least: 0, below: 1 },
  adamEpsilon: { least: 0 },
  momentum: { least: 0, below: 1 },
  loraplusLrRatio: { least: 0, positive: true },
  maxGradNorm: { least: 0 },
  numTrainEpochs: { least: 0, positive: true },
  maxSteps: { least: 1, whole: true },
  gradientAccumulationSteps: { least: 1, whole: true },
  saveSteps: { least: 0, whole: true },
  saveMinutes: { least: 0 },
  evalSteps: { least: 0, whole: true },
  loggingSteps: { least: 1, whole: true },
  saveTotalLimit: { least: 1, whole: true },
  seed: { least: 0, whole: true },
};

export interface OptionsInput extends OptimizationOptions, OutputOptions, ResourceOptions {
  regularizers?: RegularizerOptions;
  /**
   * Kept with the run and compared when it is resumed; nothing is drawn from it. The adapter's first values and dropout come of
   * the `seed` of `AdapterModel.create`, the order of the data of the data source's. Default 42.
   */
  seed?: number;
}

/** Picks and checks the options of a run. @throws ArgumentError with the option's name and value. */
export function resolveOptions(input: OptionsInput, task: TaskName = 'causal-lm'): ResolvedOptions {
  const optimization = fill(kOptimization, input);
  const output = fill(kOutput, input);
  const seed = input.seed ?? 42;
  for (const [key, value] of Object.entries({ ...optimization, ...output, seed })) {
    if (Object.hasOwn(kRanges, key) && value !== null) checkRange(key, value);
  }
  if (!SCHEDULER_NAMES.includes(optimization.lrSchedulerType)) {
    throw new ArgumentError(
      `lrSchedulerType must be one of ${SCHEDULER_NAMES.join(', ')}, got "${optimization.lrSchedulerType}"`,
    );
  }
  checkSchedule(optimization);
  checkChoice('optim', optimization.optim, OPTIMIZER_NAMES);
  checkChoice('export', output.export, ['lora', 'residual']);
  const { memoryBudget } = input;
  const regularizers = resolveRegularizers(input.regularizers ?? {}, task);
  return {
    optimization,
    regularizers,
    resources: {
      memoryBudget: memoryBudget === undefined ? null : checkMemoryBudget(memoryBudget),
      cacheTeacher: input.cacheTeacher ?? false,
      captureGraphs: input.captureGraphs ?? false,
    },
    output: { ...output, output: input.output ?? null, runConfig: input.runConfig ?? null },
    seed,
  };
}

/** Everything that the numbers of a step depend on, as plain JSON. */
export type Identity = Record<string, unknown>;

/**
 * Where two identities differ, as `key: then, now` lines; empty when a checkpoint may be continued. An option that was not
 * known then counts as one that was left at its default, so that a new one refuses no older run.
 */
export function differences(then: Identity, now: Identity): string[] {
  const defaults: Identity = defaultsOf(REGULARIZER_OPTIONS);
  const lines: string[] = [];
  for (const key of [...new Set([...Object.keys(then), ...Object.keys(now)])].sort()) {
    const known = Object.hasOwn(then, key) ? then[key] : defaults[key];
    const [before, after] = [JSON.stringify(known ?? null), JSON.stringify(now[key] ?? null)];
    if (before !== after) lines.push(`${key}: was ${before}, is ${after}`);
  }
  return lines;
}

function fill<T extends object>(defaults: T, input: object): T {
  const result = { ...defaults };
  for (const key of Object.keys(defaults) as (keyof T)[]) {
    const value = (input as Partial<T>)[key];
    if (value !== undefined) result[key] = value as T[typeof key];
  }
  return result;
}

/** What a schedule asks of its options does not depend on the length of the run. */
function checkSchedule(options: ResolvedOptimization): void {
  learningRateSchedule({
    scheduler: options.lrSchedulerType,
    learningRate: options.learningRate,
    options: options.lrSchedulerKwargs,
    total: 1,
    warmup: 0,
  });
}

function checkRange(key: string, value: unknown): void {
  const { least, below, whole, positive } = kRanges[key] as (typeof kRanges)[string];
  const wanted = `a ${whole ? 'whole ' : ''}number ${positive ? `> ${least}` : `>= ${least}`}${below === undefined ? '' : ` and < ${below}`}`;
  const ok =
    typeof value === 'number' &&
    Number.isFinite(value) &&
    (positive ? value > least : value >= least) &&
    (below === undefined || value < below) &&
    (!whole || Number.isInteger(value));
  if (!ok) throw new ArgumentError(`${key} must be ${wanted}, got ${String(value)}`);
}

function checkChoice(key: string, value: string, choices: readonly string[]): void {
  if (!choices.includes(value)) {
    throw new ArgumentError(`${key} must be one of ${choices.join(', ')}, got "${value}"`);
  }
}
