/** Numbers of a task by groups of its items. */
import type { ItemResult, TaskMetrics } from './task.ts';

/** The results that belong to each group of a grouping, by the group's name, in alphabetical order. */
export function grouped(
  items: readonly ItemResult[],
  grouping: string,
): readonly (readonly [group: string, items: readonly ItemResult[]])[] {
  const found = new Map<string, ItemResult[]>();
  for (const item of items) {
    const group = item.groups?.[grouping];
    if (group === undefined) continue;
    const others = found.get(group);
    if (others === undefined) found.set(group, [item]);
    else others.push(item);
  }
  return [...found].sort(([a], [b]) => (a < b ? -1 : 1));
}

/** The sum of a number of the items. */
export function sumOf(items: readonly ItemResult[], name: string): number {
  return items.reduce((total, { metrics }) => total + (metrics[name] as number), 0);
}

/** The mean of a number of the items; null: there are none. */
export function meanOf(items: readonly ItemResult[], name: string): number | null {
  return items.length === 0 ? null : sumOf(items, name) / items.length;
}

/** The accuracy of all items, and that of each group of a grouping. */
export function accuraciesBy(grouping: string): (items: readonly ItemResult[]) => TaskMetrics {
  return (items) => ({
    acc: meanOf(items, 'acc'),
    ...Object.fromEntries(
      grouped(items, grouping).map(([group, some]) => [`acc_${group}`, meanOf(some, 'acc')]),
    ),
  });
}

/** The share of the programs that passed their tests; null: some were not run. */
export function passAt1(items: readonly ItemResult[]): TaskMetrics {
  const wereRun = items.every(({ metrics }) => 'pass@1' in metrics);
  return { 'pass@1': wereRun ? meanOf(items, 'pass@1') : null };
}
