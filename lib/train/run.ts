/**
 * One run of a trainer: what lives between two steps. It claims the output folder, takes up a checkpoint if asked to,
 * and writes metrics, checkpoints and the result.
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { writeFileAtomic } from '../io/files.ts';
import type { Optimizer } from '../optim/optimizer.ts';
import { synchronize } from '../runtime.ts';
import { dropoutWarning } from '../models/dropout_rates.ts';
import { taskOf } from '../tasks/list.ts';
import { kTeacherCacheName } from '../tasks/teacher_cache.ts';
import { BestKeeper } from './best.ts';
import { type Checkpoint, saveCheckpoint } from './checkpoints.ts';
import { addNotes } from './failure.ts';
import { identityOf } from './identity.ts';
import { MetricsFile } from './metrics.ts';
import { makeOptimizer } from './optimizers.ts';
import type { Identity, ResolvedOptions } from './options.ts';
import { claimOutput, type OutputFolder } from './output.ts';
import { parameterGroups } from './parameter_groups.ts';
import { passesOf, selectorOf } from './passes.ts';
import { makePlan, planMemory, rateOf } from './plan.ts';
import { StepClock } from './record.ts';
import { restore, savedTensors, takeUp } from './resume.ts';
import { type Passes, takeStep } from './step.ts';
import { unlessStopped } from './stop.ts';
import type { AnyTrainerOptions } from './trainer_options.ts';
import type { RunPlan, StepRecord, Warning } from './types.ts';
import { type Position, WindowReader } from './window.ts';

const kStart: Position = { epoch: 0, microBatch: 0 };
const kMsPerMinute = 60_000;

/** What a run is made of; built by {@link openRun}. */
interface Parts {
  readonly input: AnyTrainerOptions;
  readonly options: ResolvedOptions;
  readonly plan: RunPlan;
  readonly identity: Identity;
  readonly folder: OutputFolder | null;
  readonly metrics: MetricsFile | null;
  readonly optimizer: Optimizer;
  readonly passes: Passes;
  readonly windows: WindowReader;
  readonly keeper: BestKeeper | null;
  readonly clock: StepClock;
  readonly rate: (step: number) => number;
  /** Not told yet. */
  readonly warnings: Warning[];
}

interface Progress {
  /** Optimiser steps done. */
  readonly step: number;
  /** The next micro-batch. */
  readonly position: Position;
  readonly last: StepRecord | null;
}

export class Run {
  /** Whether an evaluation at this step is due, or was stopped. */
  owesEvaluation = false;
  private savedStep: number | null = null;
  private savedPath: string | null = null;
  private savedAt = performance.now();
  /** Whether a checkpoint could not be written: it is not tried again. */
  private saveFailed = false;
  /** Whether parameters are being written, and so are those of no step. */
  private updating = false;
  private closed = false;

  constructor(
    private readonly parts: Parts,
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

  /** Seconds that the run took so far, over all its resumptions. */
  get elapsedSeconds(): number {
    return this.parts.clock.elapsed();
  }

  /** Keeps the best evaluated step; null where the last one is exported. */
  get keeper(): BestKeeper | null {
    return this.parts.keeper;
  }

  /** Folder of the last checkpoint; null where there is none. */
  get lastCheckpoint(): string | null {
    return this.savedPath;
  }

  /** Whether a checkpoint is due at this step, by steps or by time; the one of the last step is written in any case. */
  get owesCheckpoint(): boolean {
    if (this.step === this.totalSteps) return false;
    const { saveSteps, saveMinutes } = this.parts.options.output;
    const minutes = (performance.now() - this.savedAt) / kMsPerMinute;
    return (
      (saveSteps > 0 && this.step % saveSteps === 0) || (saveMinutes > 0 && minutes >= saveMinutes)
    );
  }

  /** Warnings since the last call, to be told. */
  takeWarnings(): Warning[] {
    return this.parts.warnings.splice(0);
  }

  secondsLeft(): number {
    return this.parts.clock.estimate(this.totalSteps - this.step);
  }

  /** Takes the next step; null if the signal stopped it on the way. */
  async takeStep(): Promise<StepRecord | null> {
    const { input, options, passes, windows, optimizer, clock, rate } = this.parts;
    const { tuned, signal, afterBackward = null } = input;
    const { maxGradNorm } = options.optimization;
    const { step, totalSteps } = this;
    const taken = await unlessStopped(signal, () =>
      takeStep(
        { tuned, passes, windows, optimizer, maxGradNorm, clock, afterBackward, signal },
        {
          ...{ step, totalSteps, learningRate: rate(step) },
          // From here to commit() the parameters are those of no step.
          onUpdate: () => {
            this.updating = true;
          },
        },
      ),
    );
    if (taken === null) {
      await this.dropWindow();
      return null;
    }
    await this.commit(taken.record, taken.window.after);
    return taken.record;
  }

  /** Takes note of a whole step. */
  private async commit(record: StepRecord, position: Position): Promise<void> {
    const { metrics, input, options } = this.parts;
    const { evalSteps } = options.output;
    this.progress = { step: record.step, position, last: record };
    this.updating = false;
    this.owesEvaluation =
      input.evalData !== undefined &&
      evalSteps > 0 &&
      this.step % evalSteps === 0 &&
      this.step < this.totalSteps;
    await metrics?.append(record);
  }

  /** Drops a window that came to nothing: its gradients, and what the engine still has to say of it. */
  private async dropWindow(): Promise<void> {
    const { tuned } = this.parts.input;
    tuned.zeroGradients();
    await synchronize(tuned.model.device).catch(() => {});
  }

  /**
   * Puts everything away that a resumed run needs; null without an output folder, before the first step, where it is saved
   * already and where it cannot be.
   */
  async saveCheckpoint(): Promise<string | null> {
    const nothing = this.step === 0 || this.savedStep === this.step;
    const impossible = this.updating || this.saveFailed || this.closed;
    if (this.parts.folder === null || nothing || impossible) return null;
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

  private write(folder: OutputFolder): Promise<string> {
    const { input, optimizer, options } = this.parts;
    const moments = optimizer.state();
    return saveCheckpoint(
      folder.checkpoints,
      {
        state: {
          format: 1,
          step: this.step,
          totalSteps: this.totalSteps,
          position: this.progress.position,
          elapsedSeconds: this.elapsedSeconds,
          last: this.last,
          identity: this.parts.identity,
          optimizerSteps: moments.steps,
          ...(this.owesEvaluation && { owesEvaluation: true }),
        },
        tensors: savedTensors(input.tuned, moments.tensors),
      },
      options.output.saveTotalLimit,
    );
  }

  /**
   * Saves what a run that `error` ends has done, and says in the error where it is. Never throws: the first error is the one
   * that counts.
   */
  async rescue(error: unknown): Promise<void> {
    let second: unknown;
    try {
      await this.dropWindow();
      await this.saveCheckpoint();
    } catch (failure) {
      second = failure;
    }
    addNotes(error, this.notes(second), second);
    await this.close().catch(() => {});
  }

  /** What became of the run, for the error that ended it; `second`: why its last step could not be saved. */
  private notes(second: unknown): string[] {
    if (this.parts.folder === null || this.step === 0) return [];
    return [
      ...(this.updating
        ? [`step ${this.step + 1} was writing the parameters, which are lost`]
        : []),
      ...(second === undefined
        ? []
        : [`step ${this.step} could not be saved (${(second as Error).message})`]),
      this.savedPath === null
        ? 'there is no checkpoint'
        : `the last good checkpoint is ${this.savedPath}, and resume goes on from it`,
    ];
  }

  /** Writes the adapter or model where users look for it. */
  async exportResult(): Promise<void> {
    const { folder, input, options, keeper } = this.parts;
    await keeper?.restore(input.tuned, this.step);
    if (folder === null) return;
    await removeTeacherCache(folder);
    await input.tuned.savePretrained(folder.path, { form: options.output.export });
  }

  async close(): Promise<void> {
    if (this.closed) return;
    this.closed = true;
    const { input, windows, metrics, optimizer, passes, folder, keeper } = this.parts;
    // A step that failed or was stopped leaves some, and the model may go on into another run.
    input.tuned.zeroGradients();
    try {
      await windows.close();
    } finally {
      await metrics?.close().catch(() => {});
      optimizer.dispose();
      passes.dispose();
      keeper?.dispose();
      await folder?.release();
    }
  }

  /** Adopts a checkpoint that stands in the folder already. */
  adopt({ path, state }: Checkpoint): void {
    this.savedStep = state.step;
    this.savedPath = path;
    this.owesEvaluation = state.owesEvaluation ?? false;
  }
}

/** Makes a run ready for its next step. Whatever is wrong with options, folder or data comes up here. */
export async function openRun(input: AnyTrainerOptions, options: ResolvedOptions): Promise<Run> {
  const { output, overwrite, resume } = options.output;
  input.tuned.zeroGradients();
  const groups = parameterGroups(input.tuned.parameters(), options.optimization);
  const plan = await makePlan(input, options);
  const rate = rateOf(plan, options);
  const folder = output === null ? null : await claimOutput(output, { overwrite, resume });
  let metrics: MetricsFile | null = null;
  let optimizer: Optimizer | null = null;
  let passes: Passes | null = null;
  try {
    // Nothing compares it where nothing is written.
    const identity = folder === null ? {} : await identityOf(input, options, plan);
    const warnings: Warning[] = [];
    const checkpoint =
      folder !== null && resume
        ? await takeUp(folder, { identity, plan, warnings, device: input.tuned.model.device })
        : null;
    // Without a checkpoint nothing says which base model an earlier run's teacher was of.
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
    const memory = await planMemory(input, options, plan);
    passes = passesOf(input, options, {
      chunkBytes: memory?.chunkBytes ?? 0,
      captureGraphs: options.resources.captureGraphs,
      onNote: ({ code, message }) => warnings.push({ type: 'warning', code, message }),
      ...(options.resources.cacheTeacher && {
        teacherCache: folder === null ? null : join(folder.run, kTeacherCacheName),
      }),
    });
    const dropout = dropoutWarning(input.tuned.model);
    if (dropout !== null && step === 0) {
      warnings.push({ type: 'warning', code: 'dropout_not_applied', message: dropout });
    }
    const run = new Run(
      {
        input,
        options,
        plan,
        identity,
        folder,
        metrics,
        optimizer,
        passes,
        keeper: await makeKeeper(input, folder, step > 0),
        windows: new WindowReader(
          input.data,
          { accumulation, select: selectorOf(input.tuned.model, options) },
          position,
        ),
        clock: new StepClock(elapsedSeconds),
        rate,
        warnings,
      },
      { step, position, last },
    );
    if (checkpoint !== null) run.adopt(checkpoint);
    return run;
  } catch (error) {
    optimizer?.dispose();
    passes?.dispose();
    await metrics?.close();
    await folder?.release();
    throw error;
  }
}

/** Of a run with evaluations on the way whose best step is to be kept. */
async function makeKeeper(
  { tuned, evalData, metricForBestModel, evalSteps = 0 }: AnyTrainerOptions,
  folder: OutputFolder | null,
  resumed: boolean,
): Promise<BestKeeper | null> {
  const metric =
    metricForBestModel === undefined && evalSteps > 0
      ? taskOf(tuned.model).metrics(tuned.model).standard
      : (metricForBestModel ?? null);
  if (metric === null || evalData === undefined) return null;
  const keeper = new BestKeeper(metric, folder === null ? null : join(folder.run, 'best'));
  if (resumed) await keeper.resume();
  return keeper;
}

async function removeTeacherCache(folder: OutputFolder): Promise<void> {
  await rm(join(folder.run, kTeacherCacheName), { force: true });
}

function configText(options: ResolvedOptions, identity: Identity): string {
  const { runConfig, ...output } = options.output;
  const trainer = {
    ...options.optimization,
    ...options.regularizers,
    ...output,
    seed: options.seed,
  };
  return `${JSON.stringify({ command: runConfig, trainer, identity }, null, 2)}\n`;
}
