/**
 * One optimiser step of a run, from the micro-batches of its accumulation window to its record:
 *
 *     read and count the window -> weights of the terms -> for each micro-batch teacher, forward, losses, backward
 *     -> norm of the gradients -> throw if not finite -> clip, update -> record
 *
 * It runs on the JS thread and only enqueues ops: the engine executes them on its own thread, and the step awaits it where it
 * needs a value. The effects of a step become visible only when it is complete. Each loss is weighted by its share of the
 * window BEFORE its backward pass, so that the gradients of the micro-batches add up to the gradient of the window.
 */
import { copyOf } from '../adapters/copies.ts';
import type { TunedModel } from '../adapters/tuned_model.ts';
import { NativeError } from '../errors.ts';
import type { NamedTensors } from '../graph.ts';
import { shapesOf } from '../graph_cache.ts';
import { peakRssBytes } from '../io/peak_memory.ts';
import type { StepOfRun } from '../losses/term.ts';
import { TermSums, type TermValues } from '../losses/term.ts';
import type { Model } from '../models/index.ts';
import { clippedNorm } from '../optim/clip.ts';
import type { Optimizer } from '../optim/optimizer.ts';
import { synchronize, withPhase } from '../runtime.ts';
import type { Tensor } from '../tensor.ts';
import { kCustom } from './custom_objective.ts';
import { valuesOf } from './failure.ts';
import type { StepGraphs } from './graphs.ts';
import type { Runner } from './runner.ts';
import type { AfterBackward, StepLosses, StepRecord } from './types.ts';
import type { Window, WindowReader } from './window.ts';

/** The components that all steps of a run share. */
interface StepParts {
  readonly tuned: TunedModel<Model>;
  readonly runner: Runner;
  readonly windows: WindowReader;
  readonly optimizer: Optimizer;
  readonly maxGradNorm: number;
  readonly clock: StepClock;
  readonly afterBackward: AfterBackward | null;
  readonly signal: AbortSignal | undefined;
}

/** The position of a step in the run, its learning rate, and a callback for the start of its update. */
interface StepOptions extends StepOfRun {
  readonly learningRate: number;
  /** Called before the first parameter is written. */
  readonly onUpdate: () => void;
}

/**
 * Runs one optimiser step.
 * @throws the signal's reason where it stops the step before its end; NativeError where the loss or gradients are not finite. In both
 *   cases no parameter has changed.
 */
export async function takeStep(
  parts: StepParts,
  { learningRate, onUpdate, ...at }: StepOptions,
): Promise<{ record: StepRecord; window: Window }> {
  const { tuned, runner, optimizer, clock, maxGradNorm } = parts;
  clock.start();
  const window = await parts.windows.next();
  const method = tuned.methodTraining ?? null;
  const inMethod = { ...at, microBatches: window.batches.length };
  await method?.beforeStep(inMethod);
  const { custom, ...losses } = await accumulateWindow(parts, window, at);

  withPhase('optimizer', () => tuned.collectGradients());
  await parts.afterBackward?.({ ...at, parameters: tuned.parameters() });
  // A graph uses the gradient buffers that it was recorded with, but a hook may have replaced the gradients.
  const graphs = parts.afterBackward === null ? runner.graphs : null;
  const trained = tuned.parameters().map(({ tensor }) => tensor);
  const { norm, coefficient } = withPhase('optimizer', () => normOf(trained, maxGradNorm, graphs));
  const freeGradients = (): void => {
    norm.dispose();
    coefficient?.dispose();
    optimizer.zeroGrad();
  };
  const gradNorm = await norm.item();
  if (!Number.isFinite(losses.loss) || !Number.isFinite(gradNorm)) {
    freeGradients();
    throw new NativeError(valuesOf(losses, gradNorm), { code: 'ERR_NOT_FINITE' });
  }
  onUpdate();
  withPhase('optimizer', () => update(optimizer, { learningRate, coefficient, graphs }));
  await method?.afterStep({ ...inMethod, coefficient });
  withPhase('optimizer', () => {
    freeGradients();
    tuned.afterStep();
  });
  await synchronize();
  const { tokens, supervised: supervisedTokens } = window.totals;
  // The keys have the order of metrics.jsonl.
  const record = {
    ...{ step: at.step + 1, epoch: window.epoch, ...losses, gradNorm, learningRate },
    ...{ tokens, supervisedTokens, tokensPerSecond: tokens / clock.stop() },
    ...{ elapsedSeconds: clock.elapsed(), peakRssBytes: peakRssBytes(), custom },
  };
  return { record, window };
}

/**
 * Computes the gradients of a window's part and returns the values of the terms, with the weights that were applied. Shares and means are
 * those of the whole window, so that gradients and sums of its parts add up.
 */
export async function accumulateWindow(
  { runner, signal }: Pick<StepParts, 'runner' | 'signal'>,
  window: Window,
  at: StepOfRun,
): Promise<StepLosses> {
  const sums = new TermSums(runner.terms);
  try {
    const weights = await runner.begin(window, at, signal);
    for (const batch of window.part ?? window.batches) {
      signal?.throwIfAborted();
      sums.merge(await runner.run(batch));
    }
    sums.merge(runner.end());
    return weightedTerms(await sums.read(window.totals), weights);
  } finally {
    sums.dispose();
    runner.abandon();
  }
}

/** Combines the values: the loss is the task's loss plus the sum, over the terms, of weight times value. */
export function weightedTerms(
  { task, ...all }: TermValues,
  weights: Readonly<Record<string, number>>,
): StepLosses {
  let loss = task;
  const terms: Record<string, StepLosses['terms'][string]> = {};
  let custom: Record<string, number> | undefined;
  for (const [key, value] of Object.entries(all)) {
    const weight = weights[key] ?? 0;
    // A metric has no weight; one that is not finite still makes the loss so, which ends the run.
    loss += weight * (value ?? 0);
    if (key.startsWith(kCustom)) {
      custom = { ...custom, [key.slice(kCustom.length)]: value as number };
    } else terms[key] = { value, weight };
  }
  return { loss, taskLoss: task, terms, custom };
}

/**
 * Enqueues the norm of the gradients and the factor that clips them. This and the update run as graphs if the micro-batches do and the
 * optimiser reads its scalars from the device (AdamW); other optimisers update op by op.
 */
function normOf(
  parameters: readonly Tensor[],
  maxNorm: number,
  graphs: StepGraphs | null,
): { norm: Tensor; coefficient: Tensor | null } {
  const body = () => clippedNorm(parameters, { maxNorm });
  if (graphs === null) return body();
  const { results, release } = graphs.cache.run(`norm ${graphs.gradients.reached}`, {}, body);
  const { norm, coefficient } = results;
  // The graph of the update may overwrite what this one made.
  const kept = { norm: norm.detach(), coefficient: coefficient && copyOf(coefficient) };
  release();
  return kept;
}

/** Enqueues the update of the parameters. */
function update(
  optimizer: Optimizer,
  {
    learningRate,
    coefficient,
    graphs,
  }: { learningRate: number; coefficient: Tensor | null; graphs: StepGraphs | null },
): void {
  optimizer.begin(learningRate);
  const { recordingKey } = optimizer;
  if (graphs === null || recordingKey === null) {
    optimizer.finish(coefficient);
    return;
  }
  const inputs = { coefficient: coefficient?.detach() ?? null };
  const finish = (now: NamedTensors): NamedTensors => {
    optimizer.finish(now.coefficient ?? null);
    return {};
  };
  graphs.cache.run(`update ${shapesOf(inputs)} ${recordingKey}`, inputs, finish).release();
}

/** A clock for the time that a run has taken, including the time before it was resumed, and for the speed of its steps. */
export class StepClock {
  private readonly begun = performance.now();
  private stepBegun = this.begun;
  private readonly recent: number[] = [];

  /**
   * Starts the clock.
   * @param before seconds that the run took before it was resumed
   */
  constructor(private readonly before: number) {}

  /** The seconds that the run has taken so far. */
  elapsed(): number {
    return this.before + (performance.now() - this.begun) / 1000;
  }

  /** Marks the start of a step. */
  start(): void {
    this.stepBegun = performance.now();
  }

  /** Marks the end of a step and returns its duration in seconds. */
  stop(): number {
    const seconds = (performance.now() - this.stepBegun) / 1000;
    this.recent.push(seconds);
    if (this.recent.length > kRecentSteps) this.recent.shift();
    return seconds;
  }

  /** The estimated seconds for `steps` more steps, at the speed of the latest ones. */
  estimate(steps: number): number {
    const sum = this.recent.reduce((total, seconds) => total + seconds, 0);
    return this.recent.length === 0 ? 0 : (sum / this.recent.length) * steps;
  }
}

const kRecentSteps = 20;
