/**
 * A method's name resolved (the list stands in lib/adapters/methods), and the regularizers' defaults and checks. A method only
 * fills in what the caller left open.
 */
import { type LoraConfigInput, loraConfig } from '../adapters/config.ts';
import { METHOD_NAMES, METHODS } from '../adapters/methods/registry.ts';
import { ArgumentError } from '../errors.ts';
import { kVariants as kNluVariants } from '../losses/nlu.ts';
import { adaptiveBounds } from '../losses/schedules.ts';
import { type Model, SequenceClassifier } from '../models/index.ts';
import type { MethodName, RegularizerOptions } from './types.ts';

export { METHODS };

/** The regularizers with every default filled in. */
export type ResolvedRegularizers = Required<RegularizerOptions>;

const kDefaults: ResolvedRegularizers = {
  consistencyWeight: 0,
  diversityWeight: 0,
  svdWeight: 0,
  temperature: 2,
  entropyTopK: 20,
  svdTopK: 10,
  svdNorm: 'frobenius',
  positions: 'supervised',
  variant: 'iclr',
  consistencySchedule: 'cosine',
  consistencyWeightMin: null,
  consistencyWeightMax: null,
  regularizerSchedule: 'two_phase',
  regularizerWarmupRatio: 0.2,
  regularizerRampRatio: 0.05,
  regularizerWarmupSteps: 0,
};

/** What a model is tuned for. */
export type TaskKind = 'causal-lm' | 'sequence-classification';

/** The kind of a model. */
export function taskOf(model: Model): TaskKind {
  return model instanceof SequenceClassifier ? 'sequence-classification' : 'causal-lm';
}

interface TaskDefaults {
  readonly defaults: RegularizerOptions;
  /** Options that the task has no use for. */
  readonly without: readonly (keyof RegularizerOptions)[];
  /** Over the preset of `balora`: the weights of the paper's experiments. */
  readonly balora: RegularizerOptions;
}

const kByTask: Readonly<Record<TaskKind, TaskDefaults>> = {
  'causal-lm': { defaults: {}, without: ['variant'], balora: {} },
  'sequence-classification': {
    defaults: { svdTopK: 5 },
    without: ['entropyTopK', 'positions', 'svdNorm'],
    balora: { consistencyWeight: 0.15, diversityWeight: 0.03, svdWeight: 0.03 },
  },
};

const kChoices = {
  svdNorm: ['frobenius', 'nuclear'],
  positions: ['supervised', 'non_padding', 'label_aligned'],
  variant: kNluVariants,
  consistencySchedule: ['constant', 'cosine', 'adaptive'],
  regularizerSchedule: ['constant', 'two_phase', 'linear_warmup', 'quadratic_warmup'],
} as const;

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
  task?: TaskKind;
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

/** Defaults filled in, every value checked. */
export function resolveRegularizers(
  options: RegularizerOptions,
  task: TaskKind = 'causal-lm',
): ResolvedRegularizers {
  const given = defined(options);
  const { defaults, without } = kByTask[task];
  const resolved: ResolvedRegularizers = { ...kDefaults, ...defaults, ...given };
  const useless = without.find((key) => key in given && given[key] !== kDefaults[key]);
  if (useless !== undefined) throw new ArgumentError(`${useless} has no meaning for ${task}`);
  for (const key of Object.keys(resolved)) {
    if (!Object.hasOwn(kDefaults, key))
      throw new ArgumentError(`unknown regularizer option "${key}"`);
  }
  for (const [key, choices] of Object.entries(kChoices)) {
    const value = resolved[key as keyof typeof kChoices];
    if (!(choices as readonly string[]).includes(value)) {
      throw new ArgumentError(
        `${key} must be one of ${choices.join(', ')}, got ${JSON.stringify(value)}`,
      );
    }
  }
  const atLeast = (
    least: number,
    keys: readonly (keyof ResolvedRegularizers)[],
    whole = false,
  ): void => {
    for (const key of keys) {
      const value = resolved[key] as number;
      if (!Number.isFinite(value) || value < least || (whole && !Number.isInteger(value))) {
        throw new ArgumentError(
          `${key} must be a ${whole ? 'whole ' : ''}number >= ${least}, got ${String(value)}`,
        );
      }
    }
  };
  atLeast(0, ['consistencyWeight', 'diversityWeight', 'svdWeight']);
  atLeast(0, ['regularizerWarmupRatio', 'regularizerRampRatio', 'regularizerWarmupSteps']);
  atLeast(0, ['entropyTopK'], true);
  atLeast(1, ['svdTopK'], true);
  checkBounds(resolved, atLeast);
  if (!(resolved.temperature > 0) || !Number.isFinite(resolved.temperature)) {
    throw new ArgumentError(`temperature must be a number > 0, got ${resolved.temperature}`);
  }
  return resolved;
}

/** The bounds of the adaptive schedule: said to nobody under another one, and never upside down. */
function checkBounds(
  resolved: ResolvedRegularizers,
  atLeast: (least: number, keys: readonly (keyof ResolvedRegularizers)[]) => void,
): void {
  const keys = (['consistencyWeightMin', 'consistencyWeightMax'] as const).filter(
    (key) => resolved[key] !== null,
  );
  const [first] = keys;
  if (first === undefined) return;
  if (resolved.consistencySchedule !== 'adaptive' || resolved.consistencyWeight === 0) {
    throw new ArgumentError(
      `${first} needs consistencySchedule adaptive and a consistencyWeight > 0`,
    );
  }
  atLeast(0, keys);
  const { min, max } = adaptiveBounds({
    weight: resolved.consistencyWeight,
    min: resolved.consistencyWeightMin,
    max: resolved.consistencyWeightMax,
  });
  if (min > max) {
    throw new ArgumentError(
      `consistencyWeightMin (${min}) must not be above consistencyWeightMax (${max})`,
    );
  }
}

function defined<T extends object>(values: T): Partial<T> {
  return Object.fromEntries(
    Object.entries(values).filter(([, value]) => value !== undefined),
  ) as Partial<T>;
}
