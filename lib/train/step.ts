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
import type { NamedTensor, TunedModel } from '../adapters/tuned_model.ts';
import { NativeError } from '../errors.ts';
import type { StepOfRun } from '../losses/schedules.ts';
import { TermSums } from '../losses/term_sums.ts';
import type { Model } from '../models/index.ts';
import type { Optimizer } from '../optim/optimizer.ts';
import { synchronize, withPhase } from '../runtime.ts';
import { notFinite, placed, type Tried, valuesOf } from './failure.ts';
import { makeRecord, type StepClock, weightedTerms } from './record.ts';
import type { Runner } from './runner.ts';
import type { StepLosses, StepRecord } from './types.ts';
import { Update } from './update.ts';
import type { Window, WindowReader } from './window.ts';

/** Function that is called when all gradients of a step have been computed, before they are measured and clipped. */
export type AfterBackward = (
  at: StepOfRun & { readonly parameters: readonly NamedTensor[] },
) => void | Promise<void>;

/** The components that all steps of a run share. */
export interface StepParts {
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
export interface StepOptions extends StepOfRun {
  readonly learningRate: number;
  /** Called before the first parameter is written. */
  readonly onUpdate: () => void;
}

/**
 * Runs one optimiser step.
 * @throws the signal's reason where it stops the step before its end; NativeError naming the step where the loss or gradients
 *   are not finite. In both cases no parameter has changed.
 */
export async function takeStep(
  parts: StepParts,
  options: StepOptions,
): Promise<{ record: StepRecord; window: Window }> {
  const { tuned, maxGradNorm } = parts;
  const { learningRate } = options;
  const tried: Tried = { learningRate, maxGradNorm, dtype: tuned.model.dtype };
  let updating = false;
  const onUpdate = (): void => {
    updating = true;
    options.onUpdate();
  };
  try {
    return await computeStep(parts, { ...options, onUpdate });
  } catch (error) {
    throw placed(error, (what, found) =>
      notFinite(options.step + 1, what, { tried, updating, ...found }),
    );
  }
}

async function computeStep(
  parts: StepParts,
  { learningRate, onUpdate, ...at }: StepOptions,
): Promise<{ record: StepRecord; window: Window }> {
  const { tuned, runner, optimizer, clock, maxGradNorm } = parts;
  clock.start();
  const window = await parts.windows.next();
  const method = tuned.methodTraining ?? null;
  const inMethod = { ...at, microBatches: window.batches.length };
  await method?.beforeStep(inMethod);
  const losses = await accumulateWindow(parts, window, at);

  withPhase('optimizer', () => tuned.collectGradients());
  await parts.afterBackward?.({ ...at, parameters: tuned.parameters() });
  const update = withPhase('optimizer', () =>
    Update.begin({
      parameters: tuned.parameters().map(({ tensor }) => tensor),
      optimizer,
      maxNorm: maxGradNorm,
      // A graph uses the gradient buffers that it was recorded with, but a hook may have replaced the gradients.
      graphs: parts.afterBackward === null ? runner.graphs : null,
    }),
  );
  const norm = await update.norm();
  if (!Number.isFinite(losses.loss) || !Number.isFinite(norm)) {
    update.dispose();
    optimizer.zeroGrad();
    throw new NativeError(valuesOf(losses, norm), { code: 'ERR_NOT_FINITE' });
  }
  onUpdate();
  withPhase('optimizer', () => update.step(learningRate));
  await method?.afterStep({ ...inMethod, coefficient: update.coefficient });
  withPhase('optimizer', () => {
    update.dispose();
    optimizer.zeroGrad();
    tuned.afterStep();
  });
  await synchronize();
  const record = makeRecord({
    ...{ step: at.step + 1, epoch: window.epoch, losses, gradNorm: norm, learningRate },
    tokens: window.totals.tokens,
    supervisedTokens: window.totals.supervised,
    seconds: clock.stop(),
    elapsedSeconds: clock.elapsed(),
  });
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
