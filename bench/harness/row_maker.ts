/** Measures one row at a time by the jobs that it needs, alone or in turns with PyTorch. */
import type { InitLoraWeights } from '../../lib/adapters/config.ts';
import { runJob } from './children.ts';
import { missingFeature } from './features.ts';
import type { BenchOptions } from './options.ts';
import { median, spread } from './statistics.ts';
import {
  pairsOf,
  recipeOptions,
  runRecipe,
  type TorchRun,
  torchPissa,
  withTorchFolder,
} from './torch.ts';
import type { BenchDType, PissaRow, Row, StepRow, Workload } from './types.ts';
import type { JobInput, JobKind, JobResult } from './worker.ts';
import type { Plan } from './workloads.ts';

const kWarmup = 2;
const kPairs = 3;
const kSteps = 5;
/** Steps of a run in turns with torch, where all micro-batches have one size. */
const kPairedSteps = { warmup: kWarmup, steps: 3, torchWarmup: 1, torchSteps: 2 };
/** Steps on micro-batches of many lengths: both sides run the same ones. */
const kUnevenSteps = { warmup: 2, steps: 6, torchWarmup: 2, torchSteps: 6 };
/** Steps of an encoder, which take a tenth of the others' time, have many sizes and settle later. */
const kEncoderSteps = { warmup: 5, steps: 20, torchWarmup: 5, torchSteps: 20 };
const kPissaRepetitions = 3;
const kStarts = 5;
/** Measured steps of a turn in the rows of methods. */
const kMethodStepCount = 2;
/** Rank for the shape `tiny`, whose narrowest linear has only 32 singular values. */
const kTrialRank = 16;

export class RowMaker {
  private readonly dtype: BenchDType;
  private readonly subject: { shape: string; model: string | undefined; dtype: BenchDType };

  constructor(private readonly options: BenchOptions) {
    const { shape = 'smollm2-135m', model, dtype = 'bf16' } = options;
    this.dtype = dtype;
    this.subject = { shape, model, dtype };
  }

  private job<K extends JobKind>(kind: K, input: JobInput<K>): Promise<JobResult<K>> {
    return runJob(kind, input, { device: this.options.device });
  }

  private rankOf(rank: number): number {
    const { shape, model } = this.subject;
    return shape === 'tiny' && model === undefined ? Math.min(rank, kTrialRank) : rank;
  }

  /** Whether each side draws random weights of its own, as on a GPU. */
  private get ownWeights(): boolean {
    const { device = 'cpu', model } = this.options;
    return device !== 'cpu' && model === undefined;
  }

  private torchDevice(data?: Workload['data']): Record<string, string | boolean> {
    const { device = 'cpu' } = this.options;
    if (device === 'cpu') return {};
    return data === 'sst2' ? { device } : { device, random: this.ownWeights }; // an encoder is small
  }

  /** Measures a row that needs no other row. */
  async make(
    plan: Extract<Plan, { kind: 'step' | 'pissa' | 'overhead' | 'decode' | 'start' | 'method' }>,
  ): Promise<Row> {
    switch (plan.kind) {
      case 'step':
        return this.stepOrReason(plan.name, plan.workload);
      case 'pissa':
        return this.pissa(plan.name, plan.init, this.rankOf(plan.rank));
      case 'overhead': {
        const { shape, dtype } = this.subject;
        return this.job('overhead', { name: plan.name, shape, dtype, rank: plan.rank });
      }
      case 'method': {
        const { steps = kMethodStepCount, data: dataFile } = this.options;
        return this.job('method', { ...this.subject, name: plan.name, steps, dataFile });
      }
      case 'decode':
        return this.job('decode', { ...this.subject, name: plan.name });
      case 'start':
        return this.start(plan.name);
    }
  }

  /** Measures a training row. @param shape a shape other than the run's own, with random weights */
  step(
    name: string,
    workload: Workload,
    {
      steps,
      shape,
      warmup = countsOf(workload).warmup,
      roofline = true,
    }: { steps: number; shape?: string; warmup?: number; roofline?: boolean },
  ): Promise<StepRow> {
    const subject =
      shape === undefined ? this.subject : { ...this.subject, shape, model: undefined };
    const { data: dataFile } = this.options;
    return this.job('step', {
      ...subject,
      workload: { ...workload, rank: this.rankOf(workload.rank) },
      ...{ name, steps, warmup, roofline, dataFile },
    });
  }

  private async stepOrReason(name: string, workload: Workload): Promise<Row> {
    const { dtype } = this;
    const { device = 'cpu' } = this.options;
    const reason = workload.feature === undefined ? null : missingFeature(workload.feature, device);
    if (reason !== null) return { kind: 'unavailable', name, dtype, reason };
    if (workload.baseFormat === 'gguf' && this.subject.model === undefined) {
      const reason = 'random weights are in no GGUF file: --model';
      return { kind: 'unavailable', name, dtype, reason };
    }
    const { torch, steps } = this.options;
    if (torch !== undefined) return this.pairedStep(name, workload, torch);
    return this.step(name, workload, { steps: steps ?? countsOf(workload).steps });
  }

  /** Runs balora and torch in turns, so that a disturbance affects both. */
  private async pairedStep(name: string, workload: Workload, python: string): Promise<StepRow> {
    const counts = countsOf(workload, { paired: true });
    const { torchWarmup } = counts;
    const { pairs = kPairs, steps = counts.steps } = this.options;
    // Where micro-batches have many sizes, both sides must measure the same ones.
    const even = workload.data === 'random';
    const torchSteps = even ? (this.options.torchSteps ?? counts.torchSteps) : steps;
    const { data: dataFile } = this.options;
    const count = (torchWarmup + torchSteps) * workload.accumulation;
    return withTorchFolder(async (folder) => {
      const { ownWeights } = this;
      await this.job('torchInputs', {
        ...this.subject,
        ...{ folder, workload, dataFile, count, ownWeights },
      });
      const made: { balora: StepRow; torch: TorchRun }[] = [];
      for (let i = 0; i < pairs; i++) {
        const balora = await this.step(name, workload, { steps, roofline: i === 0 });
        const flags = {
          ...recipeOptions({ ...workload, rank: this.rankOf(workload.rank) }, this.dtype),
          ...this.torchDevice(workload.data),
          ...{ warmup: torchWarmup, steps: torchSteps },
        };
        made.push({ balora, torch: await runRecipe(python, folder, flags, workload.data) });
      }
      return mergeRuns(
        made.map(({ balora }) => balora),
        { torch: pairsOf(made) },
      );
    });
  }

  private async pissa(name: string, init: InitLoraWeights, rank: number): Promise<PissaRow> {
    const { dtype, subject } = this;
    const { torch } = this.options;
    const own = (repetitions: number): Promise<PissaRow> =>
      this.job('pissa', { ...subject, name, rank, init, repetitions });
    if (torch === undefined) return own(kPissaRepetitions);
    const niter = init === 'pissa' ? 'exact' : String(init).replace('pissa_niter_', '');
    return withTorchFolder(async (folder) => {
      await this.job('torchInputs', { ...subject, folder, count: 0, ownWeights: this.ownWeights });
      const row = await own(kPissaRepetitions);
      const flags = {
        ...{ job: 'pissa', dtype, rank, niter, warmup: 0, steps: kPissaRepetitions },
        ...this.torchDevice(),
      };
      return { ...row, torch: torchPissa(await runRecipe(torch, folder, flags)) };
    });
  }

  private async start(name: string): Promise<Row> {
    const { dtype } = this;
    const { model } = this.options;
    if (model === undefined) {
      const reason = 'needs --model: a start reads a file and a tokenizer';
      return { kind: 'unavailable', name, dtype, reason };
    }
    const seconds: number[] = [];
    for (let i = 0; i <= kStarts; i++) {
      const one = await this.job('start', { model, dtype, startedAt: Date.now() });
      if (i > 0) seconds.push(one); // the first run brings the file into the page cache
    }
    const notes = ['the file is warm'];
    return { kind: 'start', name, dtype, seconds: spread(seconds), notes };
  }
}

/** The numbers of warm-up and of measured steps in a run of each side. */
function countsOf({ data }: Workload, { paired = false } = {}): typeof kEncoderSteps {
  if (data === 'sst2') return kEncoderSteps;
  if (data === 'gsm8k') return kUnevenSteps;
  return paired ? kPairedSteps : { ...kPairedSteps, steps: kSteps };
}

/** Merges several runs of a row into one: medians of the runs, extremes over all. */
export function mergeRuns(
  runs: readonly StepRow[],
  extra: Pick<StepRow, 'torch'> | Record<string, never> = {},
): StepRow {
  const first = runs[0] as StepRow; // the run with the roofline
  const over = (pick: (row: StepRow) => number): number => median(runs.map(pick));
  const merged = (pick: (row: StepRow) => StepRow['seconds']): StepRow['seconds'] => ({
    median: over((row) => pick(row).median),
    low: Math.min(...runs.map((row) => pick(row).low)),
    high: Math.max(...runs.map((row) => pick(row).high)),
    samples: runs.reduce((sum, row) => sum + pick(row).samples, 0),
  });
  const split = Object.fromEntries(
    Object.keys(first.split).map((key) => [
      key,
      over((row) => row.split[key as keyof StepRow['split']]),
    ]),
  ) as unknown as StepRow['split'];
  const seconds = merged((row) => row.seconds);
  return {
    ...first,
    ...extra,
    tokensPerSecond: over((row) => row.tokensPerSecond),
    rate: merged((row) => row.rate),
    seconds,
    split,
    peakBytes: over((row) => row.peakBytes),
    rooflineShare: first.rooflineSeconds / seconds.median,
  };
}
