/**
 * The training loop. It runs on the JS thread and only enqueues: the engine works on its own thread, and the loop
 * awaits it at the points where a number is needed (after each micro-batch, and before the optimiser's step).
 *
 * A step: read and count the window -> for each micro-batch forward, teacher, losses, backward -> norm -> refuse what
 * is not finite -> clip, step -> record. Nothing of a step shows outside before all of it is done, so a run that is
 * stopped, killed or fails in the middle goes on from the last whole step.
 */
import type { TunedModel } from '../adapters/tuned_model.ts';
import { sharesProcessMemory } from '../device.ts';
import { ArgumentError, UnsupportedError } from '../errors.ts';
import { evaluateClassifier } from '../eval/classify.ts';
import { evaluate } from '../eval/evaluate.ts';
import type { Model } from '../models/index.ts';
import { synchronize, withPhase } from '../runtime.ts';
import { checkMetric } from './best.ts';
import { checkClassifierRun } from './classifier_checks.ts';
import { notFinite } from './failure.ts';
import { taskOf } from './methods.ts';
import { type ResolvedOptions, resolveOptions } from './options.ts';
import { makePlan, measurePlan } from './plan.ts';
import { makeRecord } from './record.ts';
import { openRun, type Run } from './run.ts';
import { unlessStopped } from './stop.ts';
import { type AnyTrainerOptions, isClassifierRun } from './trainer_options.ts';
import type {
  ClassifierEvaluation,
  EvaluationResult,
  RunPlan,
  StepRecord,
  TrainEvent,
  TrainResult,
} from './types.ts';
import { Update } from './update.ts';

export type { ClassifierTrainerOptions, TrainerOptions } from './trainer_options.ts';

/**
 * Trains a tuned model: a causal language model, or one with a classification or regression head.
 * @example
 * const trainer = new Trainer({ tuned, data, maxSteps: 200, output: 'out' });
 * for await (const event of trainer.run()) {
 *   if (event.type === 'step') console.log(event.record.step, event.record.loss);
 * }
 */
export class Trainer {
  readonly options: ResolvedOptions;

  constructor(private readonly input: AnyTrainerOptions) {
    this.options = resolveOptions(input, taskOf(input.tuned.model));
    checkTeacher(input.tuned, this.options);
    for (const data of [input.data, input.evalData]) {
      input.tuned.model.checkLength(data?.statistics?.longest ?? 0);
    }
    if (this.options.resources.cacheTeacher) checkCache(input, this.options);
    if (this.options.resources.captureGraphs) checkGraphs(input);
    if (isClassifierRun(input)) checkClassifierRun(input, this.options);
    checkMetric(input);
    if (this.options.output.output !== null) input.tuned.checkForm(this.options.output.export);
  }

  /** What the run will be; with `measure` one micro-batch is computed (and thrown away) for memory and time. */
  async plan({ measure = false }: { measure?: boolean } = {}): Promise<RunPlan> {
    const plan = await makePlan(this.input, this.options);
    return measure ? measurePlan(plan, this.input, this.options) : plan;
  }

  /** Runs to the end; events go to the callbacks only. */
  async train(): Promise<TrainResult> {
    const events = this.run();
    for (;;) {
      const next = await events.next();
      if (next.done) return next.value;
    }
  }

  /**
   * The run as a stream of events; it waits while its consumer is busy. However it ends (done, `signal`, an error, a consumer
   * that leaves the loop), the last whole step is in a checkpoint of `output`, once.
   * @throws ArgumentError before the first step for a bad option, folder or data; NativeError naming the step when a
   *   loss or a gradient is not finite (parameters and checkpoints stay those of the step before). The message of an error
   *   after the first step ends with the last good checkpoint.
   */
  async *run(): AsyncGenerator<TrainEvent, TrainResult> {
    const run = await unlessStopped(this.input.signal, () => openRun(this.input, this.options));
    if (run === null) return yield* this.end(kStoppedBefore);
    try {
      yield* this.steps(run);
      return yield* this.finish(run);
    } catch (error) {
      await run.rescue(error);
      throw error;
    } finally {
      await this.leave(run);
    }
  }

  private async *steps(run: Run): AsyncGenerator<TrainEvent, void> {
    const { signal } = this.input;
    const { loggingSteps } = this.options.output;
    for (const event of run.takeWarnings()) yield await this.tell(event);
    yield await this.tell({ type: 'start', plan: run.plan, startStep: run.step });
    if (run.owesEvaluation) yield* this.evaluation(run);
    while (run.step < run.totalSteps && !signal?.aborted) {
      const record = await this.step(run);
      if (record === null) return;
      for (const event of run.takeWarnings()) yield await this.tell(event);
      const pace = { totalSteps: run.totalSteps, secondsLeft: run.secondsLeft() };
      yield await this.tell({ type: 'step', record, ...pace });
      const last = run.step === run.totalSteps;
      if (run.step % loggingSteps === 0 || last)
        yield await this.tell({ type: 'log', record, ...pace });
      // Saved first: an evaluation may take longer than the steps between two checkpoints.
      if (run.owesCheckpoint) yield* this.checkpoint(run);
      if (run.owesEvaluation) yield* this.evaluation(run);
    }
  }

  private async *finish(run: Run): AsyncGenerator<TrainEvent, TrainResult> {
    // Before the last evaluation: whatever comes of it, the steps are not lost.
    yield* this.checkpoint(run);
    const last = run.step < run.totalSteps ? null : yield* this.evaluation(run);
    const aborted = run.step < run.totalSteps || run.owesEvaluation;
    if (!aborted) await run.exportResult();
    const result: TrainResult = {
      reason: aborted ? 'aborted' : 'completed',
      steps: run.step,
      elapsedSeconds: run.clock.elapsed(),
      last: run.last,
      evaluation: aborted ? null : (run.keeper?.evaluation ?? last),
      best: run.keeper?.best ?? null,
      output: aborted ? null : (run.folder?.path ?? null),
      checkpoint: run.lastCheckpoint,
    };
    return yield* this.end(result);
  }

  private async *end(result: TrainResult): AsyncGenerator<TrainEvent, TrainResult> {
    yield await this.tell({ type: 'end', reason: result.reason, result });
    return result;
  }

  /** A consumer that left the loop reads no events any more; the callbacks still do. */
  private async leave(run: Run): Promise<void> {
    try {
      const path = await run.saveCheckpoint();
      if (path !== null) await this.tell({ type: 'checkpoint', step: run.step, path });
    } finally {
      await run.close();
    }
  }

  /** null without held-out data, and where the signal stopped it: the run then owes it, and makes up for it when resumed. */
  private async *evaluation(run: Run): AsyncGenerator<TrainEvent, Evaluation | null> {
    const result = await evaluationOf(this.input);
    if (result !== null) await run.keeper?.offer(this.input.tuned, result, run.step);
    run.owesEvaluation = result === null && this.input.evalData !== undefined;
    if (result === null) return null;
    yield await this.tell({ type: 'evaluation', step: run.step, result });
    return result;
  }

  private async *checkpoint(run: Run): AsyncGenerator<TrainEvent, void> {
    const path = await run.saveCheckpoint();
    if (path !== null) yield await this.tell({ type: 'checkpoint', step: run.step, path });
  }

  /** One optimiser step; null if the signal stopped it on the way. */
  private async step(run: Run): Promise<StepRecord | null> {
    run.clock.start();
    const learningRate = run.rate(run.step);
    const { tuned, signal } = this.input;
    const { maxGradNorm } = this.options.optimization;
    const { step, totalSteps } = run;
    const accumulated = await unlessStopped(signal, async () => {
      const window = await run.windows.next();
      const terms = await run.objective.accumulate({ tuned, window, step, totalSteps, signal });
      return terms && { window, terms };
    });
    if (accumulated === null) {
      await run.dropWindow();
      return null;
    }
    const { window, terms } = accumulated;
    const update = withPhase('optimizer', () => {
      tuned.collectGradients();
      return Update.begin({
        parameters: tuned.parameters().map(({ tensor }) => tensor),
        optimizer: run.optimizer,
        maxNorm: maxGradNorm,
        graphs: run.objective.graphs,
      });
    });
    const norm = await update.norm();
    if (!Number.isFinite(terms.loss) || !Number.isFinite(norm)) {
      update.dispose();
      run.optimizer.zeroGrad();
      throw notFinite(run.step + 1, terms, norm);
    }
    run.beginUpdate();
    withPhase('optimizer', () => {
      update.step(learningRate);
      update.dispose();
      run.optimizer.zeroGrad();
      tuned.afterStep();
    });
    await synchronize();
    const record = makeRecord({
      step: run.step + 1,
      epoch: window.epoch,
      terms,
      gradNorm: norm,
      learningRate,
      tokens: window.totals.tokens,
      supervisedTokens: window.totals.supervised,
      seconds: run.clock.stop(),
      elapsedSeconds: run.clock.elapsed(),
    });
    await run.commit(record, window.after);
    return record;
  }

  private async tell(event: TrainEvent): Promise<TrainEvent> {
    for (const callback of this.input.callbacks ?? []) {
      await unlessStopped(this.input.signal, () => callback(event));
    }
    return event;
  }
}

type Evaluation = EvaluationResult | ClassifierEvaluation;

/** The result of a run that the signal ended while folder, checkpoint and data were being opened. */
const kStoppedBefore: TrainResult = {
  reason: 'aborted',
  steps: 0,
  elapsedSeconds: 0,
  last: null,
  evaluation: null,
  best: null,
  output: null,
  checkpoint: null,
};

/** null without held-out data, and where the signal stopped it. */
async function evaluationOf(input: AnyTrainerOptions): Promise<Evaluation | null> {
  const { signal } = input;
  if (signal?.aborted) return null;
  return unlessStopped(signal, () => evaluated(input, signal === undefined ? {} : { signal }));
}

async function evaluated(
  input: AnyTrainerOptions,
  options: { signal?: AbortSignal },
): Promise<Evaluation | null> {
  if (isClassifierRun(input)) {
    const { evalData, tuned } = input;
    return evalData ? evaluateClassifier(tuned.model, evalData.batches(0, 0), options) : null;
  }
  const { evalData, tuned } = input;
  return evalData ? evaluate(tuned, evalData.batches(0, 0), options) : null;
}

/** What a kept teacher takes for granted. */
function checkCache(input: AnyTrainerOptions, { regularizers }: ResolvedOptions): void {
  if (isClassifierRun(input)) {
    throw new ArgumentError(
      'cacheTeacher is for language models: a classifier has no such teacher',
    );
  }
  if (input.loss !== undefined) {
    throw new ArgumentError("cacheTeacher: a loss of one's own asks the teacher itself");
  }
  if (regularizers.consistencyWeight === 0) {
    throw new ArgumentError('cacheTeacher: without a consistency term there is no teacher to keep');
  }
  const { model } = input.tuned;
  if (input.tuned.trainsHead) {
    throw new UnsupportedError('cacheTeacher: the head is trained, it must be frozen');
  }
  if (model.head.softcap > 0) {
    throw new UnsupportedError(
      `cacheTeacher: the logits of this ${model.modelType} model are soft-capped, they must be linear`,
    );
  }
  const longest = input.data.statistics?.longest ?? Number.POSITIVE_INFINITY;
  if (longest > model.steadyLength) {
    throw new UnsupportedError(
      `cacheTeacher: beyond ${model.steadyLength} tokens the dynamic rope of this ${model.modelType} model turns a sequence by the ` +
        `longest one of its batch, and the data's longest ${longest < Infinity ? `has ${longest}` : 'is not known'}`,
    );
  }
}

/** What graphs cannot repeat. */
function checkGraphs(input: AnyTrainerOptions): void {
  const obstacle = graphObstacle(input);
  if (obstacle !== null) throw new UnsupportedError(`captureGraphs: ${obstacle}`);
}

function graphObstacle(input: AnyTrainerOptions): string | null {
  const { device } = input.tuned.model;
  if (sharesProcessMemory(device)) return `the device ${device} has no graphs, they are for GPUs`;
  if (isClassifierRun(input)) return 'only language models are trained by graphs';
  if (input.loss !== undefined) return "a loss of one's own may read values, which a graph cannot";
  return input.tuned.graphObstacle;
}

/** A consistency term without a teacher would be a term against nothing. */
function checkTeacher(tuned: TunedModel<Model>, { regularizers }: ResolvedOptions): void {
  if (regularizers.consistencyWeight > 0 && !tuned.hasTeacher) {
    throw new ArgumentError(
      'consistencyWeight > 0 needs the model as it was: give full fine-tuning a frozen copy as its teacher',
    );
  }
}
