/** Results of benchmarks as a table. */
import type { Interval } from '../eval/bootstrap.ts';
import { fixed } from './terminal.ts';
import { textTable } from './text_table.ts';

/** A number with its 95 % interval; null where it is undefined, and an interval of null where there is none, as of one item alone. */
export interface ScoredNumber {
  readonly value: number | null;
  readonly interval: Interval | null;
}

/** The result of one model on one task. */
export interface TaskScore {
  /** `model`, `base`, `adapter`, or the folder of an adapter that is compared. */
  readonly model: string;
  readonly task: string;
  /** The task's version: see {@link ScoringTask}. */
  readonly version: number;
  readonly items: number;
  /** Items whose prompts are longer than the context of the model. */
  readonly cutItems: number;
  /** Items in whose generated text no rule found an answer; only of tasks that look for one. */
  readonly unanswered?: number;
  /** Numbers by name. */
  readonly metrics: Readonly<Record<string, ScoredNumber>>;
  /** Measures of collapse by name, where adapters are compared. */
  readonly collapse?: Readonly<Record<string, number | null>>;
  readonly seconds: number;
}

/** A line for each number, with its interval; results of several models are side by side. */
export function scoreTable(scores: readonly TaskScore[]): string {
  const models = [...new Set(scores.map(({ model }) => model))];
  const header = ['task', 'metric', 'items', ...models.flatMap((model) => [model, '95 %'])];
  const lines = new Map<string, { task: string; name: string; items: number }>();
  for (const { task, items, ...score } of scores) {
    for (const name of Object.keys(numbersOf(score))) {
      lines.set(`${task} ${name}`, { task, name, items });
    }
  }
  const rows = inOrder([...lines.values()]).map(({ task, name, items }) => [
    ...[task, name, String(items)],
    ...models.flatMap((model) => {
      const found = scores.find((one) => one.model === model && one.task === task);
      return found === undefined ? ['', ''] : cells(found, name);
    }),
  ]);
  return textTable([header, ...rows], `llr${'rl'.repeat(models.length)}`);
}

/** All numbers of a result. */
function numbersOf({
  metrics,
  collapse = {},
}: Pick<TaskScore, 'metrics' | 'collapse'>): Record<string, ScoredNumber> {
  const bare = Object.entries(collapse).map(([name, value]) => [name, { value, interval: null }]);
  return { ...metrics, ...Object.fromEntries(bare) };
}

/** Lines by task, since a number may be one that the first model does not have. */
function inOrder<L extends { readonly task: string }>(lines: readonly L[]): readonly L[] {
  const tasks = [...new Set(lines.map(({ task }) => task))];
  return tasks.flatMap((task) => lines.filter((line) => line.task === task));
}

/** A number and its interval; a dash for that of one item, of which there is none. */
function cells(score: TaskScore, name: string): readonly string[] {
  const number = numbersOf(score)[name];
  if (number === undefined) return ['', ''];
  const { value, interval } = number;
  if (value === null) return ['undefined', ''];
  if (interval !== null) return [fixed(value), `${fixed(interval[0])} to ${fixed(interval[1])}`];
  return [fixed(value), score.items === 1 && Object.hasOwn(score.metrics, name) ? '–' : ''];
}
