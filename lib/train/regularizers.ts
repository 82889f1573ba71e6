/** The options of all loss terms together: their type, their defaults for each task, and the checks of given values. */
import { ArgumentError } from '../errors.ts';
import { bind, type Term, type TermDefinition } from '../losses/term.ts';
import type { kClassifierTerms, kLanguageModelTerms } from '../losses/terms/list.ts';
import { unknownOption } from '../options/call.ts';
import {
  checkTogether,
  checkValue,
  defaultsOf,
  group,
  type InputOf,
  type OptionTable,
  type ResolvedOf,
  type Values,
} from '../options/option.ts';
import { anyAbove0 } from '../options/requirements.ts';
import type { languageModelOptions } from '../tasks/language_model.ts';
import { TASKS, type Task, type TaskName } from '../tasks/list.ts';

type Intersection<U> = (U extends unknown ? (u: U) => void : never) extends (i: infer I) => void
  ? I
  : never;
type AllOptions = Intersection<
  (typeof kLanguageModelTerms | typeof kClassifierTerms)[number]['options']
> &
  typeof languageModelOptions;

/** All declared options. Where several tasks declare the same option, the entry of the first task is used. */
export const REGULARIZER_OPTIONS: AllOptions = group(
  'BA-LoRA regularizers',
  withWeights(
    Object.assign({}, ...Object.values(TASKS).map(termOptionsOf).reverse()) as OptionTable,
    Object.values<Pick<Task, 'terms'>>(TASKS).flatMap(({ terms }) => terms),
  ) as AllOptions,
);

const hasTerms = ({ terms }: Values): boolean => Array.isArray(terms) && terms.length > 0;

/** Options that need the weight of a term which reads them. Those of no term select the rows of all terms, those of the caller's own, too. */
function withWeights(table: OptionTable, terms: readonly TermDefinition[]): OptionTable {
  const entries = Object.entries(table).map(([key, option]) => {
    const own = terms.filter(({ options }) => Object.hasOwn(options, key));
    const readers = own.length > 0 ? own : terms;
    const weights = [...new Set(readers.map((term) => `${term.key}Weight`))];
    if (weights.includes(key)) return [key, option];
    const { holds, needs } = anyAbove0(...weights);
    const isRead = (values: Values): boolean =>
      holds(values) || (own.length === 0 && hasTerms(values));
    return [key, { ...option, requires: [{ holds: isRead, needs }, ...(option.requires ?? [])] }];
  });
  return Object.fromEntries(entries);
}

/**
 * The options of the regularizers; a weight of 0 switches a term off, together with computations that only it needs (such as
 * the teacher's forward pass).
 */
export interface RegularizerOptions extends InputOf<AllOptions> {}

/** The options of the regularizers with every default filled in. */
export interface ResolvedRegularizers extends ResolvedOf<AllOptions> {}

/** The options that apply to a task. */
export function termOptionsOf({ options, terms }: Pick<Task, 'options' | 'terms'>): OptionTable {
  return Object.assign({}, ...terms.map((term) => term.options), options);
}

/**
 * Checks the given options and fills in the defaults for a task.
 * @param name gives the caller's spelling of an option's name
 * @throws ArgumentError with the option's name and value
 */
export function resolveRegularizers(
  options: RegularizerOptions,
  task: TaskName = 'causal-lm',
  name?: (key: string) => string,
): ResolvedRegularizers {
  const given = Object.fromEntries(
    Object.entries(options).filter(([, value]) => value !== undefined),
  );
  const all: OptionTable = REGULARIZER_OPTIONS;
  const own = termOptionsOf(TASKS[task]);
  const defaults: Record<string, unknown> = defaultsOf(all, { task });
  for (const [key, value] of Object.entries(given)) {
    const option = Object.hasOwn(all, key) ? all[key] : undefined;
    if (option === undefined) {
      throw unknownOption('regularizers', key, own);
    }
    checkValue(key, option, value);
    if (!Object.hasOwn(own, key) && value !== defaults[key]) {
      throw new ArgumentError(`${key} has no meaning for ${task}; leave it out`);
    }
  }
  const resolved = { ...defaults, ...given } as unknown as ResolvedRegularizers;
  for (const { checks = [] } of TASKS[task].terms) checkTogether(checks, resolved, { name });
  return resolved;
}

/**
 * The terms of a task that have a weight above 0, followed by the caller's own.
 * @throws ArgumentError for a key given twice
 */
export function termsOf(
  task: Pick<Task, 'terms'>,
  regularizers: ResolvedRegularizers,
  own: readonly Term[] = [],
): Term[] {
  checkOwn(own);
  const values: Record<string, unknown> = { ...regularizers };
  const builtIn = task.terms.filter(({ key }) => (values[`${key}Weight`] as number) > 0);
  const terms = [...builtIn.map((definition: TermDefinition) => bind(definition, values)), ...own];
  const keys = task.terms.map(({ key }) => key).concat(own.map(({ key }) => key));
  const twice = keys.find((key, i) => keys.indexOf(key) !== i);
  if (twice !== undefined) {
    throw new ArgumentError(`terms: there is a term "${twice}" already; give each its own key`);
  }
  return terms;
}

/** Checks that the caller's terms are a list of terms, which TypeScript does not guarantee for programs in JavaScript. */
function checkOwn(own: unknown): void {
  const isTerm = (term: unknown): boolean => {
    const { key, weightAt, value } = (term ?? {}) as Partial<Record<keyof Term, unknown>>;
    return typeof key === 'string' && typeof weightAt === 'function' && typeof value === 'function';
  };
  if (Array.isArray(own) && own.every(isTerm)) return;
  throw new ArgumentError('terms: must be a list of terms, each made by defineTerm');
}
