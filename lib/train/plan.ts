/**
 * The plan of a run, made before its first step. Counts and the memory that stays allocated throughout the run are exact. The
 * additional memory of a step depends on kernels and shapes, so it is measured on one micro-batch rather than estimated.
 */
import { deviceInfo, sharesProcessMemory } from '../device.ts';
import { NativeError } from '../errors.ts';
import { formatBytes } from '../io/format_bytes.ts';
import { peakRssBytes } from '../io/peak_memory.ts';
import { Linear } from '../nn/index.ts';
import { learningRateSchedule, warmupStepsFrom } from '../optim/schedulers.ts';
import { availableMemory, memoryStats, resetPeakMemory, synchronize } from '../runtime.ts';
import { taskOf } from '../tasks/list.ts';
import { DTYPE_BYTES, type Tensor } from '../tensor.ts';
import { bestMetric } from './best.ts';
import { int8CopiesBytes, productsOf } from './compute.ts';
import {
  bytesOf,
  chunkBytesOf,
  type MemoryNote,
  MemoryPlanner,
  planBefore,
  type RunMemory,
} from './memory_plan.ts';
import { momentCount, updatedBy, withoutGradients } from './optimizers.ts';
import { type ResolvedRun, teacherCacheOption } from './resolve_run.ts';
import { objectiveOf, Runner, selectorOf } from './runner.ts';
import { samplingMemory } from './samples.ts';
import { accumulateWindow } from './step.ts';
import type { AnyTrainerOptions } from './trainer_options.ts';
import type { RunPlan } from './types.ts';
import { countSteps, WindowReader } from './window.ts';

export async function makePlan(
  { tuned, data }: AnyTrainerOptions,
  { optimization }: ResolvedRun,
): Promise<RunPlan> {
  const { gradientAccumulationSteps: accumulation, numTrainEpochs, maxSteps } = optimization;
  const totalSteps = await countSteps(data, { accumulation, numTrainEpochs, maxSteps });
  const base = tuned.model.parameters();
  const trained = updatedBy(optimization, tuned.parameters()).map(({ tensor }) => tensor);
  const trainedBytes = bytesOf(trained);
  return {
    totalSteps,
    warmupSteps: warmupStepsFrom(optimization.warmupSteps, totalSteps),
    microBatchesPerEpoch: await data.batchCount(0),
    trainableParameters: count(trained),
    baseParameters: count(base),
    memory: {
      baseBytes: bytesOf(base),
      teacherBytes: tuned.teacherBytes,
      adapterBytes: bytesOf(Object.values(tuned.state())),
      optimizerBytes: DTYPE_BYTES.f32 * momentCount(trained, optimization) + trainedBytes,
      activationBytes: null,
      totalBytes: null,
    },
    memoryPlan: null,
    measuredTokens: null,
    secondsPerStep: null,
  };
}

/** The number of steps for which the learning rate is checked before a run. */
const kCheckedRates = 100_000;

/**
 * The learning rate as a function of the step, counted from 0.
 * @throws ArgumentError where the schedule's options give no learning rate for some step
 */
export function learningRateOf(
  { totalSteps, warmupSteps }: Pick<RunPlan, 'totalSteps' | 'warmupSteps'>,
  { optimization }: ResolvedRun,
): (step: number) => number {
  const rate = learningRateSchedule({
    scheduler: optimization.lrSchedulerType,
    total: totalSteps,
    warmup: warmupSteps,
    learningRate: optimization.learningRate,
    options: optimization.lrSchedulerKwargs,
  });
  const stride = Math.ceil(totalSteps / kCheckedRates);
  for (let step = 0; step < totalSteps; step += stride) rate(step);
  rate(Math.max(0, totalSteps - 1));
  return rate;
}

/**
 * Refuses a run whose gradients and moments, which are not allocated yet, do not fit into the free memory.
 * @throws NativeError (ERR_OUT_OF_MEMORY) with the sizes
 */
export function requireRunMemory({ tuned }: AnyTrainerOptions, { memory }: RunPlan): void {
  const available = availableMemory({ device: tuned.model.device });
  const { optimizerBytes: bytes } = memory;
  if (available === null || bytes <= available.free) return;
  const { device, free, total } = available;
  throw new NativeError(
    `the gradients and the optimiser's moments take ${formatBytes(bytes)}, and ${formatBytes(free)} of ${formatBytes(total)} are ` +
      `free on ${device}`,
    {
      code: 'ERR_OUT_OF_MEMORY',
      advice: 'train an adapter, one of a lower rank, or with optim adafactor or sgd',
    },
  );
}

/**
 * Makes the plan for the run's memory budget and configures the model for it; null without a budget.
 * @param onNote called where the budget is above the memory that there is
 * @throws ArgumentError where the budget is below the smallest plan, as far as the sizes of the micro-batches are known
 */
export async function planMemory(
  input: AnyTrainerOptions,
  options: ResolvedRun,
  { plan, onNote = () => {} }: { plan: RunPlan; onNote?: (note: MemoryNote) => void },
): Promise<MemoryPlanner | null> {
  const { tuned, data, evalData } = input;
  const { resources, optimization } = options;
  const { memoryBudget, compute } = resources;
  if (memoryBudget === null) return null;
  const { optimizerBytes } = plan.memory;
  const { device, totalBytes } = deviceInfo(tuned.model.device);
  const above = typeof memoryBudget === 'number' && totalBytes > 0 && memoryBudget > totalBytes;
  if (above) {
    onNote({
      code: 'memory_budget_above_memory',
      message:
        `memoryBudget: ${formatBytes(memoryBudget)} is more than the ${formatBytes(totalBytes)} that ${device} has, so the plan is ` +
        'made for these',
    });
  }
  const budget = above ? totalBytes : memoryBudget;
  const copiesBytes = int8CopiesBytes(compute, tuned.model);
  const savesInt8 = productsOf(compute).student?.savedActivations === true;
  const largest = largestBatch(data, plan, optimization);
  const objective = objectiveOf(input, options, {
    ...{ chunkBytes: chunkBytesOf(budget), captureGraphs: false },
  });
  const { gradientAccumulationSteps: microBatches } = optimization;
  const inProcess = sharesProcessMemory(tuned.model.device);
  const cachesTeacher = inProcess && teacherCacheOption(options) !== null;
  const { memory } = objective;
  const keepsBest = bestMetric(input, options) !== null && options.output.output === null;
  const trained = updatedBy(optimization, tuned.parameters()).map(({ tensor }) => tensor);
  try {
    return await MemoryPlanner.open(tuned, budget, {
      ...{ copiesBytes, savesInt8, largest },
      optimizerBytes: optimizerBytes + (keepsBest ? plan.memory.adapterBytes : 0),
      gradientBytes: Math.max(0, ...trained.map((tensor) => bytesOf([tensor]))),
      losses: memory && {
        probe: memory.probe,
        bytes: (rows) => memory.bytes(rows, { microBatches, cachesTeacher }),
      },
      evaluation:
        evalData === undefined
          ? null
          : {
              rows: evalData.largestBatch?.(0) ?? largest,
              bytes: taskOf(tuned.model).evaluationBytes(tuned.model),
            },
      sampling: input.samplePrompts ? samplingMemory(tuned.model, input.samplePrompts) : null,
      ...(inProcess && filesBytes(input, options, plan)),
    });
  } finally {
    objective.dispose();
  }
}

/** Times an adapter's bytes that writing it takes: the tensors of the form that is written, copies of these, and the bytes that are hashed. */
const kWrittenCopies = 3;
/** f64 matrices of the shape of a weight that exist at one time while a residual is made of it. */
const kResidualMatrices = 4;
/** Copies of a weight on its way into a digest, those that wait for a collection included. */
const kHashedCopies = 4;
/** Times a checkpoint's bytes that reading it takes: the pages of its file, and its tensors before they are those of the model. */
const kReadCopies = 2;

/** Bytes of the process's memory that the files of a run take, and what came before it. */
function filesBytes(
  input: AnyTrainerOptions,
  options: ResolvedRun,
  { memory }: RunPlan,
): Partial<Pick<RunMemory, 'writingBytes' | 'resumingBytes' | 'begunBytes'>> {
  const { output } = options;
  // A command's process does nothing else; another one may have had any size before.
  const begunBytes = (input.commandLine ?? null) === null ? 0 : peakRssBytes();
  if (output.output === null) return { begunBytes };
  const { tuned } = input;
  const { model } = tuned;
  const largestOf = (tensors: readonly Tensor[]): number =>
    Math.max(0, ...tensors.map(({ size }) => size));
  // A model that was read from files is recognised by these, another one by its tensors.
  const digest =
    model.stored === null
      ? kHashedCopies * DTYPE_BYTES[model.dtype] * largestOf(model.parameters())
      : 0;
  const residual =
    output.export === 'residual'
      ? kResidualMatrices * DTYPE_BYTES.f64 * largestOf(adaptedWeights(tuned))
      : 0;
  // A model is written weight by weight.
  const written = tuned.kind === 'full' ? 0 : kWrittenCopies * memory.adapterBytes + residual;
  const best = bestMetric(input, options) === null ? 0 : kReadCopies * memory.adapterBytes;
  return {
    begunBytes,
    writingBytes: Math.max(digest, written, best),
    resumingBytes: output.resume ? kReadCopies * memory.adapterBytes + memory.optimizerBytes : 0,
  };
}

/** The weights of the modules that an adapter is on. */
function adaptedWeights(tuned: AnyTrainerOptions['tuned']): readonly Tensor[] {
  const names = tuned.parameters().map(({ name }) => name);
  return [...tuned.model.namedModules()].flatMap(([path, module]) =>
    module instanceof Linear && names.some((name) => name.startsWith(`${path}.`))
      ? [module.weight]
      : [],
  );
}

/** The number of epochs whose micro-batches are looked at before a run. */
const kLookedAt = 16;

/** The most tokens of a micro-batch in the epochs of a run, as far as its data tell. */
function largestBatch(
  data: AnyTrainerOptions['data'],
  { totalSteps, microBatchesPerEpoch }: RunPlan,
  { gradientAccumulationSteps: accumulation }: ResolvedRun['optimization'],
): number {
  const epochs = Math.ceil((totalSteps * accumulation) / Math.max(1, microBatchesPerEpoch));
  const looked = Array.from({ length: Math.min(epochs, kLookedAt) }, (_, epoch) => epoch);
  return Math.max(1, ...looked.map((epoch) => data.largestBatch?.(epoch) ?? 1));
}

/**
 * Computes one micro-batch and discards its gradients, to measure memory and time. It runs twice and the second run is timed,
 * because the first packs weights.
 */
export async function measurePlan(
  plan: RunPlan,
  input: AnyTrainerOptions,
  options: ResolvedRun,
): Promise<RunPlan> {
  const restore = planBefore(input.tuned.model);
  try {
    return await measureMicroBatch(plan, input, options);
  } finally {
    restore();
  }
}

async function measureMicroBatch(
  plan: RunPlan,
  input: AnyTrainerOptions,
  options: ResolvedRun,
): Promise<RunPlan> {
  const { tuned, data } = input;
  const { device } = tuned.model;
  requireRunMemory(input, plan);
  const windows = new WindowReader(
    data,
    { accumulation: 1, select: selectorOf(tuned.model, options) },
    { epoch: 0, microBatch: 0 },
  );
  const window = await windows.next();
  await windows.close();
  const planner = await planMemory(input, options, { plan });
  const runner = new Runner(input, options, {
    chunkBytes: planner?.chunkBytes ?? 0,
    captureGraphs: false,
    ...(teacherCacheOption(options) !== null && { teacherCache: { path: null } }),
  });
  const at = { step: 0, totalSteps: plan.totalSteps };
  let [seconds, persistentBytes] = [0, 0];
  tuned.zeroGradients();
  const giveBack = withoutGradients(options.optimization, tuned.parameters());
  try {
    for (let pass = 0; pass < 2; pass++) {
      await synchronize();
      persistentBytes = memoryStats({ device }).liveBytes;
      resetPeakMemory({ device });
      const start = performance.now();
      await accumulateWindow({ runner, signal: undefined }, window, at);
      await synchronize();
      seconds = (performance.now() - start) / 1000;
      tuned.zeroGradients();
    }
  } finally {
    giveBack();
    tuned.zeroGradients();
    runner.dispose();
  }
  const { peakBytes, derivedBytes } = memoryStats({ device });
  const activationBytes = peakBytes - persistentBytes;
  const { optimizerBytes } = plan.memory;
  return {
    ...plan,
    memory: {
      ...plan.memory,
      activationBytes,
      totalBytes: persistentBytes + derivedBytes + optimizerBytes + activationBytes,
    },
    memoryPlan: planner?.plan(window.totals.tokens) ?? null,
    measuredTokens: window.totals.tokens,
    secondsPerStep: seconds * options.optimization.gradientAccumulationSteps,
  };
}

function count(tensors: readonly Tensor[]): number {
  return tensors.reduce((sum, { size }) => sum + size, 0);
}
