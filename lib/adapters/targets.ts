/**
 * Selection of the modules that an adapter changes, with their rank and scale: PEFT's matching rules over module paths.
 *
 * A list matches whole trailing names (`proj` does not match `q_proj`, `dense` matches `pooler.dense`); one string is a regular
 * expression that must match the whole path. Patterns match `(.*\.)?(pattern)$`, the first in order wins.
 */
import { patternProblem, withDeadline } from '../deadline.ts';
import { ArgumentError } from '../errors.ts';
import { shown } from '../shown.ts';
import { ALL_LINEAR, type LoraConfig, loraScale } from './config.ts';
import { typeOf } from './methods/registry.ts';

/** A linear module of a model, as targets see it. */
export interface TargetCandidate {
  /** Path in the checkpoint, e.g. `model.layers.0.self_attn.q_proj`. */
  readonly name: string;
  readonly inFeatures: number;
  readonly outFeatures: number;
  /** Whether it is the output head, which "all-linear" leaves out, as in PEFT. */
  readonly isHead?: boolean;
}

/** One adapted module with its own rank and scale. */
export interface Target {
  readonly name: string;
  readonly r: number;
  readonly alpha: number;
  readonly scale: number;
}

/** A compiled pattern. */
type Pattern = Pick<RegExp, 'exec' | 'test'>;

/** Time for one name, which usually takes microseconds. */
const kLimitMs = 1000;

/**
 * Compiles a regular expression written for Python's `re`, which may come from a file. One that may backtrack for ever is stopped.
 * @throws ArgumentError if it cannot be compiled; its methods, if a name takes too long
 */
export function pythonRegExp(source: string, wrap: (inner: string) => string): Pattern {
  const problem = patternProblem(source);
  if (problem !== null) {
    throw new ArgumentError(`pattern ${shown(source)} ${problem}; list the names of the modules`);
  }
  const inline = /^\(\?([aimsux]+)\)/.exec(source);
  const flags = (inline?.[1] ?? '').replace(/[^ims]/g, '');
  const body = source
    .slice(inline?.[0].length ?? 0)
    .replace(/\(\?P</g, '(?<')
    .replace(/\(\?P=(\w+)\)/g, '\\k<$1>')
    .replace(/\\A/g, '^')
    .replace(/\\Z/g, '$$');
  try {
    const compiled = new RegExp(wrap(body), flags);
    // Only repetition and alternatives take long, and names as they are written into files have none.
    const pattern = /[*+?{|]/.test(source) ? stoppable(compiled, source) : compiled;
    // Compiles it: only then V8 finds that it is too large.
    pattern.test('');
    return pattern;
  } catch (error) {
    if (error instanceof ArgumentError) throw error;
    throw new ArgumentError(
      `pattern ${shown(source)}: ${(error as Error).message}; write it in the syntax that JavaScript and Python share`,
    );
  }
}

/** A pattern whose matching ends in an error if it takes too long. */
function stoppable(pattern: RegExp, source: string): Pattern {
  const exec = (name: string): RegExpExecArray | null =>
    withDeadline(
      kLimitMs,
      () => pattern.exec(name),
      () =>
        new ArgumentError(
          `pattern ${shown(source)}: was not compared with ${name || 'an empty text'} within ${kLimitMs} ms; write it without repetition ` +
            'inside repetition, or list the names of the modules',
        ),
    );
  return { exec, test: (name) => exec(name) !== null };
}

/** A predicate: whether the configuration adapts the module at `name` (the caller handles head and "all-linear"). */
export function targetMatcher(config: LoraConfig): (name: string) => boolean {
  const named = isAllLinear(config) ? () => true : nameMatcher(config.targetModules);
  const excluded = nameMatcher(config.excludeModules);
  const inLayers = layerMatcher(config);
  return (name) => !excluded(name) && named(name) && inLayers(name);
}

/** A predicate: whether the configuration adapts a candidate. */
export function isSelected(config: LoraConfig): (candidate: TargetCandidate) => boolean {
  const matches = targetMatcher(config);
  const all = isAllLinear(config);
  return ({ name, isHead }) => matches(name) && !(all && isHead === true);
}

/**
 * The modules to adapt, in the order of the candidates.
 * @throws ArgumentError if the configuration, or one name of its list, matches nothing, or a rank exceeds a matrix.
 */
export function resolveTargets(
  config: LoraConfig,
  candidates: readonly TargetCandidate[],
): Target[] {
  const found = candidates.filter(isSelected(config));
  const { targetModules } = config;
  const missing =
    Array.isArray(targetModules) && found.length > 0
      ? (targetModules as string[]).filter(
          (entry) => !candidates.some(({ name }) => isTrailing(entry, name)),
        )
      : [];
  if (found.length === 0 || missing.length > 0) {
    const wanted = found.length === 0 ? targetModules : missing;
    const accepted = lastNames(candidates.filter(({ isHead }) => !isHead).map(({ name }) => name));
    throw new ArgumentError(
      `targetModules ${shown(wanted)} matches no linear module; names that exist: ${accepted || '(the model has no linear module)'}`,
    );
  }
  const settings = moduleSettings(config);
  const type = typeOf(config);
  return found.map((candidate) => {
    const target = settings(candidate.name);
    const complaint = type.refuses({ ...candidate, r: target.r }, { ...config });
    if (complaint !== null) throw new ArgumentError(`${candidate.name}: ${complaint}`);
    return target;
  });
}

/** A function that gives rank, alpha and scale of any module path. */
export function moduleSettings(config: LoraConfig): (name: string) => Target {
  const rank = typeOf(config).rank?.({ ...config });
  const rankOf = rank === undefined ? firstMatch(config.rankPattern, config.r) : () => rank;
  const alphaOf = firstMatch(config.alphaPattern, config.loraAlpha);
  return (name) => {
    const [r, alpha] = [rankOf(name), alphaOf(name)];
    return { name, r, alpha, scale: loraScale(alpha, r, config) };
  };
}

/**
 * The list to write into a file for exactly these modules: their last names where these select nothing else, otherwise the
 * full paths.
 */
export function shortestNames(adapted: readonly string[], all: readonly string[]): string[] {
  const last = [...new Set(adapted.map(lastName))];
  const chosen = new Set(adapted);
  const exact = all.every(
    (name) => chosen.has(name) === last.some((entry) => isTrailing(entry, name)),
  );
  return (exact ? last : [...adapted]).sort();
}

export function isAllLinear(config: LoraConfig): boolean {
  return config.targetModules === ALL_LINEAR;
}

function nameMatcher(names: readonly string[] | string | null): (name: string) => boolean {
  if (names === null) return () => false;
  if (typeof names === 'string') {
    const whole = pythonRegExp(names, (inner) => `^(?:${inner})$`);
    return (name) => whole.test(name);
  }
  return (name) => names.some((entry) => isTrailing(entry, name));
}

/** Whether a module's path is `entry`, or ends with it as whole names. */
export function isTrailing(entry: string, name: string): boolean {
  return name === entry || name.endsWith(`.${entry}`);
}

/**
 * A predicate on block numbers. PEFT takes the last number that follows the list's name and precedes a dot (its match is greedy).
 */
function layerMatcher({ layersToTransform, layersPattern }: LoraConfig): (name: string) => boolean {
  if (layersToTransform === null || layersToTransform.length === 0) return () => true;
  const named =
    layersPattern === null
      ? []
      : typeof layersPattern === 'string'
        ? [layersPattern]
        : layersPattern;
  const patterns = (named.length === 0 ? ['[^.]*'] : named).map((pattern) =>
    pythonRegExp(pattern, (inner) => `^.*\\.${inner}\\.(\\d+)\\.`),
  );
  return (name) => {
    for (const pattern of patterns) {
      const match = pattern.exec(name);
      if (match !== null) return layersToTransform.includes(Number(match[1]));
    }
    return false;
  };
}

function firstMatch(
  patterns: readonly (readonly [string, number])[],
  fallback: number,
): (name: string) => number {
  const compiled = patterns.map(
    ([source, value]) =>
      [pythonRegExp(source, (inner) => `^(?:.*\\.)?(?:${inner})$`), value] as const,
  );
  return (name) => compiled.find(([pattern]) => pattern.test(name))?.[1] ?? fallback;
}

function lastName(name: string): string {
  return name.slice(name.lastIndexOf('.') + 1);
}

/** The last names of paths, each once, for messages. */
export function lastNames(paths: readonly string[]): string {
  return [...new Set(paths.map(lastName).filter((name) => !/^\d+$/.test(name)))].join(', ');
}
