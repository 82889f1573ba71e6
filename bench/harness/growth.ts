/** Growth of a step's time and memory with one size while all others stay fixed: the series and their fits. */
import { fitGrowth } from './fit.ts';
import { kShapes, type ShapeName, weightCount } from './shapes.ts';
import type { BenchDType, GrowthSeries, StepRow, Workload } from './types.ts';

type Axis = GrowthSeries['axis'];

const kGiB = 2 ** 30;

/** A step that is measured for a series. Series may share points. */
export interface PointPlan {
  readonly x: number;
  readonly shape: ShapeName;
  readonly workload: Workload;
}

export interface SeriesPlan extends Pick<GrowthSeries, 'axis' | 'fixed' | 'baseFormat'> {
  /** `growth-smollm2-135m-length` */
  readonly name: string;
  /** Name of the shape; `models` for a series over several. */
  readonly shape: string;
  readonly points: readonly PointPlan[];
  /** Steps of a point, and those before them that are not measured. */
  readonly counts: { readonly steps: number; readonly warmup: number };
}

const kBase: Workload = {
  label: 'growth',
  method: 'balora',
  ...{ rank: 16, batch: 1, length: 512, accumulation: 1, data: 'random' },
};

const kAxes: Readonly<
  Record<
    Exclude<Axis, 'parameters'>,
    { xs: readonly number[]; fixed: string; at: (x: number) => Partial<Workload> }
  >
> = {
  length: {
    xs: [256, 512, 1024, 2048],
    fixed: 'batch 1, r 16',
    at: (length) => ({ length }),
  },
  batch: { xs: [1, 2, 4, 8], fixed: 'length 256, r 16', at: (batch) => ({ batch, length: 256 }) },
  rank: { xs: [8, 32, 64, 128], fixed: 'batch 1 x 512', at: (rank) => ({ rank }) },
  vocabulary: {
    xs: [16384, 32768, 65536, 131072],
    fixed: 'batch 1 x 512, r 16',
    at: (vocabulary) => ({ vocabulary }),
  },
};

const kGrown: readonly ShapeName[] = ['smollm2-135m', 'smollm2-360m', 'tinyllama-1.1b'];

const kOfSizes: readonly SeriesPlan[] = kGrown.flatMap((shape) =>
  Object.entries(kAxes).map(([axis, { xs, fixed, at }]) => ({
    name: `growth-${shape}-${axis}`,
    ...{ shape, axis: axis as Axis, fixed },
    points: xs.map((x) => ({ x, shape, workload: { ...kBase, ...at(x) } })),
    counts: { steps: 2, warmup: 2 },
  })),
);

/** The forms of a base: its values, and blocks. */
const kForms: readonly { readonly baseFormat?: 'nf4' }[] = [{}, { baseFormat: 'nf4' }];
/** Lengths that a model of 7 billion parameters is trained at in minutes. */
const kShortLengths = [128, 256, 512];
/** A step of the largest model takes a minute or two. */
const kFewSteps = { steps: 1, warmup: 1 };

/** The series over lengths of a base of one shape, in memory as `form` says. */
function lengthSeries(shape: ShapeName, form: (typeof kForms)[number]): SeriesPlan {
  return {
    name: `growth-bases-${shape}-${form.baseFormat ?? 'dense'}`,
    ...{ shape, axis: 'length', fixed: kAxes.length.fixed, counts: kFewSteps, ...form },
    points: kShortLengths.map((x) => ({ x, shape, workload: { ...kBase, ...form, length: x } })),
  };
}

const kLargest: ShapeName = 'llama-7b';

/**
 * The series that compare a base in blocks with one that has its values in memory: over lengths for each shape, and over the shapes.
 * The largest shape has a series over lengths in blocks alone, since its steps take minutes.
 */
const kOfBases: readonly SeriesPlan[] = kForms.flatMap((form) => {
  const shapes: ShapeName[] = form.baseFormat === undefined ? [...kGrown] : [...kGrown, kLargest];
  const ofShapes: SeriesPlan = {
    name: `growth-bases-models-${form.baseFormat ?? 'dense'}`,
    ...{ shape: 'models', axis: 'parameters', fixed: 'batch 1 x 512, r 16' },
    ...{ counts: kFewSteps, ...form },
    points: [...kGrown, kLargest].map((shape) => ({
      ...{ x: weightCount(kShapes[shape]), shape, workload: { ...kBase, ...form } },
    })),
  };
  return [...shapes.map((shape) => lengthSeries(shape, form)), ofShapes];
});

export const kSeries: readonly SeriesPlan[] = [...kOfSizes, ...kOfBases];

/**
 * The series that `--only` names: `growth` and `growth-bases`, a name, or the beginning of names with a star.
 * @param trial whether the benchmark itself is tried: `growth-bases` then are the two series of the shape `tiny`
 */
export function chooseSeries(only: readonly string[], { trial = false } = {}): SeriesPlan[] {
  const bases = trial ? kForms.map((form) => lengthSeries('tiny', form)) : kOfBases;
  return [...kOfSizes, ...bases].filter((series) =>
    only.some((wanted) => {
      if (wanted.endsWith('*')) return series.name.startsWith(wanted.slice(0, -1));
      if (wanted === 'growth') return kOfSizes.includes(series);
      if (wanted === 'growth-bases') return bases.includes(series);
      return wanted === series.name;
    }),
  );
}

/** Bytes that a step of a point takes at least: those of the base. */
export function leastBytes({ shape, workload }: PointPlan, dtype: BenchDType): number {
  const weights = weightCount(kShapes[shape]);
  return workload.baseFormat === 'nf4' ? weights / 2 : weights * (dtype === 'bf16' ? 2 : 4);
}

/** The measured series with its fits. */
export function growthSeries(
  { shape, axis, fixed, baseFormat }: SeriesPlan,
  dtype: BenchDType,
  measured: readonly { readonly x: number; readonly row: StepRow }[],
  absent: GrowthSeries['absent'] = [],
): GrowthSeries {
  const points = measured.map(({ x, row }) => ({
    x,
    seconds: row.seconds.median,
    peakBytes: row.peakBytes,
  }));
  return {
    ...{ shape, dtype, axis, fixed, points },
    ...(baseFormat !== undefined && { baseFormat }),
    time: fitGrowth(points.map(({ x, seconds }) => ({ x, y: seconds }))),
    memory: fitGrowth(points.map(({ x, peakBytes }) => ({ x, y: peakBytes / kGiB }))),
    ...(absent.length > 0 && { absent }),
  };
}
