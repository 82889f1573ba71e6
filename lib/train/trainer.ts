/**
 * The training loop: steps, and between them events, checkpoints, evaluations and pauses. A single step is in step.ts, the
 * state between steps in run.ts. The effects of a step become visible only when it is complete, so a run that is stopped,
 * killed or fails within a step can be resumed from the last complete one.
 */
import { firstOf } from '../abort.ts';
import { sharesProcessMemory } from '../device.ts';
import { ArgumentError, UnsupportedError } from '../errors.ts';
import type { Evaluation } from '../eval/types.ts';
import { kGreatestSummaryTemperature } from '../losses/plain.ts';
import { useModel } from '../models/in_use.ts';
import { checkArgument, checkCall, kCall } from '../options/call.ts';
import { resolveTable } from '../options/option.ts';
import { type AnyTask, taskOf } from '../tasks/list.ts';
import { checkMetric } from './best.ts';
import { computeObstacle } from './compute.ts';
import { placedInEvaluation } from './failure.ts';
import { Latest } from './latest.ts';
import { Pause } from './pause.ts';
import { makePlan, measurePlan } from './plan.ts';
import { type ResolvedRun, resolveRun, teacherCacheOption } from './resolve_run.ts';
import { openRun, type Run } from './run.ts';
import { checkSamplePrompts } from './samples.ts';
import { noteOptions } from './schema.ts';
import { nullIfAborted } from './stop.ts';
import {
  type AnyTrainerOptions,
  type ClassifierTrainerOptions,
  inputTable,
  type Seq2SeqTrainerOptions,
  type TrainerOptions,
} from './trainer_options.ts';
import type { RunPlan, TrainEvent, TrainResult } from './types.ts';

export type {
  ClassifierTrainerOptions,
  Seq2SeqTrainerOptions,
  TrainerOptions,
} from './trainer_options.ts';

/**
 * Trains a tuned model: a causal language model, an encoder-decoder, or one with a classification or regression head.
 * @example
 * const trainer = new Trainer({ tuned, data, maxSteps: 200, output: 'out' });
 * for await (const event of trainer.run()) {
 *   if (event.type === 'step') console.log(event.record.step, event.record.loss);
 * }
 */
export class Trainer {
  private readonly task: AnyTask;
  readonly #pause = new Pause();
  readonly #input: AnyTrainerOptions;
  #options: ResolvedRun;

  /**
   * Checks the input and resolves its options.
   * @param run the options, where they have been resolved already: then those of the input are not read
   */
  constructor(
    input: TrainerOptions | Seq2SeqTrainerOptions | ClassifierTrainerOptions,
    run: ResolvedRun | null = null,
  ) {
    const given = input as unknown as AnyTrainerOptions;
    checkCall('Trainer', given, inputTable);
    for (const key of ['tuned', 'data'] as const) {
      checkArgument(`Trainer: ${key}`, inputTable[key], given[key]);
    }
    this.#input = { ...given, ...resolveTable(noteOptions, given) };
    const { model, method = null } = given.tuned;
    this.task = taskOf(model);
    this.#options = run ?? resolveRun(given, { task: this.task.name, method });
    this.#check();
  }

  /** Every option, with defaults filled in. The default weights of the regularizers are those of the active adapter's method. */
  get options(): ResolvedRun {
    const { method = null } = this.#input.tuned;
    if (method !== this.#options.method) this.#options = this.#options.forMethod(method);
    return this.#options;
  }

  /** Checks the input for the adapter that is active: it may be another one than before. */
  #check(): ResolvedRun {
    const { options } = this;
    checkInput(this.#input, options, this.task);
    return options;
  }

  /**
   * The plan of the run; with `measure`, one micro-batch is computed, and its gradients discarded, to measure memory and time.
   */
  async plan(options: { measure?: boolean } = {}): Promise<RunPlan> {
    checkCall('plan', options, { measure: kCall.boolean });
    const settings = this.#check();
    const input = this.#input;
    if (options.measure !== true) return makePlan(input, settings);
    const release = useModel(input.tuned.model);
    try {
      return await measurePlan(await makePlan(input, settings), input, settings);
    } finally {
      release();
    }
  }

  /**
   * Pauses the run after the current step: a checkpoint is written, the processor is free, and memory stays allocated. Without
   * a run in progress, the next run pauses after its first step. A pause does not change the results of the run.
   */
  pause(): void {
    this.#pause.request();
  }

  /** Continues a run that is paused, or withdraws the request to pause it. */
  resume(): void {
    this.#pause.withdraw();
  }

  /** Runs to the end; events are passed to the callbacks only. */
  async train(): Promise<TrainResult> {
    const events = this.run();
    for (;;) {
      const next = await events.next();
      if (next.done) return next.value;
    }
  }

  /**
   * The run as a stream of events; it waits while its consumer is busy. However the run ends (completed, stopped by
   * `signal`, by an error, or by a consumer that leaves the loop), its last complete step is saved exactly once as a
   * checkpoint of `output`.
   * @throws ArgumentError before the first step for a bad option, folder or data; NativeError naming the step when a loss or a
   *   gradient is not finite (parameters and checkpoints stay those of the step before). The message of an error after the
   *   first step ends with the last good checkpoint.
   */
  async *run(): AsyncGenerator<TrainEvent, TrainResult> {
    const options = this.#check();
    const { signal } = this.#input;
    const run = await nullIfAborted(signal, () => openRun(this.#input, options));
    if (run === null) return yield* this.end(kStoppedBefore);
    try {
      yield* this.steps(run);
      return yield* this.finish(run);
    } catch (error) {
      await run.saveAfterError(error);
      throw error;
    } finally {
      await this.closeRun(run);
    }
  }

  private async *steps(run: Run): AsyncGenerator<TrainEvent, void> {
    const { signal } = this.#input;
    const { loggingSteps } = this.#options.output;
    for (const event of run.drainWarnings()) yield await this.emit(event);
    yield await this.emit({ type: 'start', plan: run.plan, startStep: run.step });
    if (run.evaluationDue) yield* this.evaluation(run);
    while (run.step < run.totalSteps && !signal?.aborted) {
      const record = await run.takeStep();
      if (record === null) return;
      for (const event of run.drainWarnings()) yield await this.emit(event);
      const timing = { totalSteps: run.totalSteps, secondsLeft: run.secondsLeft() };
      yield await this.emit({ type: 'step', record, ...timing });
      const last = run.step === run.totalSteps;
      if (run.step % loggingSteps === 0 || last)
        yield await this.emit({ type: 'log', record, ...timing });
      // The checkpoint comes before the evaluation, which may take longer than the steps between two checkpoints.
      if (run.checkpointDue) yield* this.checkpoint(run);
      if (run.evaluationDue) yield* this.evaluation(run);
      if (this.#pause.requested && run.step < run.totalSteps) yield* this.pauseRun(run);
    }
  }

  private async *pauseRun(run: Run): AsyncGenerator<TrainEvent, void> {
    yield* this.checkpoint(run);
    yield await this.emit({ type: 'paused', step: run.step });
    await this.#pause.wait(this.#input.signal);
    if (!this.#input.signal?.aborted) yield await this.emit({ type: 'resumed', step: run.step });
  }

  private async *finish(run: Run): AsyncGenerator<TrainEvent, TrainResult> {
    // The checkpoint comes before the last evaluation, so that the steps are saved even if the evaluation fails.
    yield* this.checkpoint(run);
    const last = run.step < run.totalSteps ? null : yield* this.evaluation(run);
    const aborted = run.step < run.totalSteps || run.evaluationDue;
    if (!aborted) await run.exportResult();
    const result: TrainResult = {
      reason: aborted ? 'aborted' : 'completed',
      steps: run.step,
      elapsedSeconds: run.elapsedSeconds,
      last: run.last,
      evaluation: aborted ? null : (run.keeper?.evaluation ?? last),
      best: run.keeper?.best ?? null,
      output: aborted ? null : (run.folder?.path ?? null),
      checkpoint: run.lastCheckpoint,
    };
    await run.writeResult(result);
    return yield* this.end(result);
  }

  private async *end(result: TrainResult): AsyncGenerator<TrainEvent, TrainResult> {
    yield await this.emit({ type: 'end', reason: result.reason, result });
    return result;
  }

  /**
   * Writes a last checkpoint and closes the run. A consumer that has left the loop gets no more events, but the callbacks do.
   */
  private async closeRun(run: Run): Promise<void> {
    try {
      const path = await run.saveCheckpoint();
      if (path !== null) await this.emit({ type: 'checkpoint', step: run.step, path });
    } finally {
      await run.close();
    }
  }

  /**
   * Evaluates, and offers the result to the keeper of the best step. Returns null without held-out data, and where the signal
   * stopped the evaluation. In the latter case the run evaluates when it is resumed. An evaluation that was made before the run was
   * resumed is not repeated.
   */
  private async *evaluation(run: Run): AsyncGenerator<TrainEvent, Evaluation | null> {
    const earlier = run.earlierEvaluation;
    const evaluated = earlier ?? (yield* this.evaluate(run));
    const samples = evaluated === null || evaluated === earlier ? [] : await run.sample();
    const result = samples === null ? null : evaluated;
    if (result !== null) await run.keepEvaluation(result);
    run.evaluationDue = result === null && this.#input.evalData !== undefined;
    if (result !== null && result !== earlier) {
      yield await this.emit({ type: 'evaluation', step: run.step, result });
      if (samples !== null && samples.length > 0) {
        yield await this.emit({ type: 'samples', step: run.step, samples });
      }
    }
    return result;
  }

  /** Evaluates on the held-out data. Returns null where there is none, and where the signal stopped the evaluation. */
  private async *evaluate(run: Run): AsyncGenerator<TrainEvent, Evaluation | null> {
    const { signal, evalData, tuned } = this.#input;
    if (signal?.aborted || evalData === undefined) return null;
    run.giveBackIdle();
    const progress = new Latest<number>();
    const left = new AbortController();
    const stop = firstOf(left.signal, ...(signal === undefined ? [] : [signal]));
    const result = nullIfAborted(stop.signal, () =>
      this.task.evaluate(tuned, evalData.batches(0, 0), {
        chunkBytes: run.chunkBytes,
        signal: stop.signal,
        onProgress: (examples) => progress.set(examples),
      }),
    )
      .catch((error: unknown) => {
        throw placedInEvaluation(error, run.step, run.tried);
      })
      .finally(() => progress.end());
    result.catch(() => {}); // the promise is awaited below, after the last event
    try {
      for await (const examples of progress) {
        yield await this.emit({ type: 'evaluating', step: run.step, examples });
      }
      return await result;
    } finally {
      // If a consumer leaves the loop early, the evaluation must have ended before the model is used again.
      left.abort();
      await result.catch(() => {});
      stop.release();
    }
  }

  private async *checkpoint(run: Run): AsyncGenerator<TrainEvent, void> {
    const path = await run.saveCheckpoint();
    if (path !== null) yield await this.emit({ type: 'checkpoint', step: run.step, path });
  }

  private async emit(event: TrainEvent): Promise<TrainEvent> {
    for (const callback of this.#input.callbacks ?? []) {
      await nullIfAborted(this.#input.signal, () => callback(event));
    }
    return event;
  }
}

/**
 * The result of a run that the signal stopped before its first step, while the folder, checkpoint and data were being opened.
 */
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

/** Refuses input that is known to be wrong before a run. */
function checkInput(input: AnyTrainerOptions, options: ResolvedRun, task: AnyTask): void {
  const { tuned, data, evalData, loss, terms: own = [] } = input;
  const { regularizers, resources, terms } = options;
  for (const source of [data, evalData]) {
    tuned.model.checkLength(source?.statistics?.longest ?? 0);
  }
  if (loss !== undefined) {
    if (task.lossObstacle !== null) throw new ArgumentError(`loss: ${task.lossObstacle}`);
    if (own.length > 0) {
      throw new ArgumentError('terms: a custom loss replaces all terms; pass either loss or terms');
    }
  }
  const reader = terms.find(({ teacher }) => teacher);
  if (reader !== undefined && !tuned.hasTeacher) {
    throw new ArgumentError(
      `${weightOf(reader.key)} needs a frozen copy of the model as its teacher; pass one to new FullModel(model, { teacher })`,
    );
  }
  const run = { tuned, data, evalData, regularizers: { ...regularizers } };
  const caches = teacherCacheOption(options);
  if (caches !== null) {
    const reason = task.teacherObstacle ?? cacheObstacle(input, options);
    if (reason !== null) throw new ArgumentError(`${caches}: ${reason}; leave ${caches} out`);
    const obstacle = task.cacheObstacle(run);
    if (obstacle !== null)
      throw new UnsupportedError(`${caches}: ${obstacle}; leave ${caches} out`);
  }
  if (task.options.positions !== undefined && (regularizers.teacherFraction ?? 1) < 1) {
    const reason = fractionObstacle(options);
    if (reason !== null)
      throw new UnsupportedError(`teacherFraction: ${reason}; leave teacherFraction out`);
  }
  const runsTeacher = reader !== undefined || loss !== undefined;
  const notInInt8 = computeObstacle(resources.compute, tuned, { runsTeacher });
  if (notInInt8 !== null) {
    throw new UnsupportedError(`compute: ${notInInt8}; leave compute out`);
  }
  if (resources.captureGraphs) {
    const obstacle = graphObstacle(input, task, options);
    if (obstacle !== null) {
      throw new UnsupportedError(`captureGraphs: ${obstacle}; leave captureGraphs out`);
    }
  }
  task.check(run);
  checkMetric(input, options);
  if (input.samplePrompts !== undefined) checkSamplePrompts(tuned, input.samplePrompts);
  if (options.output.output !== null) tuned.checkForm(options.output.export);
}

/** The name of the option that switches a term on, for messages. */
function weightOf(key: string): string {
  return key === 'consistency' ? 'consistencyWeight > 0' : `the term ${key}`;
}

/** The reason why the teacher of this run cannot be cached; null if it can, as far as this is independent of the task. */
function cacheObstacle(
  { loss }: AnyTrainerOptions,
  { regularizers, terms }: ResolvedRun,
): string | null {
  if (loss !== undefined) return 'a custom loss runs the teacher itself';
  const other = terms.find(({ teacher, fused }) => teacher && fused?.pass !== 'divergence');
  if (other !== undefined)
    return `the term ${other.key} reads more of the teacher than the cache holds`;
  if (regularizers.consistencyWeight === 0) {
    return 'without a consistency term there is no teacher to cache';
  }
  if ((regularizers.temperature as number) > kGreatestSummaryTemperature) {
    return `the cache holds the divergence of a temperature of at most ${kGreatestSummaryTemperature}, got ${regularizers.temperature}`;
  }
  return null;
}

/** The reason why the teacher of a language model cannot run on a part of the sequences; null if it can. */
function fractionObstacle({ terms, resources }: ResolvedRun): string | null {
  if (resources.captureGraphs) return 'a graph has the teacher of every sequence';
  const other = terms.find(({ teacher, fused }) => teacher && fused?.pass !== 'divergence');
  return other === undefined ? null : `the term ${other.key} reads the teacher on every row`;
}

/** The reason why the micro-batches of this run cannot be run as graphs; null if they can. */
function graphObstacle(
  { tuned, loss }: AnyTrainerOptions,
  task: AnyTask,
  { terms }: ResolvedRun,
): string | null {
  const { device } = tuned.model;
  if (sharesProcessMemory(device)) return `graphs need a GPU, and the device is ${device}`;
  if (task.graphObstacle !== null) return task.graphObstacle;
  if (loss !== undefined) return 'a custom loss may read values, which a graph cannot';
  const plain = terms.find(({ fused }) => fused === undefined);
  if (plain !== undefined) {
    return `the term ${plain.key} has no native form and may read values, which a graph cannot`;
  }
  return tuned.graphObstacle;
}
