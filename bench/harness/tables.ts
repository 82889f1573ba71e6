/** The tables of a report as text. */
import { textTable } from '../../lib/cli/text_table.ts';
import type { ComparedReports } from './compare.ts';
import type { GrowthSeries, Machine, Report, Row, StepRow } from './types.ts';

const kGiga = 1e9;
const kTera = 1e12;
const kGiB = 2 ** 30;

interface Cells {
  readonly head: readonly string[];
  readonly rows: readonly (readonly string[])[];
}

/** A table with its first column aligned left and the others right. */
const alignedTable = ({ head, rows }: Cells): string => textTable([head, ...rows], 'lr');

export function machineText(machine: Machine): string {
  const { cpu, threads, cores, features, memoryBytes, system, node, balora } = machine;
  return [
    `${cpu}, ${cores} cores, ${threads} threads, ${(memoryBytes / kGiB).toFixed(0)} GiB; ${features.join(' ')}`,
    `${system}, Node ${node}, balora ${balora}`,
    ...(machine.device === undefined ? [] : [`on ${machine.device}`]),
    `packed products: bf16 ${tera(machine.peakBf16)} TFLOP/s, f32 ${tera(machine.peakF32)} TFLOP/s; ` +
      `memory ${(machine.memoryBandwidth / kGiga).toFixed(1)} GB/s`,
  ].join('\n');
}

/** The whole report, section by section; sections without rows are left out. */
export function reportText(report: Report): string {
  const { machine, rows, growth, warnings } = report;
  const sections = [machineText(machine)];
  const section = (title: string, table: Cells): void => {
    if (table.rows.length > 0) sections.push(`${title}\n${alignedTable(table)}`);
  };
  section('training', stepTable(rows));
  section('seconds of a step', splitTable(rows));
  section('beside torch', torchTable(rows));
  section('other', otherTable(rows));
  section('kernels', microTable(rows));
  section('growth (x^b or a + b x)', growthTable(growth));
  for (const warning of warnings) sections.push(`warning: ${warning}`);
  return sections.join('\n\n');
}

const steps = (rows: readonly Row[]): StepRow[] =>
  rows.filter((row): row is StepRow => row.kind === 'step');

export function stepTable(rows: readonly Row[]): Cells {
  return {
    head: [
      ...['row', 'dtype', 'tokens/s', 'low', 'high', 's/step', 'peak GiB', 'GFLOP/token'],
      ...['roofline', 'of peak', 'notes'],
    ],
    rows: steps(rows).map((row) => [
      ...[row.name, row.dtype, row.tokensPerSecond.toFixed(0)],
      ...[
        row.rate.low.toFixed(0),
        row.rate.high.toFixed(0),
        row.seconds.median.toFixed(row.seconds.median < 0.1 ? 3 : 2),
      ],
      ...[gib(row.peakBytes), (row.flopsPerToken / kGiga).toFixed(3)],
      row.rooflineSeconds > 0 ? percent(row.rooflineShare) : '-',
      row.gemmPeak > 0 ? percent((row.tokensPerSecond * row.flopsPerToken) / row.gemmPeak) : '-',
      row.notes.join('; '),
    ]),
  };
}

export function splitTable(rows: readonly Row[]): Cells {
  const parts = ['forward', 'teacher', 'losses', 'backward', 'optimizer', 'data', 'other'] as const;
  return {
    head: ['row', 'dtype', ...parts],
    rows: steps(rows).map((row) => [
      ...[row.name, row.dtype],
      ...parts.map((part) => row.split[part].toFixed(3)),
    ]),
  };
}

export function torchTable(rows: readonly Row[]): Cells {
  const lines: string[][] = [];
  for (const row of rows) {
    if (row.kind === 'step' && row.torch !== undefined) {
      const { version, tokensPerSecond, peakBytes, speedRatio, memoryRatio } = row.torch;
      lines.push([
        ...[row.name, row.dtype, version, row.tokensPerSecond.toFixed(0)],
        ...[tokensPerSecond.median.toFixed(0), times(speedRatio.median)],
        ...[`${times(speedRatio.low)}..${times(speedRatio.high)}`],
        ...[gib(row.peakBytes), gib(peakBytes), `1/${memoryRatio.median.toFixed(2)}`],
      ]);
    }
  }
  const head = ['row', 'dtype', 'torch', 'balora tok/s', 'torch tok/s', 'ratio', 'pairs'];
  return { head: [...head, 'balora GiB', 'torch GiB', 'memory'], rows: lines };
}

/** PiSSA, start times, ratios, and the rows that could not be measured. */
export function otherTable(rows: readonly Row[]): Cells {
  const lines: string[][] = [];
  for (const row of rows) {
    switch (row.kind) {
      case 'pissa': {
        const { seconds, capturedEnergy, modules, torch, notes } = row;
        const beside = torch
          ? `; torch ${torch.version}: ${torch.seconds.median.toFixed(2)} s, ${torch.capturedEnergy.toFixed(6)}`
          : '';
        const meaning = `${modules} layers, captured energy ${capturedEnergy.toFixed(6)}${beside}`;
        lines.push([
          row.name,
          row.dtype,
          `${seconds.median.toFixed(2)} s`,
          meaning,
          notes.join('; '),
        ]);
        break;
      }
      case 'start':
        lines.push([
          ...[row.name, row.dtype, `${row.seconds.median.toFixed(2)} s`],
          ...[row.meaning ?? 'process start to the first step', row.notes.join('; ')],
        ]);
        break;
      case 'ratio':
        lines.push([row.name, row.dtype, row.value.toFixed(2), row.meaning, '']);
        break;
      case 'unavailable':
        lines.push([row.name, row.dtype, 'not available', row.reason, '']);
        break;
    }
  }
  return { head: ['row', 'dtype', 'value', 'meaning', 'notes'], rows: lines };
}

export function microTable(rows: readonly Row[]): Cells {
  const lines: string[][] = [];
  for (const row of rows) {
    if (row.kind !== 'micro') continue;
    const { seconds, unit, rate, ceilingShare, extraBytes, shapes } = row;
    const [value, name] = unit === 'flop' ? [rate / kTera, 'TFLOP/s'] : [rate / kGiga, 'GB/s'];
    lines.push([
      ...[row.name, row.dtype, microseconds(seconds.median)],
      ...[microseconds(seconds.low), microseconds(seconds.high)],
      ...[value.toFixed(value < 10 ? 2 : 1), name, percent(ceilingShare)],
      ...[extraBytes === undefined ? '-' : mib(extraBytes), shapes],
    ]);
  }
  const head = ['kernel', 'dtype', 'us', 'low', 'high', 'rate', 'unit', 'of ceiling'];
  return { head: [...head, 'extra MiB', 'operands'], rows: lines };
}

export function growthTable(growth: readonly GrowthSeries[]): Cells {
  return {
    head: ['series', 'x', 'seconds', 'fit', 'R2', 'GiB', 'fit', 'R2'],
    rows: growth.map(({ shape, axis, baseFormat, points, time, memory, absent = [] }) => [
      [
        `${shape}${baseFormat === undefined ? '' : ` ${baseFormat}`} ${axis}`,
        ...absent.map(({ x, reason }) => `${sizeOf(axis, x)}: ${reason}`),
      ].join('; '),
      points.map(({ x }) => sizeOf(axis, x)).join(' '),
      points.map(({ seconds }) => seconds.toFixed(2)).join(' '),
      ...[time.formula, time.r2.toFixed(3)],
      points.map(({ peakBytes }) => gib(peakBytes)).join(' '),
      ...[memory.formula, memory.r2.toFixed(3)],
    ]),
  };
}

/** A size of a growth series: parameters in millions. */
function sizeOf(axis: GrowthSeries['axis'], x: number): string {
  return axis === 'parameters' ? `${Math.round(x / 1e6)}M` : String(x);
}

export function comparisonText(compared: ComparedReports, margin: number): string {
  const table = alignedTable({
    head: ['row', 'dtype', 'what', 'before', 'after', 'ratio', ''],
    rows: compared.comparisons.map(({ name, dtype, what, before, after, ratio, regression }) => [
      ...[name, dtype, what, short(before), short(after), ratio.toFixed(3)],
      regression ? 'REGRESSION' : '',
    ]),
  });
  const bad = compared.comparisons.filter(({ regression }) => regression).length;
  return [
    table,
    ...compared.warnings.map((warning) => `warning: ${warning}`),
    ...compared.missing.map((name) => `not measured this time: ${name}`),
    `${bad} of ${compared.comparisons.length} figures are worse by more than ${percent(margin)}`,
  ].join('\n');
}

const tera = (rate: number): string => (rate / kTera).toFixed(2);
const mib = (bytes: number): string => (bytes / 2 ** 20).toFixed(1);
const gib = (bytes: number): string => (bytes / kGiB).toFixed(2);
const percent = (share: number): string => `${(100 * share).toFixed(0)}%`;
const times = (ratio: number): string => `${ratio.toFixed(2)}x`;
const microseconds = (seconds: number): string => (seconds * 1e6).toFixed(seconds < 1e-4 ? 1 : 0);
const short = (value: number): string => String(Number(value.toPrecision(6)));
