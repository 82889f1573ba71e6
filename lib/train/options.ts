/**
 * A run's options with every default filled in and every value checked, and the run's identity: the part that must be
 * the same for a checkpoint to go on bit for bit.
 */
import { loraOptions } from '../adapters/lora_options.ts';
import { learningRateSchedule } from '../optim/schedulers.ts';
import {
  checkTogether,
  defaultsOf,
  identityOfTable,
  type InputOf,
  type ResolvedOf,
  resolveTable,
} from '../options/option.ts';
import type { TaskName } from '../tasks/list.ts';
import {
  REGULARIZER_OPTIONS,
  type RegularizerOptions,
  type ResolvedRegularizers,
  resolveRegularizers,
} from './regularizers.ts';
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
import type { OptimizationOptions, OutputOptions, ResourceOptions } from './types.ts';

export interface ResolvedOptimization extends ResolvedOf<typeof optimizationOptions> {}

export interface ResolvedOutput extends ResolvedOf<typeof outputOptions> {}

export interface ResolvedResources extends ResolvedOf<typeof resourceOptions> {}

/** Options of a run with every default filled in. */
export interface ResolvedOptions {
  readonly optimization: ResolvedOptimization;
  readonly regularizers: ResolvedRegularizers;
  readonly output: ResolvedOutput;
  readonly resources: ResolvedResources;
  readonly seed: number;
}

export interface OptionsInput
  extends OptimizationOptions,
    OutputOptions,
    ResourceOptions,
    InputOf<typeof seedOptions> {
  regularizers?: RegularizerOptions;
}

/** Picks and checks the options of a run. @throws ArgumentError with the option's name and value */
export function resolveOptions(input: OptionsInput, task: TaskName = 'causal-lm'): ResolvedOptions {
  const optimization = resolveTable(optimizationOptions, input);
  const { output, runConfig, ...whenWritten } = resolveTable(outputOptions, input);
  const { seed } = resolveTable(seedOptions, input);
  // Read by the trainer as they were given: what they default to depends on the model.
  resolveTable({ ...preparationOptions, ...bestOptions }, input);
  checkTogether(trainerChecks, input);
  checkSchedule(optimization);
  return {
    optimization,
    regularizers: resolveRegularizers(input.regularizers ?? {}, task),
    resources: resolveTable(resourceOptions, input),
    output: { ...whenWritten, output, runConfig },
    seed,
  };
}

/** Everything that the numbers of a step depend on, as plain JSON. */
export type Identity = Record<string, unknown>;

/** All options that may stand in an identity. */
const kKnown = { ...trainerOptions, ...REGULARIZER_OPTIONS, ...loraOptions };

/**
 * Where two identities differ, as `key: then, now` lines; empty when a checkpoint may be continued. An option that was not
 * known then counts as one that was left at its default, so that a new one refuses no older run.
 */
export function differences(then: Identity, now: Identity): string[] {
  const defaults: Identity = identityOfTable(kKnown, defaultsOf(kKnown));
  const lines: string[] = [];
  for (const key of [...new Set([...Object.keys(then), ...Object.keys(now)])].sort()) {
    const known = Object.hasOwn(then, key) ? then[key] : defaults[key];
    const [before, after] = [JSON.stringify(known ?? null), JSON.stringify(now[key] ?? null)];
    if (before !== after) lines.push(`${key}: was ${before}, is ${after}`);
  }
  return lines;
}

/** Refuses what a schedule cannot be made of, which does not depend on the length of the run. */
function checkSchedule(options: ResolvedOptimization): void {
  learningRateSchedule({
    scheduler: options.lrSchedulerType,
    learningRate: options.learningRate,
    options: options.lrSchedulerKwargs,
    total: 1,
    warmup: 0,
  });
}
