/** The text of `--dry-run`: exact counts of a planned run, with measured memory and time. */
import type { DataStatistics } from '../data/batches.ts';
import type { LabelledStatistics } from '../data/labelled_batches.ts';
import { formatBytes } from '../io/format_bytes.ts';
import type { RunPlan } from '../train/types.ts';
import { formatCount, formatSeconds } from './terminal.ts';
import { textTable } from './text_table.ts';

/** Statistics of the data in a plan: for prompts and responses, or for labelled texts. */
export type PlanStatistics = DataStatistics | LabelledStatistics;

export function planText(plan: RunPlan, data: PlanStatistics, format: string): string {
  const { memory } = plan;
  const share = (100 * plan.trainableParameters) / plan.baseParameters;
  const rows: [string, string][] = [
    ['data', dataText(data, format)],
    [
      'steps',
      `${plan.totalSteps}, ${plan.warmupSteps} of them warm-up; ${plan.microBatchesPerEpoch} micro-batches per epoch`,
    ],
    [
      'parameters',
      `${formatCount(plan.baseParameters)} in the model, ${formatCount(plan.trainableParameters)} trained (${share.toFixed(2)} %)`,
    ],
    [
      'memory',
      memory.totalBytes === null
        ? 'not measured'
        : `${formatBytes(memory.totalBytes)} of tensors, without Node, code and scratch memory`,
    ],
    ['  model', formatBytes(memory.baseBytes)],
    ['  teacher', formatBytes(memory.teacherBytes)],
    ['  adapter', formatBytes(memory.adapterBytes)],
    ['  gradients and moments', formatBytes(memory.optimizerBytes)],
    [
      '  a micro-batch',
      memory.activationBytes === null
        ? 'not measured'
        : `${formatBytes(memory.activationBytes)} (${plan.measuredTokens} tokens; a longer one needs more)`,
    ],
    ...packedRow(plan),
    ...planRows(plan),
    [
      'time',
      plan.secondsPerStep === null
        ? 'not measured'
        : `${formatSeconds(plan.secondsPerStep * plan.totalSteps)} (${plan.secondsPerStep.toFixed(2)} s per step, from one micro-batch)`,
    ],
  ];
  return textTable(rows);
}

/** The statistics of the data as one line: `400 examples (sentence -> label), 9 k tokens, by class 180 + 220, longest 52`. */
export function dataText(data: PlanStatistics, format: string): string {
  const { examples, tokens, longest } = data;
  return `${examples} examples (${format}), ${formatCount(tokens)} tokens, ${detail(data)}longest ${longest}`;
}

function detail(data: PlanStatistics): string {
  if ('supervisedTokens' in data) return `${formatCount(data.supervisedTokens)} supervised, `;
  return data.perClass === null ? '' : `by class ${data.perClass.join(' + ')}, `;
}

/** The rows of the table that show the plan chosen for a memory budget. */
function planRows({ memoryPlan }: RunPlan): [string, string][] {
  if (memoryPlan === null) return [];
  const { layers, bytes, residentBytes } = memoryPlan;
  const kept = Object.entries(layers)
    .filter(([, count]) => count > 0)
    .map(([keep, count]) => `${count} ${keep}`);
  return [
    ['  layers', kept.join(', ')],
    ...(residentBytes === null
      ? []
      : ([
          [
            '  base',
            `${formatBytes(residentBytes)} of its matrices stay in memory, others are read when they are used`,
          ],
        ] as [string, string][])),
    ['  predicted peak', `${formatBytes(bytes)} of the process, from a small forward pass`],
  ];
}

/**
 * The row for the engine's packed weights: copies of the frozen weights in the layouts that the processor multiplies fastest.
 */
function packedRow({ memory }: RunPlan): [string, string][] {
  const { totalBytes, activationBytes, ...parts } = memory;
  if (totalBytes === null || activationBytes === null) return [];
  const known = Object.values(parts).reduce((sum, bytes) => sum + bytes, activationBytes);
  return [['  packed weights', formatBytes(Math.max(0, totalBytes - known))]];
}
