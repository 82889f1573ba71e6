/** Results of benchmarks as a table. */
import type { Interval } from '../eval/bootstrap.ts';
import { fixed } from './terminal.ts';
import { textTable } from './text_table.ts';

/** The result of one model on one task. */
export interface TaskScore {
  readonly model: 'model' | 'base' | 'adapter';
  readonly task: string;
  /** The task's version: see {@link ScoringTask}. */
  readonly version: number;
  readonly items: number;
  /** Items whose prompts are longer than the context of the model. */
  readonly cutItems: number;
  /** Numbers by name with their 95 % intervals; null where they are undefined. */
  readonly metrics: Readonly<
    Record<string, { readonly value: number | null; readonly interval: Interval | null }>
  >;
  readonly seconds: number;
}

/** A line for each number, with its interval; results of a base and of an adapter are side by side. */
export function scoreTable(scores: readonly TaskScore[]): string {
  const models = [...new Set(scores.map(({ model }) => model))];
  const header = ['task', 'metric', 'items', ...models.flatMap((model) => [model, '95 %'])];
  const firsts = scores.filter(({ model }) => model === models[0]);
  const rows = firsts.flatMap(({ task, items, metrics }) =>
    Object.keys(metrics).map((name) => [
      ...[task, name, String(items)],
      ...models.flatMap((model) => {
        const found = scores.find((one) => one.model === model && one.task === task);
        return cells(found?.metrics[name]);
      }),
    ]),
  );
  return textTable([header, ...rows], 'llrrl');
}

function cells(metric: TaskScore['metrics'][string] | undefined): readonly string[] {
  if (metric === undefined || metric.value === null) return ['undefined', ''];
  const { value, interval } = metric;
  return [fixed(value), interval === null ? '' : `${fixed(interval[0])} to ${fixed(interval[1])}`];
}
