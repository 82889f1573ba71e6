/**
 * One optimiser step, from the window's micro-batches to the record, as a run takes it:
 *
 *     read and count the window -> weights of the terms -> for each micro-batch teacher, forward, losses, backward
 *     -> norm of the gradients -> refuse what is not finite -> clip, update -> record
 *
 * It runs on the JS thread and only enqueues: the engine works on its own thread, and the step awaits it where a number is
 * needed. Nothing of a step shows outside before all of it is done. Each loss goes into backward() ALREADY weighted with its
 * share of the window, so that the gradients add up to the window's.
 */
import type { NamedTensor, TunedModel } from '../adapters/tuned_model.ts';
import type { StepOfRun } from '../losses/schedules.ts';
import { TermSums } from '../losses/term_sums.ts';
import type { Model } from '../models/index.ts';
import type { Optimizer } from '../optim/optimizer.ts';
import { synchronize, withPhase } from '../runtime.ts';
import { notFinite } from './failure.ts';
import type { GraphPasses } from './graph_passes.ts';
import { forgetTeacher, isEmpty } from './pass.ts';
import type { PlainPasses } from './plain_passes.ts';
import { type CombinedTerms, makeRecord, type StepClock, weightedTerms } from './record.ts';
import type { StepRecord } from './types.ts';
import { Update } from './update.ts';
import type { UserLossPasses } from './user_loss.ts';
import type { Window, WindowReader } from './window.ts';

/** Called when all gradients of a step are there, before they are measured and clipped. */
export type AfterBackward = (
  at: StepOfRun & { readonly parameters: readonly NamedTensor[] },
) => void | Promise<void>;

/** How the micro-batches of a run are computed: op by op, as graphs, or by a loss of the caller's own. */
export type Passes = PlainPasses | GraphPasses | UserLossPasses;

/** Everything that steps of a run share. */
export interface StepParts {
  readonly tuned: TunedModel<Model>;
  readonly passes: Passes;
  readonly windows: WindowReader;
  readonly optimizer: Optimizer;
  readonly maxGradNorm: number;
  readonly clock: StepClock;
  readonly afterBackward: AfterBackward | null;
  readonly signal: AbortSignal | undefined;
}

/** The place of a step, its learning rate, and what its parameters being written means to the run. */
export interface StepAt extends StepOfRun {
  readonly learningRate: number;
  /** Called before the first parameter is written. */
  readonly onUpdate: () => void;
}

/**
 * Takes a step.
 * @throws the signal's reason where it stops the step on the way; NativeError naming the step where loss or gradients are not
 *   finite. In both cases no parameter has moved.
 */
export async function takeStep(
  parts: StepParts,
  { learningRate, onUpdate, ...at }: StepAt,
): Promise<{ record: StepRecord; window: Window }> {
  const { tuned, passes, optimizer, clock, maxGradNorm } = parts;
  clock.start();
  const window = await parts.windows.next();
  const terms = await accumulateWindow(parts, window, at);

  withPhase('optimizer', () => tuned.collectGradients());
  await parts.afterBackward?.({ ...at, parameters: tuned.parameters() });
  const update = withPhase('optimizer', () =>
    Update.begin({
      parameters: tuned.parameters().map(({ tensor }) => tensor),
      optimizer,
      maxNorm: maxGradNorm,
      // A graph reads the gradients where they were recorded; a hook may have put others in their place.
      graphs: parts.afterBackward === null ? passes.graphs : null,
    }),
  );
  const norm = await update.norm();
  if (!Number.isFinite(terms.loss) || !Number.isFinite(norm)) {
    update.dispose();
    optimizer.zeroGrad();
    throw notFinite(at.step + 1, terms, norm);
  }
  onUpdate();
  withPhase('optimizer', () => {
    update.step(learningRate);
    update.dispose();
    optimizer.zeroGrad();
    tuned.afterStep();
  });
  await synchronize();
  const record = makeRecord({
    ...{ step: at.step + 1, epoch: window.epoch, terms, gradNorm: norm, learningRate },
    tokens: window.totals.tokens,
    supervisedTokens: window.totals.supervised,
    seconds: clock.stop(),
    elapsedSeconds: clock.elapsed(),
  });
  return { record, window };
}

/** Adds the gradients of a window; the values of the terms, with the weights that they counted with. */
export async function accumulateWindow(
  { passes, signal }: Pick<StepParts, 'passes' | 'signal'>,
  window: Window,
  at: StepOfRun,
): Promise<CombinedTerms> {
  const sums = new TermSums(passes.terms);
  try {
    const weights = await weightsAt(passes, window, { ...at, signal });
    passes.begin();
    for (const micro of window.batches) {
      signal?.throwIfAborted();
      await passes.run(micro, { weights, totals: window.totals, at, sums });
    }
    passes.end();
    const custom = 'custom' in passes ? passes.custom : null;
    return weightedTerms(await sums.read(), weights, custom);
  } finally {
    sums.dispose();
    const { loss } = passes;
    if (loss !== null) for (const micro of window.batches) forgetTeacher(micro, loss);
  }
}

/** The weights of the terms. The window's teachers run first where a schedule asks how sure they are of its rows. */
async function weightsAt(
  { terms, loss }: Passes,
  window: Window,
  { signal, ...at }: StepOfRun & { signal: AbortSignal | undefined },
): Promise<Record<string, number>> {
  let teacherEntropy: number | null = null;
  if (loss !== null && terms.some(({ readsTeacherEntropy }) => readsTeacherEntropy)) {
    let [sum, rows] = [0, 0];
    for (const micro of window.batches) {
      signal?.throwIfAborted();
      if (isEmpty(micro)) continue;
      micro.teacher = await loss.teach(micro);
      const entropies = await loss.entropies(micro.teacher, micro);
      for (const entropy of Array.from(entropies)) sum += entropy;
      rows += entropies.length;
    }
    const mean = rows > 0 ? sum / rows : 0;
    teacherEntropy = loss.mostEntropy > 0 ? mean / loss.mostEntropy : 0;
  }
  return Object.fromEntries(
    terms.map((term) => [term.key, term.weightAt({ ...at, teacherEntropy })]),
  );
}
