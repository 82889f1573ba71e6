/** A method's name resolved; the list stands in lib/adapters/methods. A method only fills in what the caller left open. */
import { type LoraConfigInput, loraConfig } from '../adapters/config.ts';
import type { AdapterConfigInput, AdapterMethodName } from '../adapters/make_adapter.ts';
import { defined, presetSettings } from '../adapters/methods/preset.ts';
import { METHODS } from '../adapters/methods/registry.ts';
import type { TaskName } from '../tasks/list.ts';
import {
  type RegularizerOptions,
  type ResolvedRegularizers,
  resolveRegularizers,
} from './regularizers.ts';
import type { MethodName } from './types.ts';

export { METHODS };

/** A method with every choice made. */
export interface ResolvedMethod {
  readonly name: MethodName;
  /** The configuration for {@link AdapterModel.create} (checked), the method's name in it; null for full fine-tuning. */
  readonly adapter: AdapterConfigInput | null;
  readonly regularizers: ResolvedRegularizers;
}

/** A method that trains an adapter. */
export type AdapterMethod = ResolvedMethod & { readonly adapter: AdapterConfigInput };

type MethodOverrides = {
  adapter?: LoraConfigInput;
  regularizers?: RegularizerOptions;
  /** Default causal-lm; a classifier has other weights. */
  task?: TaskName;
};

/** The preset with the caller's settings over it. @throws ArgumentError on an unknown name or a value out of range. */
export function resolveMethod(name: AdapterMethodName, overrides?: MethodOverrides): AdapterMethod;
export function resolveMethod(name: MethodName, overrides?: MethodOverrides): ResolvedMethod;
export function resolveMethod(name: MethodName, overrides: MethodOverrides = {}): ResolvedMethod {
  const { task = 'causal-lm', adapter: given = {}, regularizers = {} } = overrides;
  const adapter = presetSettings(name, given);
  if (adapter !== null) loraConfig(adapter);
  return {
    name,
    adapter: adapter && { ...adapter, method: name as AdapterMethodName },
    regularizers: resolveRegularizers(regularizersOf(name, { task, given: regularizers }), task),
  };
}

/** The weights that a method (null: none) brings for a task, with the caller's options over them. */
export function regularizersOf(
  method: MethodName | null,
  { task, given }: { task: TaskName; given: RegularizerOptions },
): RegularizerOptions {
  const preset = method === null ? undefined : METHODS[method].regularizers?.[task];
  return { ...preset, ...defined(given) };
}
