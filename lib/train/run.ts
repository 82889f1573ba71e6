/**
 * The state of a run between two steps. It claims the output folder, restores a checkpoint where the run is resumed, and writes
 * the metrics, the checkpoints and the result.
 */
import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { ArgumentError } from '../errors.ts';
import { writeFileAtomic } from '../io/files.ts';
import { dropoutWarning } from '../models/dropout_rates.ts';
import { useModel } from '../models/in_use.ts';
import type { Optimizer } from '../optim/optimizer.ts';
import { synchronize } from '../runtime.ts';
import { taskOf } from '../tasks/list.ts';
import { kTeacherCacheName } from '../tasks/teacher_cache.ts';
import type { Tensor } from '../tensor.ts';
import { BestKeeper } from './best.ts';
import { CHECKPOINT_FORMAT } from './checkpoint_state.ts';
import { type Checkpoint, saveCheckpoint } from './checkpoints.ts';
import { addNotes } from './failure.ts';
import { identityOf } from './identity.ts';
import { idleOptions } from './idle_options.ts';
import { MetricsFile } from './metrics.ts';
import { makeOptimizer } from './optimizers.ts';
import type { Identity, ResolvedOptions } from './options.ts';
import { claimOutput, type OutputFolder } from './output.ts';
import { parameterGroups } from './parameter_groups.ts';
import { passesOf, selectorOf } from './passes.ts';
import { learningRateOf, makePlan, planMemory, requireRunMemory } from './plan.ts';
import { StepClock } from './record.ts';
import { openCheckpoint, restore, savedTensors } from './resume.ts';
import { type Passes, takeStep } from './step.ts';
import { nullIfAborted } from './stop.ts';
import type { AnyTrainerOptions } from './trainer_options.ts';
import type { RunPlan, StepRecord, Warning } from './types.ts';
import { type Position, WindowReader } from './window.ts';

const kStart: Position = { epoch: 0, microBatch: 0 };
const kMsPerMinute = 60_000;

/** The components of a run, made by {@link openRun}. */
interface RunParts {
  readonly input: AnyTrainerOptions;
  readonly options: ResolvedOptions;
  readonly plan: RunPlan;
  readonly identity: Identity;
  /** Tensors that the run trains, in the order of the tuned model's parameters. */
  readonly trained: readonly Tensor[];
  readonly folder: OutputFolder | null;
  readonly metrics: MetricsFile | null;
  readonly optimizer: Optimizer;
  readonly passes: Passes;
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
    const { input, options, passes, windows, optimizer, clock, rate } = this.parts;
    const { tuned, signal, afterBackward = null } = input;
    if ((tuned as { enabled?: boolean }).enabled === false) {
      throw new ArgumentError(
        'the adapter is switched off, so that a step would train nothing: set enabled = true before the run continues',
      );
    }
    const { maxGradNorm } = options.optimization;
    const { step, totalSteps } = this;
    const taken = await nullIfAborted(signal, () =>
      takeStep(
        { tuned, passes, windows, optimizer, maxGradNorm, clock, afterBackward, signal },
        {
          ...{ step, totalSteps, learningRate: rate(step) },
          // Until commit(), the parameters belong to no step and must not be saved.
          onUpdate: () => {
            this.updating = true;
          },
        },
      ),
    );
    if (taken === null) {
      await this.discardWindow();
      return null;
    }
    await this.commit(taken.record, taken.window.after);
    return taken.record;
  }

  /** Records a completed step. */
  private async commit(record: StepRecord, position: Position): Promise<void> {
    const { metrics, input, options } = this.parts;
    const { evalSteps } = options.output;
    this.progress = { step: record.step, position, last: record };
    this.updating = false;
    this.evaluationDue =
      input.evalData !== undefined &&
      evalSteps > 0 &&
      this.step % evalSteps === 0 &&
      this.step < this.totalSteps;
    await this.parts.folder?.check();
    await metrics?.append(record);
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

  /** Writes the adapter or model to the output folder. */
  async exportResult(): Promise<void> {
    const { folder, input, options, keeper } = this.parts;
    this.checkAdapter();
    await keeper?.restore(input.tuned, this.step);
    if (folder === null) return;
    await folder.check();
    await removeTeacherCache(folder);
    await input.tuned.savePretrained(folder.path, { form: options.output.export });
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    const { input, windows, metrics, optimizer, passes, folder, keeper, releaseModel } = this.parts;
    // A failed or stopped step leaves gradients behind, and the model may be used for another run.
    input.tuned.zeroGradients();
    try {
      await windows.close();
    } finally {
      await metrics?.close().catch(() => {});
      optimizer.dispose();
      passes.dispose();
      keeper?.dispose();
      releaseModel();
      await folder?.release();
    }
  }

  /** Marks a checkpoint that is in the folder as the state of this run. */
  continueFrom({ path, state }: Checkpoint): void {
    this.savedStep = state.step;
    this.savedPath = path;
    this.evaluationDue = state.owesEvaluation ?? false;
  }
}

/** Prepares a run for its next step. Errors in the options, the output folder or the data are thrown here. */
export async function openRun(input: AnyTrainerOptions, options: ResolvedOptions): Promise<Run> {
  const releaseModel = useModel(input.tuned.model);
  try {
    return await openRunOf(input, options, releaseModel);
  } catch (error) {
    releaseModel();
    throw error;
  }
}

async function openRunOf(
  input: AnyTrainerOptions,
  options: ResolvedOptions,
  releaseModel: () => void,
): Promise<Run> {
  const { output, overwrite, resume } = options.output;
  input.tuned.zeroGradients();
  const trained = input.tuned.parameters();
  const groups = parameterGroups(trained, options.optimization);
  const plan = await makePlan(input, options);
  requireRunMemory(input, plan);
  const rate = learningRateOf(plan, options);
  const folder = output === null ? null : await claimOutput(output, { overwrite, resume });
  let metrics: MetricsFile | null = null;
  let optimizer: Optimizer | null = null;
  let passes: Passes | null = null;
  try {
    // Without an output folder there is no checkpoint to compare the identity with, so it is not computed.
    const identity = folder === null ? {} : await identityOf(input, options, plan);
    const warnings: Warning[] = [];
    const checkpoint =
      folder !== null && resume
        ? await openCheckpoint(folder, {
            identity,
            plan,
            warnings,
            device: input.tuned.model.device,
          })
        : null;
    // Without a checkpoint it is unknown which base model an earlier teacher cache was computed with.
    if (folder !== null && checkpoint === null) await removeTeacherCache(folder);
    optimizer = makeOptimizer(groups, options.optimization);
    if (checkpoint !== null) restore(checkpoint, input, optimizer);
    const { step, position, last, elapsedSeconds } = checkpoint?.state ?? {
      step: 0,
      position: kStart,
      last: null,
      elapsedSeconds: 0,
    };
    if (folder !== null) {
      metrics = await MetricsFile.open(folder.metrics, { step, last });
      await writeFileAtomic(folder.config, configText(options, identity));
    }
    const { gradientAccumulationSteps: accumulation } = options.optimization;
    const onNote = ({ code, message }: { code: string; message: string }) =>
      warnings.push({ type: 'warning', code, message });
    const memory = await planMemory(input, options, { plan, onNote });
    passes = passesOf(input, options, {
      chunkBytes: memory?.chunkBytes ?? 0,
      captureGraphs: options.resources.captureGraphs,
      onNote,
      ...(options.resources.cacheTeacher && {
        teacherCache: folder === null ? null : join(folder.run, kTeacherCacheName),
        ...(folder !== null && { teacherIdentity: teacherIdentity(identity) }),
      }),
    });
    const dropout = dropoutWarning(input.tuned.model);
    if (dropout !== null && step === 0) {
      warnings.push({ type: 'warning', code: 'dropout_not_applied', message: dropout });
    }
    if (step === 0) {
      for (const message of idleOptions(input, options)) {
        warnings.push({ type: 'warning', code: 'option_without_effect', message });
      }
    }
    const run = new Run(
      {
        input,
        options,
        plan,
        identity,
        trained: trained.map(({ tensor }) => tensor),
        folder,
        metrics,
        optimizer,
        passes,
        keeper: await makeKeeper(input, { folder, resumed: step > 0, warnings }),
        windows: new WindowReader(
          input.data,
          { accumulation, select: selectorOf(input.tuned.model, options) },
          position,
        ),
        clock: new StepClock(elapsedSeconds),
        rate,
        warnings,
        releaseModel,
      },
      { step, position, last },
    );
    if (checkpoint !== null) run.continueFrom(checkpoint);
    return run;
  } catch (error) {
    optimizer?.dispose();
    passes?.dispose();
    await metrics?.close();
    await folder?.release();
    throw error;
  }
}

/** Makes the keeper of the best step; null where the run has no held-out data or exports its last step. */
async function makeKeeper(
  { tuned, evalData, metricForBestModel, evalSteps = 0 }: AnyTrainerOptions,
  {
    folder,
    resumed,
    warnings,
  }: { folder: OutputFolder | null; resumed: boolean; warnings: Warning[] },
): Promise<BestKeeper | null> {
  const metric =
    metricForBestModel === undefined && evalSteps > 0
      ? taskOf(tuned.model).metrics(tuned.model).defaultMetric
      : (metricForBestModel ?? null);
  if (metric === null || evalData === undefined) return null;
  const keeper = new BestKeeper(metric, folder === null ? null : join(folder.run, 'best'));
  const message = resumed ? await keeper.resume() : null;
  if (message !== null) warnings.push({ type: 'warning', code: 'best_damaged', message });
  return keeper;
}

/** The part of a run's identity that the outputs of its teacher depend on. */
function teacherIdentity({ baseModel, residualTeacher = null }: Identity): string {
  return JSON.stringify([baseModel, residualTeacher]);
}

async function removeTeacherCache(folder: OutputFolder): Promise<void> {
  await rm(join(folder.run, kTeacherCacheName), { force: true });
}

function configText(options: ResolvedOptions, identity: Identity): string {
  const { runConfig, ...output } = options.output;
  const trainer = {
    ...options.optimization,
    ...(identity.customLoss !== true && options.regularizers),
    ...output,
    seed: options.seed,
  };
  return `${JSON.stringify({ command: runConfig, trainer, identity }, null, 2)}\n`;
}
