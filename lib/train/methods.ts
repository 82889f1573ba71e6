/** A method's name resolved; the list stands in lib/adapters/methods. A method only fills in what the caller left open. */
import { type LoraConfigInput, loraConfig } from '../adapters/config.ts';
import { METHOD_NAMES, METHODS } from '../adapters/methods/registry.ts';
import { ArgumentError } from '../errors.ts';
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
  /** What a fresh adapter is made with (checked); null for full fine-tuning. */
  readonly adapter: LoraConfigInput | null;
  readonly regularizers: ResolvedRegularizers;
}

/** A method that trains an adapter. */
export type AdapterMethod = ResolvedMethod & { readonly adapter: LoraConfigInput };

type MethodOverrides = {
  adapter?: LoraConfigInput;
  regularizers?: RegularizerOptions;
  /** Default causal-lm; a classifier has other weights. */
  task?: TaskName;
};

/** The preset with the caller's settings over it. @throws ArgumentError on an unknown name or a value out of range. */
export function resolveMethod(
  name: Exclude<MethodName, 'full'>,
  overrides?: MethodOverrides,
): AdapterMethod;
export function resolveMethod(name: MethodName, overrides?: MethodOverrides): ResolvedMethod;
export function resolveMethod(name: MethodName, overrides: MethodOverrides = {}): ResolvedMethod {
  if (!Object.hasOwn(METHODS, name)) {
    throw new ArgumentError(
      `method must be one of ${METHOD_NAMES.join(', ')}, got ${JSON.stringify(name)}`,
    );
  }
  const { task = 'causal-lm' } = overrides;
  const preset = METHODS[name];
  const given = defined(overrides.adapter ?? {});
  if (preset.adapter === null && Object.keys(given).length > 0) {
    throw new ArgumentError(
      `method full trains every weight: ${Object.keys(given).join(', ')} cannot be set`,
    );
  }
  const adapter = preset.adapter && { ...preset.adapter, ...given };
  if (adapter !== null) loraConfig(adapter);
  return {
    name,
    adapter,
    regularizers: resolveRegularizers(
      {
        ...preset.regularizers?.[task],
        ...defined(overrides.regularizers ?? {}),
      },
      task,
    ),
  };
}

function defined<T extends object>(values: T): Partial<T> {
  return Object.fromEntries(
    Object.entries(values).filter(([, value]) => value !== undefined),
  ) as Partial<T>;
}
