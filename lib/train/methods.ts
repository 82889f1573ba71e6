/**
 * The settings behind the name of a method, from the list in lib/adapters/methods. A method only sets options that the caller
 * left open.
 */
import { type LoraConfigInput, loraConfig } from '../adapters/config.ts';
import type { AdapterConfigInput, AdapterMethodName } from '../adapters/create.ts';
import { defined, presetSettings } from '../adapters/methods/preset.ts';
import { METHODS } from '../adapters/methods/registry.ts';
import { checkCall, kCall, oneOf } from '../options/call.ts';
import { TASKS, type TaskName } from '../tasks/list.ts';
import {
  type RegularizerOptions,
  type ResolvedRegularizers,
  resolveRegularizers,
} from './regularizers.ts';
import type { MethodName, OptimizationOptions } from './types.ts';

export { METHODS };

/** A method with all of its settings filled in. */
export interface ResolvedMethod {
  readonly name: MethodName;
  /** The checked configuration for {@link AdapterModel.create}, which includes the method's name; null for full fine-tuning. */
  readonly adapter: AdapterConfigInput | null;
  readonly regularizers: ResolvedRegularizers;
  /** Settings of the optimisation that the name stands for; a Trainer takes them for an adapter that was made with the method. */
  readonly optimization: OptimizationOptions;
}

/** A method that trains an adapter. */
export type AdapterMethod = ResolvedMethod & { readonly adapter: AdapterConfigInput };

type MethodOverrides = {
  adapter?: LoraConfigInput;
  regularizers?: RegularizerOptions;
  /** Task whose default weights apply. Default causal-lm; a classifier has other weights. */
  task?: TaskName;
};

/**
 * The settings of a method's preset, overridden by those of the caller.
 * @throws ArgumentError on an unknown name or a value out of range.
 */
export function resolveMethod(name: AdapterMethodName, overrides?: MethodOverrides): AdapterMethod;
export function resolveMethod(name: MethodName, overrides?: MethodOverrides): ResolvedMethod;
export function resolveMethod(name: MethodName, overrides: MethodOverrides = {}): ResolvedMethod {
  checkCall('resolveMethod', overrides, {
    adapter: kCall.object,
    regularizers: kCall.object,
    task: oneOf(Object.keys(TASKS)),
  });
  const { task = 'causal-lm', adapter: given = {}, regularizers = {} } = overrides;
  const adapter = presetSettings(name, given);
  if (adapter !== null) loraConfig(adapter);
  return {
    name,
    adapter: adapter && { ...adapter, method: name as AdapterMethodName },
    regularizers: resolveRegularizers(regularizersOf(name, { task, given: regularizers }), task),
    optimization: optimizationOf(name),
  };
}

/**
 * The caller's options with the settings of the optimisation that a method sets (none where it is null) and they leave open. A caller who
 * chooses another optimiser gets none of them.
 */
export function withOptimizationOf<O extends OptimizationOptions>(
  method: MethodName | null,
  given: O,
): O {
  const preset = method === null ? {} : optimizationOf(method);
  const chosen = given.optim ?? preset.optim;
  return chosen === preset.optim ? { ...given, ...preset, ...defined(given) } : given;
}

/** The weights that a method sets for a task (none where it is null), overridden by the caller's options. */
export function regularizersOf(
  method: MethodName | null,
  { task, given }: { task: TaskName; given: RegularizerOptions },
): RegularizerOptions {
  const preset = method === null ? undefined : METHODS[method].regularizers?.[task];
  return { ...preset, ...defined(given) };
}

function optimizationOf(name: MethodName): OptimizationOptions {
  return (METHODS[name].optimization ?? {}) as OptimizationOptions;
}
