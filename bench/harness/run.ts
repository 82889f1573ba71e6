/** A benchmark run: the machine, the rows one after the other, the machine again, and warnings. */
import { execFile } from 'node:child_process';
import { existsSync } from 'node:fs';
import { basename } from 'node:path';
import { promisify } from 'node:util';
import { ArgumentError } from '../../lib/errors.ts';
import { formatBytes } from '../../lib/io/format_bytes.ts';
import { availableMemory } from '../../lib/runtime.ts';
import { runJob } from './children.ts';
import { currentDisturbance, idleWarnings, watched } from './disturbance.ts';
import { chooseSeries, growthSeries, leastBytes, type SeriesPlan } from './growth.ts';
import type { BenchOptions } from './options.ts';
import { ratioRow } from './ratios.ts';
import { RowMaker } from './row_maker.ts';
import { type ModelShape, shapeNamed } from './shapes.ts';
import type { GrowthSeries, Machine, Report, Row, StepRow } from './types.ts';
import { choosePlans, kGroupNames, type Plan, type RatioName } from './workloads.ts';

const execFileAsync = promisify(execFile);
/** The shape for trying the benchmark itself; the machine's peak rates are then measured at tiny sizes, too. */
const kTrialShape = 'tiny';

/**
 * Measures and reports. Each training row runs in a process of its own; nothing else should run on the machine.
 * @throws ArgumentError for rows that do not exist; NativeError with the message of a row's process that failed
 */
export async function runBench(options: BenchOptions = {}): Promise<Report> {
  const { only = ['all'], onProgress = () => {} } = options;
  const trial = options.shape === kTrialShape;
  const series = chooseSeries(only, { trial });
  const plans = choosePlans(only.filter((name) => !name.startsWith('growth')));
  if (plans.length + series.length === 0) {
    throw new ArgumentError(`nothing to measure; groups: ${kGroupNames.join(', ')}`);
  }
  const first = await currentDisturbance();
  onProgress('machine');
  const { device, model } = options;
  const machine = await runJob('machine', { trial }, { device });
  const maker = new RowMaker(options);
  const rows: Row[] = [];
  for (const plan of plans) {
    if (plan.kind === 'micro') continue;
    onProgress(plan.name);
    const isRatio = plan.kind === 'ratio';
    rows.push(isRatio ? ratio(plan, options, rows) : await watched(() => maker.make(plan)));
  }
  rows.push(...(await micro(plans, options, machine)));
  const growth: GrowthSeries[] = [];
  const points: MeasuredPoints = new Map();
  for (const plan of series) growth.push(await grow(plan, points, { maker, options }));
  onProgress('machine');
  const after = await runJob('machine', { trial }, { device });
  const warnings = idleWarnings({
    first,
    before: machine,
    after,
    rows: [...rows, ...points.values()],
  });
  return {
    format: 1,
    date: new Date().toISOString(),
    commit: await commitOf(new URL('../../', import.meta.url)),
    ...(model === undefined ? {} : { model: basename(model) }),
    ...{ machine, warnings, rows, growth },
  };
}

/** The commit of the measured code, with a plus where files were changed; null outside a checkout. */
async function commitOf(folder: URL): Promise<string | null> {
  if (!existsSync(new URL('.git', folder))) return null; // git would find the repository of a project around it
  const git = async (...args: string[]): Promise<string> =>
    (await execFileAsync('git', args, { cwd: folder })).stdout.trim();
  try {
    const changed = await git('status', '--porcelain', '--untracked-files=no');
    return `${await git('rev-parse', '--short=12', 'HEAD')}${changed === '' ? '' : '+'}`;
  } catch {
    return null; // no git, or no permission to read the repository
  }
}

function ratio(plan: Plan, { dtype = 'bf16' }: BenchOptions, rows: readonly Row[]): Row {
  return ratioRow(plan.name as RatioName, dtype, rows);
}

async function micro(
  plans: readonly Plan[],
  { shape = 'smollm2-135m', dtype = 'bf16', device, onProgress = () => {} }: BenchOptions,
  ceilings: Machine,
): Promise<Row[]> {
  const names = plans.filter(({ kind }) => kind === 'micro').map(({ name }) => name);
  if (names.length === 0) return [];
  onProgress(`${names.length} kernels`);
  const sizes: ModelShape = shapeNamed(shape);
  const trial = shape === kTrialShape;
  return runJob('micro', { names, shape: sizes, dtype, ceilings, trial }, { device });
}

/** Points that were measured for some series, by what they measure. */
type MeasuredPoints = Map<string, StepRow>;

async function grow(
  plan: SeriesPlan,
  known: MeasuredPoints,
  { maker, options }: { maker: RowMaker; options: BenchOptions },
): Promise<GrowthSeries> {
  const { onProgress = () => {}, dtype = 'bf16' } = options;
  const { name, points, counts } = plan;
  const measured: { x: number; row: StepRow }[] = [];
  const absent: { x: number; reason: string }[] = [];
  for (const point of points) {
    const { x, shape, workload } = point;
    const key = JSON.stringify([shape, workload, counts]);
    const found = known.get(key);
    const reason = found === undefined ? obstacle(leastBytes(point, dtype)) : null;
    if (reason !== null) {
      absent.push({ x, reason });
      continue;
    }
    onProgress(`${name} ${x}`);
    const row =
      found ??
      (await watched(() =>
        maker.step(`${name} ${x}`, workload, { ...counts, shape, roofline: false }),
      ));
    known.set(key, row);
    measured.push({ x, row });
  }
  return growthSeries(plan, dtype, measured, absent);
}

/** The part of the memory that a base may take: what is trained beside it takes about a fifth of it, at one sequence of 512 tokens. */
const kBasePart = 0.8;

/** The reason why this machine has no memory for a base of so many bytes; null if it has. */
function obstacle(bytes: number): string | null {
  const free = availableMemory()?.free ?? Number.POSITIVE_INFINITY;
  if (bytes <= kBasePart * free) return null;
  return `the base takes ${formatBytes(bytes)}, and ${formatBytes(free)} are free`;
}
