/** Growth of a step's time and memory with one size while all others stay fixed: the series and their fits. */
import { fitGrowth } from './fit.ts';
import type { ShapeName } from './shapes.ts';
import type { BenchDType, GrowthSeries, StepRow, Workload } from './types.ts';

type Axis = GrowthSeries['axis'];

const kGiB = 2 ** 30;

export interface SeriesPlan {
  /** `growth-smollm2-135m-length` */
  readonly name: string;
  readonly shape: ShapeName;
  readonly axis: Axis;
  readonly fixed: string;
  readonly points: readonly { readonly x: number; readonly workload: Workload }[];
}

const kBase: Workload = {
  label: 'growth',
  method: 'balora',
  ...{ rank: 16, batch: 1, length: 512, accumulation: 1, data: 'random' },
};

const kAxes: Readonly<
  Record<Axis, { xs: readonly number[]; fixed: string; at: (x: number) => Partial<Workload> }>
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

const kShapes: readonly ShapeName[] = ['smollm2-135m', 'smollm2-360m', 'tinyllama-1.1b'];

export const kSeries: readonly SeriesPlan[] = kShapes.flatMap((shape) =>
  Object.entries(kAxes).map(([axis, { xs, fixed, at }]) => ({
    name: `growth-${shape}-${axis}`,
    shape,
    axis: axis as Axis,
    fixed,
    points: xs.map((x) => ({ x, workload: { ...kBase, ...at(x) } })),
  })),
);

/** The series that `--only` names: `growth`, a name, or the beginning of names with a star. */
export function chooseSeries(only: readonly string[]): SeriesPlan[] {
  return kSeries.filter(({ name }) =>
    only.some((wanted) => {
      if (wanted.endsWith('*')) return name.startsWith(wanted.slice(0, -1));
      return wanted === 'growth' || wanted === name;
    }),
  );
}

/** The measured series with its fits. */
export function growthSeries(
  { shape, axis, fixed }: SeriesPlan,
  dtype: BenchDType,
  measured: readonly { readonly x: number; readonly row: StepRow }[],
): GrowthSeries {
  const points = measured.map(({ x, row }) => ({
    x,
    seconds: row.seconds.median,
    peakBytes: row.peakBytes,
  }));
  return {
    ...{ shape, dtype, axis, fixed, points },
    time: fitGrowth(points.map(({ x, seconds }) => ({ x, y: seconds }))),
    memory: fitGrowth(points.map(({ x, peakBytes }) => ({ x, y: peakBytes / kGiB }))),
  };
}
