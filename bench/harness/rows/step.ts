/** One training row in a process of its own: real steps of the trainer, timed from outside, then their roofline. */
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import type { LoraConfigInput } from '../../../lib/adapters/config.ts';
import { getDefaultDevice, sharesProcessMemory } from '../../../lib/device.ts';
import { peakRssBytes } from '../../../lib/io/peak_memory.ts';
import type { CausalLM } from '../../../lib/models/index.ts';
import { sharedRows } from '../../../lib/models/shared_rows.ts';
import {
  memoryStats,
  opTimes,
  resetOpTimes,
  setNumThreads,
  setProfiling,
} from '../../../lib/runtime.ts';
import { METHODS, resolveMethod } from '../../../lib/train/methods.ts';
import { Trainer, type TrainerOptions } from '../../../lib/train/trainer.ts';
import type { BatchSource, StepRecord } from '../../../lib/train/types.ts';
import { encoderSetup } from '../encoder_setup.ts';
import { keepsTeacher, kFeatures } from '../features.ts';
import { attentionFlops, type StepShape, stepProducts, usefulFlops } from '../flops.ts';
import { peakRate, productsSeconds } from '../products.ts';
import type { Sizes } from '../shapes.ts';
import { mean, median, spread, sum } from '../statistics.ts';
import type { Sequences, StepRowInput, StepSetup } from '../step_setup.ts';
import { openSubject } from '../subject.ts';
import type { StepRow, StepSplit, Workload } from '../types.ts';
import { TimedSource, workloadData } from '../workload_batches.ts';

/** Measurements of one step. */
interface StepSample {
  readonly record: StepRecord;
  readonly seconds: number;
  readonly split: StepSplit;
}

const kPhases = ['forward', 'teacher', 'losses', 'backward', 'optimizer'] as const;

export async function stepRow(input: StepRowInput): Promise<StepRow> {
  const { workload, dtype, warmup } = input;
  if (workload.threads !== undefined) setNumThreads(workload.threads);
  // A GPU runs asynchronously: one more step, which waits for each op, shows where the time goes.
  const extra = sharesProcessMemory() ? 0 : 1;
  const total = warmup + input.steps + extra;
  const setUp = workload.data === 'sst2' ? encoderSetup : decoderSetup;
  const setup = await setUp(input, total);
  const { samples, profiled, batches, peakBytes } = await measure(setup, {
    ...{ total, extra },
  }).finally(() => setup.dispose());
  const measured = samples.slice(warmup);
  const seconds = measured.map((sample) => sample.seconds);
  const tokens = mean(measured.map(({ record }) => record.tokens));
  const supervised = mean(measured.map(({ record }) => record.supervisedTokens));
  const shape: StepShape = {
    sizes: setup.sizes,
    // The teacher is not run from the second epoch on if its outputs are cached.
    method: keepsTeacher(workload.feature) ? 'lora' : workload.method,
    rank: workload.rank,
    rows: Math.round(batches.rows),
    supervised: Math.round(supervised / workload.accumulation),
    squaredLengths: batches.squaredLengths,
    accumulation: workload.accumulation,
  };
  const rooflineSeconds = input.roofline ? await productsSeconds(stepProducts(shape), dtype) : 0;
  const gemmPeak = input.roofline ? await peakRate(dtype, { trial: input.shape === 'tiny' }) : 0;
  return {
    kind: 'step',
    name: input.name,
    dtype,
    shape: setup.name,
    workload,
    tokens,
    supervisedTokens: supervised,
    tokensPerSecond: rateOf(measured),
    rate: spread(measured.map(({ record, seconds }) => record.tokens / seconds)),
    seconds: spread(seconds),
    split: medianSplit((profiled ? [profiled] : measured).map(({ split }) => split)),
    peakBytes,
    flopsPerToken: usefulFlops(shape) / tokens,
    rooflineSeconds,
    rooflineShare: rooflineSeconds / median(seconds),
    ceilingSeconds: input.roofline ? rooflineSeconds + attentionFlops(shape) / gemmPeak : 0,
    gemmPeak,
    notes: setup.notes,
  };
}

/** Tokens per second: of the median step where all steps have one size, otherwise all tokens over all seconds. */
function rateOf(samples: readonly StepSample[]): number {
  const tokens = samples.map(({ record }) => record.tokens);
  const seconds = samples.map((sample) => sample.seconds);
  const equal = tokens.every((count) => count === tokens[0]);
  return equal ? (tokens[0] as number) / median(seconds) : sum(tokens) / sum(seconds);
}

/** The setup of a language model on random ids or GSM8K's rows. */
async function decoderSetup(input: StepRowInput, total: number): Promise<StepSetup> {
  const { workload, warmup } = input;
  const { model, sizes, name, notes } = await openSubject({
    ...input,
    vocabulary: workload.vocabulary,
    baseFormat: workload.baseFormat,
  });
  // The cache of the teacher is read from the second epoch on.
  const epochSteps = keepsTeacher(workload.feature) ? Math.min(2, warmup) : total;
  const data = await workloadData(workload, {
    vocabulary: sizes.v,
    count: epochSteps * workload.accumulation,
    model: input.model,
    dataFile: input.dataFile,
  });
  const source = new TimedSource(data.source);
  const tuned = await tunedModel(workload, model, input.model !== undefined);
  return {
    ...{ source, sizes, name },
    trainer: new Trainer({ tuned, data: source, ...trainerOptions(workload, total) }),
    notes: [...notes, ...data.notes],
    dispose: async () => {
      tuned.dispose();
      model.dispose();
      await data.close();
    },
  };
}

async function measure(
  { trainer, source, sizes }: StepSetup,
  { total, extra }: { total: number; extra: number },
) {
  const samples: StepSample[] = [];
  let peakBytes = 0;
  let fetched = 0;
  resetOpTimes();
  for await (const event of trainer.run()) {
    if (event.type !== 'step') continue;
    samples.push(sampleOf(event.record, source.seconds - fetched));
    fetched = source.seconds;
    resetOpTimes();
    // The profiled step runs without graphs and counts for nothing else.
    if (samples.length === total - extra) peakBytes = peakBytesOf(getDefaultDevice());
    if (extra === 1 && samples.length === total - 1) setProfiling(true);
  }
  setProfiling(false);
  const profiled = extra === 1 ? samples.pop() : undefined;
  const batches = await meanBatch(source, sizes);
  return { samples, profiled, batches, peakBytes };
}

/**
 * The adapter of a row. For random weights PiSSA's search is cut short: a random matrix has no leading directions to converge to,
 * and a step costs the same from any initialisation.
 */
function tunedModel(
  { method, rank }: Workload,
  model: CausalLM,
  real: boolean,
): Promise<AdapterModel> {
  const quick: LoraConfigInput =
    method === 'balora' && !real ? { initLoraWeights: 'pissa_niter_1' } : {};
  return AdapterModel.create(model, {
    ...METHODS[method].adapter,
    ...quick,
    r: rank,
    loraAlpha: rank,
  });
}

/** Options of the trainer, with every term at its full weight from the first step on. */
function trainerOptions(workload: Workload, total: number): Partial<TrainerOptions> {
  const { regularizers } = resolveMethod(workload.method);
  return {
    maxSteps: total,
    captureGraphs: !sharesProcessMemory(),
    gradientAccumulationSteps: workload.accumulation,
    regularizers: {
      ...regularizers,
      consistencySchedule: 'constant',
      regularizerSchedule: 'constant',
    },
    ...(workload.feature === undefined ? {} : kFeatures[workload.feature].option),
  };
}

function sampleOf(record: StepRecord, data: number): StepSample {
  const seconds = record.tokens / record.tokensPerSecond;
  const times = opTimes();
  const phases = Object.fromEntries(
    kPhases.map((phase) => [
      phase,
      sum(times.filter((time) => time.phase === phase).map((time) => time.seconds)),
    ]),
  ) as Record<(typeof kPhases)[number], number>;
  const other = Math.max(0, seconds - data - sum(Object.values(phases)));
  return { record, seconds, split: { ...phases, data, other } };
}

function medianSplit(splits: readonly StepSplit[]): StepSplit {
  const keys = [...kPhases, 'data', 'other'] as const;
  return Object.fromEntries(
    keys.map((key) => [key, median(splits.map((split) => split[key]))]),
  ) as unknown as StepSplit;
}

/** Means over the micro-batches: the rows that are computed, and the sum of the sequences' squared lengths. */
async function meanBatch(
  source: BatchSource<Sequences>,
  { encoder = false }: Sizes,
): Promise<{ rows: number; squaredLengths: number }> {
  const rows: number[] = [];
  const squares: number[] = [];
  for await (const batch of source.batches(0, 0)) {
    const { inputIds, cuSeqlens } = batch;
    const shared = encoder ? null : sharedRows(batch);
    rows.push(shared?.firstOf.length ?? inputIds.length);
    const lengths = cuSeqlens.slice(1).map((end, b) => end - (cuSeqlens[b] as number));
    squares.push(lengths.reduce((total, length) => total + length ** 2, 0));
  }
  return { rows: mean(rows), squaredLengths: mean(squares) };
}

/** Peak memory in bytes: the process's where the device shares its memory, otherwise the device's by the allocator's count. */
export function peakBytesOf(device: string): number {
  if (sharesProcessMemory(device)) return peakRssBytes();
  const { peakBytes, derivedBytes } = memoryStats({ device });
  return peakBytes + derivedBytes;
}
