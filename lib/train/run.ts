/**
 * The state of a run between two steps. It claims the output folder, restores a checkpoint where the run is resumed, and writes
 * the metrics, the checkpoints and the result.
 */
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { ArgumentError } from '../errors.ts';
import type { Evaluation } from '../eval/types.ts';
import { completeResult } from '../export/result_folder.ts';
import { removeAll, removeFile, writeFileAtomic } from '../io/files.ts';
import { packageVersion } from '../io/package_version.ts';
import { CHECKPOINT_FORMAT, RUN_FILES } from '../io/run_folder.ts';
import { dropoutWarning } from '../models/dropout_rates.ts';
import { useModel } from '../models/in_use.ts';
import { gradNorm } from '../ops/index.ts';
import type { Optimizer } from '../optim/optimizer.ts';
import { synchronize, trimMemory } from '../runtime.ts';
import { oneLine } from '../shown.ts';
import { kTeacherCacheName } from '../tasks/teacher_cache.ts';
import { noGrad, type Tensor } from '../tensor.ts';
import { BestKeeper, bestMetric } from './best.ts';
import { type Checkpoint, saveCheckpoint } from './checkpoints.ts';
import { type ClaimedCache, claimTeacherCache } from './claimed_cache.ts';
import { describeEnvironment } from './environment.ts';
import { addNotes, notFinite, placed, placedInEvaluation, type Tried } from './failure.ts';
import { type Identity, identityOf } from './identity.ts';
import { idleOptions, withoutTraining } from './idle_options.ts';
import { type MemoryPlanner, planBefore } from './memory_plan.ts';
import { makeOptimizer, updatedBy, withoutGradients } from './optimizers.ts';
import { checkOutput, claimOutput, type OutputFolder } from './output.ts';
import { parameterGroups } from './parameter_groups.ts';
import { learningRateOf, makePlan, planMemory, requireRunMemory } from './plan.ts';
import { type ResolvedRun, teacherCacheOption } from './resolve_run.ts';
import { openCheckpoint, restore, savedTensors } from './resume.ts';
import { RUN_CONFIG_FORMAT } from './run_config.ts';
import { RunRecord } from './run_record.ts';
import { Runner, selectorOf } from './runner.ts';
import { answerSamples, type Sample } from './samples.ts';
import { StepClock, takeStep } from './step.ts';
import { isStop } from './stop.ts';
import type { AnyTrainerOptions } from './trainer_options.ts';
import type { RunPlan, StepRecord, TrainResult, Warning } from './types.ts';
import { type Position, WindowReader } from './window.ts';

const kStart: Position = { epoch: 0, microBatch: 0 };
const kMsPerMinute = 60_000;
/** Hexadecimal digits of a digest in the head of a teacher cache. */
const kDigits = 32;

/** The components of a run, made by {@link openRun}. */
interface RunParts {
  readonly input: AnyTrainerOptions;
  readonly options: ResolvedRun;
  readonly plan: RunPlan;
  readonly identity: Identity;
  /** Tensors that the run trains, in the order of the tuned model's parameters. */
  readonly trained: readonly Tensor[];
  readonly folder: OutputFolder | null;
  /** Steps, evaluations and result in the output folder; null where there is none. */
  readonly record: RunRecord | null;
  readonly optimizer: Optimizer;
  /** The plan of the run's memory; null without a budget. */
  readonly memory: MemoryPlanner | null;
  readonly runner: Runner;
  /** The claim to the file of the teacher's outputs; null where they are not kept. */
  readonly cache: ClaimedCache | null;
  readonly windows: WindowReader;
  readonly keeper: BestKeeper | null;
  readonly clock: StepClock;
  readonly rate: (step: number) => number;
  /** Warnings that have not been reported yet. */
  readonly warnings: Warning[];
  /** Ends the run's use of its model. */
  readonly releaseModel: () => void;
}

interface Progress {
  /** The number of completed optimiser steps. */
  readonly step: number;
  /** The position of the next micro-batch. */
  readonly position: Position;
  readonly last: StepRecord | null;
}

export class Run {
  /** Whether an evaluation at this step is due or was interrupted. */
  evaluationDue = false;
  private savedStep: number | null = null;
  private savedPath: string | null = null;
  private savedAt = performance.now();
  /** Whether writing a checkpoint has failed, in which case it is not attempted again. */
  private saveFailed = false;
  /** Whether parameters are being updated, so that they belong to no step and cannot be saved. */
  private updating = false;
  private closed = false;
  /** The step at which the run was resumed; null for one that began anew. */
  private resumedAt: number | null = null;

  constructor(
    private readonly parts: RunParts,
    private progress: Progress,
  ) {}

  get step(): number {
    return this.progress.step;
  }

  get last(): StepRecord | null {
    return this.progress.last;
  }

  get totalSteps(): number {
    return this.parts.plan.totalSteps;
  }

  get plan(): RunPlan {
    return this.parts.plan;
  }

  get folder(): OutputFolder | null {
    return this.parts.folder;
  }

  /** The seconds that the run has taken so far, including the time before it was resumed. */
  get elapsedSeconds(): number {
    return this.parts.clock.elapsed();
  }

  /** The keeper of the best evaluated step; null where the run exports the last step. */
  get keeper(): BestKeeper | null {
    return this.parts.keeper;
  }

  /** Limit, in bytes, on the logits that are computed at one time; 0 for that of the device. */
  get chunkBytes(): number {
    return this.parts.memory?.chunkBytes ?? 0;
  }

  /** Gives idle memory back under a budget, between steps: what comes next has other sizes, and finds few of the free blocks fitting. */
  giveBackIdle(): void {
    const { memory, input } = this.parts;
    if (memory !== null && memory.budget !== 'max')
      trimMemory({ device: input.tuned.model.device });
  }

  /** Path of the last checkpoint's folder; null where there is none. */
  get lastCheckpoint(): string | null {
    return this.savedPath;
  }

  /**
   * Whether a checkpoint is due at this step, by `saveSteps` or `saveMinutes`; the last step is saved in any case, elsewhere.
   */
  get checkpointDue(): boolean {
    if (this.step === this.totalSteps) return false;
    const { saveSteps, saveMinutes } = this.parts.options.output;
    const minutes = (performance.now() - this.savedAt) / kMsPerMinute;
    return (
      (saveSteps > 0 && this.step % saveSteps === 0) || (saveMinutes > 0 && minutes >= saveMinutes)
    );
  }

  /** Removes and returns the warnings that have not been reported yet. */
  drainWarnings(): Warning[] {
    return this.parts.warnings.splice(0);
  }

  secondsLeft(): number {
    return this.parts.clock.estimate(this.totalSteps - this.step);
  }

  /** The settings that the numbers of the last completed step depended on. */
  get tried(): Tried {
    const { input, options, rate } = this.parts;
    const learningRate = rate(Math.max(0, this.step - 1));
    const { maxGradNorm } = options.optimization;
    return { learningRate, maxGradNorm, dtype: input.tuned.model.dtype };
  }

  /** Refuses a model on which another adapter is active than the one that the run began with. @throws ArgumentError */
  private checkAdapter(): void {
    const { input, trained } = this.parts;
    const now = input.tuned.parameters();
    if (now.length === trained.length && now.every(({ tensor }, i) => tensor === trained[i])) {
      return;
    }
    throw new ArgumentError(
      'another adapter was made the active one during the run: a run trains the one that it began with (setAdapter)',
    );
  }

  /** Runs the next step; null if the signal stopped it before it was complete. */
  async takeStep(): Promise<StepRecord | null> {
    this.checkAdapter();
    const { input, options, runner, windows, optimizer, clock, rate } = this.parts;
    const { tuned, signal, afterBackward = null } = input;
    if ((tuned as { enabled?: boolean }).enabled === false) {
      throw new ArgumentError(
        'the adapter is switched off, so that a step would train nothing: set enabled = true before the run continues',
      );
    }
    const { maxGradNorm } = options.optimization;
    const { step, totalSteps } = this;
    const learningRate = rate(step);
    const taken = await takeStep(
      { tuned, runner, windows, optimizer, maxGradNorm, clock, afterBackward, signal },
      {
        ...{ step, totalSteps, learningRate },
        // Until commit(), the parameters belong to no step and must not be saved.
        onUpdate: () => {
          this.updating = true;
        },
      },
    ).catch(async (error: unknown) => {
      if (isStop(error, signal)) return null;
      const { updating } = this;
      throw placed(error, (what, found) =>
        notFinite(step + 1, what, { tried: { ...this.tried, learningRate }, updating, ...found }),
      );
    });
    if (taken === null) {
      await this.discardWindow();
      return null;
    }
    await this.commit(taken.record, taken.window.after);
    return taken.record;
  }

  /** Records a completed step. */
  private async commit(record: StepRecord, position: Position): Promise<void> {
    this.progress = { step: record.step, position, last: record };
    this.updating = false;
    this.evaluationDue = this.isEvaluated && this.step < this.totalSteps;
    await this.parts.folder?.check();
    await this.parts.record?.addStep(record);
  }

  /** Whether this step is one of those that `evalSteps` names, in a run of whatever length. */
  private get isEvaluated(): boolean {
    const { evalSteps } = this.parts.options.output;
    return this.parts.input.evalData !== undefined && evalSteps > 0 && this.step % evalSteps === 0;
  }

  /** The evaluation of this step, in full, that was made before the run was resumed; null where there is none. */
  get earlierEvaluation(): Evaluation | null {
    if (this.step !== this.resumedAt) return null;
    return this.parts.record?.earlierEvaluation?.result ?? null;
  }

  /**
   * Answers the sample prompts and writes the answers; none without prompts, null where the signal stopped that. It comes before
   * {@link keepEvaluation}, whose line says that everything of the evaluation is there.
   */
  async sample(): Promise<readonly Sample[] | null> {
    const { input, folder, record } = this.parts;
    const { samplePrompts, tuned, signal } = input;
    if (samplePrompts === undefined) return [];
    const samples = await answerSamples(tuned, samplePrompts, signal).catch((error: unknown) => {
      throw placedInEvaluation(error, this.step, this.tried);
    });
    if (samples === null) return null;
    await folder?.check();
    await record?.addSamples(this.step, samples);
    return samples;
  }

  /** Writes the result of an evaluation, and keeps the parameters if they are the best so far. */
  async keepEvaluation(result: Evaluation): Promise<void> {
    const { record, keeper, input } = this.parts;
    if (result !== this.earlierEvaluation) await record?.addEvaluation(this.step, result);
    // The parameters of the end are in the last checkpoint. Kept as the best, they could displace those that a longer run needs.
    const save = this.step < this.totalSteps || this.isEvaluated;
    await keeper?.offer(input.tuned, result, this.step, { save });
  }

  /** Discards an incomplete window: its gradients, and pending errors of the engine. */
  private async discardWindow(): Promise<void> {
    const { tuned } = this.parts.input;
    tuned.zeroGradients();
    await synchronize(tuned.model.device).catch(() => {});
  }

  /**
   * Writes a checkpoint with everything that a resumed run needs, and returns its path. Writes nothing and returns null without
   * an output folder, before the first step, where the step is saved already, and where it cannot be saved.
   */
  async saveCheckpoint(): Promise<string | null> {
    const isSaved = this.step === 0 || this.savedStep === this.step;
    const cannotSave = this.updating || this.saveFailed || this.closed;
    if (this.parts.folder === null || isSaved || cannotSave) return null;
    try {
      this.savedPath = await this.write(this.parts.folder);
    } catch (error) {
      this.saveFailed = true;
      throw error;
    }
    this.savedStep = this.step;
    this.savedAt = performance.now();
    return this.savedPath;
  }

  private async write(folder: OutputFolder): Promise<string> {
    this.checkAdapter();
    await folder.check();
    const { input, optimizer, options } = this.parts;
    const moments = optimizer.state();
    return saveCheckpoint(
      folder.checkpoints,
      {
        state: {
          format: CHECKPOINT_FORMAT,
          step: this.step,
          totalSteps: this.totalSteps,
          position: this.progress.position,
          elapsedSeconds: this.elapsedSeconds,
          last: this.last,
          identity: this.parts.identity,
          taskType: input.tuned.model.taskType,
          optimizerSteps: moments.steps,
          ...(this.evaluationDue && { owesEvaluation: true }),
        },
        tensors: savedTensors(input.tuned, moments.tensors),
      },
      options.output.saveTotalLimit,
    );
  }

  /**
   * Saves the last completed step of a run that `error` ends, and adds to the error's message where it was saved. Never throws,
   * so that the first error is the one reported.
   */
  async saveAfterError(error: unknown): Promise<void> {
    let second: unknown;
    try {
      await this.discardWindow();
      await this.saveCheckpoint();
    } catch (failure) {
      second = failure;
    }
    addNotes(error, this.notes(second), second);
    await this.close().catch(() => {});
  }

  /**
   * The notes to add to the error that ended the run.
   * @param second the error for which the last step could not be saved, if any
   */
  private notes(second: unknown): string[] {
    if (this.parts.folder === null || this.step === 0) return [];
    return [
      ...(this.updating
        ? [`step ${this.step + 1} was writing the parameters, which are lost`]
        : []),
      ...(second === undefined
        ? []
        : [`step ${this.step} could not be saved (${(second as Error).message})`]),
      this.savedPath === null || !existsSync(this.savedPath)
        ? 'there is no checkpoint'
        : `the last good checkpoint is ${this.savedPath}, and resume: true continues from it`,
    ];
  }

  /** Writes the adapter or model to the output folder, with the tokenizer's files where it is known and an adapter's model card. */
  async exportResult(): Promise<void> {
    const { folder, input, options, keeper, record } = this.parts;
    this.checkAdapter();
    this.giveBackIdle();
    await keeper?.restore(input.tuned, this.step);
    await this.checkFinite();
    if (folder === null || record === null) return;
    await folder.check();
    await removeTeacherCache(folder);
    const { step: steps, totalSteps } = this;
    const { export: form } = options.output;
    await record.export({ step: keeper?.best?.step ?? steps, steps, totalSteps }, () =>
      input.tuned.savePretrained(folder.path, { form }),
    );
    const { tokenizer = input.data.tokenizer ?? null } = input;
    await completeResult(input.tuned, { folder: folder.path, form, tokenizer });
  }

  /** Refuses parameters that the last update made infinite, which the loss of a next step would have shown. @throws NativeError */
  private async checkFinite(): Promise<void> {
    const norm = noGrad(() => gradNorm(this.parts.trained, 'inf'));
    try {
      const largest = await norm.item();
      if (Number.isFinite(largest)) return;
      const what = `the largest parameter after the update is ${largest}`;
      throw notFinite(this.step, what, { tried: this.tried, updating: true });
    } finally {
      norm.dispose();
    }
  }

  /** Writes the result of the run to its folder. */
  async writeResult(result: TrainResult): Promise<void> {
    await this.parts.folder?.check();
    await this.parts.record?.writeResult(result);
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    const { input, windows, record, optimizer, runner, cache, folder, keeper, releaseModel } =
      this.parts;
    // A failed or stopped step leaves gradients behind, and the model may be used for another run.
    input.tuned.zeroGradients();
    try {
      await windows.close();
    } finally {
      await record?.close().catch(() => {});
      optimizer.dispose();
      runner.dispose();
      await cache?.release().catch(() => {});
      keeper?.dispose();
      releaseModel();
      await folder?.release();
    }
  }

  /** Marks a checkpoint that is in the folder as the state of this run. */
  continueFrom({ path, state }: Checkpoint): void {
    const { record, keeper } = this.parts;
    this.savedStep = state.step;
    this.savedPath = path;
    this.resumedAt = state.step;
    // The end of a shorter run may be a step at which the longer one evaluates.
    const wasEnd = state.step === state.totalSteps && state.step < this.totalSteps;
    const owed = state.owesEvaluation === true || (wasEnd && this.isEvaluated);
    // Where an evaluation has been made, later ones may have followed, and then the best step is kept. It is repeated only to
    // find a best step that is not there.
    const isMade = record?.earlierEvaluation?.result === null && keeper?.best !== null;
    this.evaluationDue = owed && !isMade;
  }
}

/** Prepares a run for its next step. Errors in the options, the output folder or the data are thrown here. */
export async function openRun(input: AnyTrainerOptions, options: ResolvedRun): Promise<Run> {
  const { model } = input.tuned;
  const release = useModel(model);
  const restorePlan = planBefore(model);
  let giveBack = (): void => {};
  const releaseModel = (): void => {
    giveBack();
    // An offloaded base keeps the share that the budget gave it: what the process does next has no more room.
    restorePlan({ share: false });
    release();
  };
  try {
    giveBack = withoutGradients(options.optimization, input.tuned.parameters());
    return await openRunOf(input, options, releaseModel);
  } catch (error) {
    releaseModel();
    restorePlan();
    throw error;
  }
}

async function openRunOf(
  input: AnyTrainerOptions,
  options: ResolvedRun,
  releaseModel: () => void,
): Promise<Run> {
  const { output, overwrite, resume } = options.output;
  input.tuned.zeroGradients();
  const trained = input.tuned.parameters();
  const groups = parameterGroups(updatedBy(options.optimization, trained), options.optimization);
  const plan = await makePlan(input, options);
  checkMethod(input, options, plan);
  requireRunMemory(input, plan);
  const rate = learningRateOf(plan, options);
  if (output !== null) await checkOutput(output, { overwrite, resume });
  let folder: OutputFolder | null = null;
  let record: RunRecord | null = null;
  let optimizer: Optimizer | null = null;
  let runner: Runner | null = null;
  let cache: ClaimedCache | null = null;
  try {
    const warnings: Warning[] = [];
    // A budget that cannot be kept is refused before the output folder is made, or an earlier run is removed from it.
    const memory = await planMemory(input, options, {
      plan,
      onNote: ({ code, message }) => warnings.push({ type: 'warning', code, message }),
    });
    // Without an output folder there is no checkpoint to compare the identity with, so it is not computed; a cache that runs share
    // has it in its header.
    const isShared = teacherCacheOption(options) === 'teacherCache';
    const identity = output !== null || isShared ? await identityOf(input, options, plan) : {};
    optimizer = makeOptimizer(groups, options.optimization);
    const openWith = (claimed: ClaimedCache | null): Runner =>
      openRunner(input, options, { memory, cache: claimed, identity, warnings });
    // A file of another teacher is refused before the output folder is made, or an earlier run is removed from it.
    if (isShared && !resume) {
      cache = await claimTeacherCache(options, null);
      runner = openWith(cache);
    }
    folder = output === null ? null : await claimOutput(output, { overwrite, resume });
    const keeper = makeKeeper(input, options, folder);
    const checkpoint =
      folder !== null && resume
        ? await openCheckpoint(folder, { input, options, plan, identity, keeper, warnings })
        : null;
    if (folder !== null && checkpoint === null) await removeLeftovers(folder);
    if (checkpoint !== null) restore(checkpoint, input, optimizer);
    const { step, position, last, elapsedSeconds } = checkpoint?.state ?? {
      step: 0,
      position: kStart,
      last: null,
      elapsedSeconds: 0,
    };
    if (folder !== null) {
      const evalData = input.evalData?.fingerprint ?? null;
      const hasSamples = input.samplePrompts !== undefined;
      record = await RunRecord.open(folder.run, { step, last, evalData, hasSamples });
      await writeFileAtomic(folder.config, configText(input, options, identity));
    }
    if (runner === null) {
      cache = await claimTeacherCache(options, folder);
      runner = openWith(cache);
    }
    if (step === 0) warnings.push(...firstWarnings(input, options));
    await record?.begin(
      describeEnvironment(input.tuned.model, {
        ...{ startStep: step, totalSteps: plan.totalSteps },
        commandLine: input.commandLine ?? null,
      }),
    );
    const { gradientAccumulationSteps: accumulation } = options.optimization;
    const select = selectorOf(input.tuned.model, options);
    const run = new Run(
      {
        ...{ input, options, plan, identity, folder, record, optimizer, memory, runner, cache },
        keeper,
        trained: trained.map(({ tensor }) => tensor),
        windows: new WindowReader(input.data, { accumulation, select }, position),
        clock: new StepClock(elapsedSeconds),
        ...{ rate, warnings, releaseModel },
      },
      { step, position, last },
    );
    if (checkpoint !== null) run.continueFrom(checkpoint);
    return run;
  } catch (error) {
    optimizer?.dispose();
    runner?.dispose();
    await cache?.release().catch(() => {});
    await record?.close().catch(() => {});
    await folder?.release().catch(() => {});
    throw error;
  }
}

/** Refuses a run in which the method of the adapter cannot do its part. @throws ArgumentError */
function checkMethod(
  { tuned, terms = [] }: AnyTrainerOptions,
  { optimization }: ResolvedRun,
  { totalSteps }: RunPlan,
): void {
  const { methodTraining } = tuned;
  if (!methodTraining) return;
  const key = methodTraining.term?.key;
  if (terms.some((term) => term.key === key)) {
    throw new ArgumentError(
      `terms: the adapter's method has a term ${key} of its own; give yours another key`,
    );
  }
  const microBatches = optimization.gradientAccumulationSteps;
  const reason = methodTraining.refuses({ step: 0, totalSteps, microBatches });
  if (reason !== null) throw new ArgumentError(reason);
}

/** The parts of a run that its runner depends on, and the place for their notes. */
interface RunnerOf {
  readonly memory: MemoryPlanner | null;
  readonly cache: ClaimedCache | null;
  readonly identity: Identity;
  readonly warnings: Warning[];
}

/** Makes the runner of a run's micro-batches, within its memory budget. */
function openRunner(
  input: AnyTrainerOptions,
  options: ResolvedRun,
  { memory, cache, identity, warnings }: RunnerOf,
): Runner {
  const onNote = ({ code, message }: { code: string; message: string }) =>
    warnings.push({ type: 'warning', code, message: oneLine(message) });
  if (cache !== null && cache.readOnly !== null) {
    const message = `${cache.place.path}: ${cache.readOnly}; this run reads it and keeps nothing in it`;
    onNote({ code: 'teacher_cache_read_only', message });
  }
  return new Runner(input, options, {
    chunkBytes: memory?.chunkBytes ?? 0,
    captureGraphs: options.resources.captureGraphs,
    onNote,
    ...(cache !== null && {
      teacherCache: cache.place,
      teacherIdentity: teacherIdentity(identity),
    }),
  });
}

/** The warnings that a run begins with, and that are not repeated where it is resumed. */
function firstWarnings(input: AnyTrainerOptions, options: ResolvedRun): Warning[] {
  const dropout = dropoutWarning(input.tuned.model);
  const idle = idleOptions(input, options);
  return [
    ...(dropout === null ? [] : [{ code: 'dropout_not_applied', message: dropout }]),
    ...idle.map((message) => ({ code: 'option_without_effect', message })),
    ...withoutTraining(input, options).map((message) => ({ code: 'nothing_trained', message })),
  ].map((warning) => ({ type: 'warning', ...warning }));
}

/** Makes the keeper of the best step; null where the run has no held-out data or exports its last step. */
function makeKeeper(
  input: AnyTrainerOptions,
  options: ResolvedRun,
  folder: OutputFolder | null,
): BestKeeper | null {
  const metric = bestMetric(input, options);
  if (metric === null) return null;
  return new BestKeeper(metric, folder === null ? null : join(folder.run, RUN_FILES.best));
}

/** The part of a run's identity that the outputs of its teacher depend on. */
function teacherIdentity(identity: Identity): string {
  const { baseModel, residualTeacher = null, quantizedTeacher = null } = identity;
  if (quantizedTeacher !== null) {
    // A base that the start makes for its adapter depends on all that the start depends on.
    const { adapter, adapterSeed } = identity;
    const made = createHash('sha256').update(
      JSON.stringify([quantizedTeacher, adapter, adapterSeed]),
    );
    return `${baseModel}, quantised ${made.digest('hex').slice(0, kDigits)}`;
  }
  return residualTeacher === null ? `${baseModel}` : `${baseModel}, residual ${residualTeacher}`;
}

/**
 * Removes what an earlier run has left that wrote no checkpoint: it is unknown with which base model its teacher's cache and its best
 * step were computed.
 */
async function removeLeftovers(folder: OutputFolder): Promise<void> {
  await removeTeacherCache(folder);
  await removeAll(join(folder.run, RUN_FILES.best));
}

async function removeTeacherCache(folder: OutputFolder): Promise<void> {
  await removeFile(join(folder.run, kTeacherCacheName));
}

/** The text of run/config.json. */
function configText(
  { runConfig = null }: AnyTrainerOptions,
  { config }: ResolvedRun,
  identity: Identity,
): string {
  const whole = {
    format: RUN_CONFIG_FORMAT,
    version: packageVersion(),
    ...config,
    ...(runConfig !== null && { runConfig }),
    identity,
  };
  return `${JSON.stringify(whole, null, 2)}\n`;
}
