/** The changes of weights by an adapter, as a table. */
import { ENERGIES, type ModuleChange } from '../eval/adapter_changes.ts';
import { printable } from '../shown.ts';
import { textTable } from './text_table.ts';

const percent = (share: number): string => `${+(100 * share).toPrecision(2)} %`;

/**
 * The changes as text: a line for each module, and what is common to all.
 * @param saved names of the tensors that are trained whole
 */
export function changeTable(changes: readonly ModuleChange[], saved: readonly string[]): string {
  const hasIntruders = changes.some(({ intruders }) => intruders !== null);
  const head = [
    ...['module', 'r', 'size', 'stable rank'],
    ...ENERGIES.map((share) => `rank for ${percent(share)}`),
    ...(hasIntruders ? ['intruders'] : []),
  ];
  const rows = changes.map(({ name, r, size, stableRank, ranks, intruders }) => [
    ...[name, `${r}`, percent(size), stableRank.toFixed(1)],
    ...ranks.map(String),
    ...(hasIntruders ? [`${intruders}`] : []),
  ]);
  return [
    ...(changes.length > 0 ? [textTable([head, ...rows], 'lr')] : []),
    totals(changes, hasIntruders),
    ...(saved.length > 0
      ? [`trained whole: ${saved.map((name) => printable(name)).join(', ')}`]
      : []),
  ].join('\n');
}

function totals(changes: readonly ModuleChange[], hasIntruders: boolean): string {
  const changed = changes.filter(({ size }) => size > 0);
  const count = changes.reduce((sum, { intruders }) => sum + (intruders ?? 0), 0);
  const parts = [
    `${changes.length} modules`,
    ...(changed.length < changes.length ? [`${changes.length - changed.length} not changed`] : []),
    ...ENERGIES.flatMap((share, i) => {
      const ranks = changed.map((one) => one.ranks[i] as number).sort((a, b) => a - b);
      const [least, middle, most] = [ranks[0], ranks[ranks.length >> 1], ranks.at(-1)];
      return ranks.length === 0
        ? []
        : [`${percent(share)} of the energy in ranks ${least} to ${most}, median ${middle}`];
    }),
    ...(hasIntruders ? [`${count} intruder dimensions`] : []),
  ];
  return parts.join('; ');
}
