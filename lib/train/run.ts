/**
 * One run of a trainer: what lives between two steps. It claims the output folder, takes up a checkpoint if asked to,
 * and writes metrics, checkpoints and the result.
 */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { ArgumentError, NativeError } from '../errors.ts';
import { writeFileAtomic } from '../io/files.ts';
import type { Model } from '../models/index.ts';
import type { Optimizer } from '../optim/optimizer.ts';
import type { Tensor } from '../tensor.ts';
import { BestKeeper, defaultMetric } from './best.ts';
import { type Checkpoint, latestCheckpoint, saveCheckpoint } from './checkpoints.ts';
import { identityOf } from './identity.ts';
import { MetricsFile } from './metrics.ts';
import type { Objective } from './objective.ts';
import { objectiveOf } from './objectives.ts';
import { makeOptimizer } from './optimizers.ts';
import { differences, type Identity, type ResolvedOptions } from './options.ts';
import { claimOutput, type OutputFolder } from './output.ts';
import { parameterGroups } from './parameter_groups.ts';
import { makePlan, planMemory, rateOf } from './plan.ts';
import { type CombinedTerms, StepClock } from './record.ts';
import { kTeacherCacheName } from './teacher_cache.ts';
import type { AnyTrainerOptions } from './trainer_options.ts';
import type { AnyBatch, RunPlan, StepRecord, TrainEvent } from './types.ts';
import { type Position, WindowReader } from './window.ts';

type Warning = Extract<TrainEvent, { type: 'warning' }>;

const kStart: Position = { epoch: 0, microBatch: 0 };
const kPrefix = { tuned: 'tuned/', optimizer: 'optimizer/' } as const;

/** What a run is made of; built by {@link openRun}. */
interface Parts {
  readonly input: AnyTrainerOptions;
  readonly options: ResolvedOptions;
  readonly plan: RunPlan;
  readonly identity: Identity;
  readonly folder: OutputFolder | null;
  readonly metrics: MetricsFile | null;
  readonly optimizer: Optimizer;
  readonly objective: Objective<Model, AnyBatch>;
  readonly windows: WindowReader<AnyBatch>;
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
  /** Whether an evaluation at this step is due that was stopped. */
  owesEvaluation = false;
  private savedStep: number | null = null;
  private savedPath: string | null = null;

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

  get optimizer(): Optimizer {
    return this.parts.optimizer;
  }

  get objective(): Objective<Model, AnyBatch> {
    return this.parts.objective;
  }

  get windows(): WindowReader<AnyBatch> {
    return this.parts.windows;
  }

  get clock(): StepClock {
    return this.parts.clock;
  }

  /** Keeps the best evaluated step; null where the last one is exported. */
  get keeper(): BestKeeper | null {
    return this.parts.keeper;
  }

  /** Warnings since the last call, to be told. */
  takeWarnings(): Warning[] {
    return this.parts.warnings.splice(0);
  }

  /** Learning rate of a step, 0 the first. */
  rate(step: number): number {
    return this.parts.rate(step);
  }

  secondsLeft(): number {
    return this.clock.estimate(this.totalSteps - this.step);
  }

  /** Takes note of a whole step. */
  async commit(record: StepRecord, position: Position): Promise<void> {
    await this.parts.metrics?.append(record);
    this.progress = { step: record.step, position, last: record };
  }

  /** Puts everything away that a resumed run needs; null without an output folder or when it is saved already. */
  async saveCheckpoint(): Promise<string | null> {
    const { folder, input, optimizer, options } = this.parts;
    if (folder === null || this.savedStep === this.step) return null;
    const moments = optimizer.state();
    this.savedPath = await saveCheckpoint(
      folder.checkpoints,
      {
        state: {
          format: 1,
          step: this.step,
          totalSteps: this.totalSteps,
          position: this.progress.position,
          elapsedSeconds: this.clock.elapsed(),
          last: this.last,
          identity: this.parts.identity,
          optimizerSteps: moments.steps,
          ...(this.owesEvaluation && { owesEvaluation: true }),
        },
        tensors: {
          ...withPrefix(kPrefix.tuned, input.tuned.state()),
          ...withPrefix(kPrefix.optimizer, moments.tensors),
        },
      },
      options.output.saveTotalLimit,
    );
    this.savedStep = this.step;
    return this.savedPath;
  }

  /** Writes the adapter or model where users look for it. */
  async exportResult(): Promise<void> {
    const { folder, input, options, keeper } = this.parts;
    await keeper?.restore(input.tuned, this.step);
    if (folder === null) return;
    await removeTeacherCache(folder);
    await input.tuned.save(folder.path, { form: options.output.export });
  }

  /** The error of a step whose numbers are not finite; nothing was changed by it. */
  notFinite(terms: CombinedTerms, norm: number): NativeError {
    const { taskLoss, consistency, diversity, svd } = terms;
    const values = Object.entries({ taskLoss, consistency, diversity, svd, gradNorm: norm })
      .filter(([, value]) => value !== null)
      .map(([name, value]) => `${name} ${value}`);
    const kept =
      this.savedPath === null
        ? 'no checkpoint had been saved'
        : `the last good checkpoint is ${this.savedPath}`;
    return new NativeError(
      `step ${this.step + 1}: not finite (${values.join(', ')}); the parameters are those after step ${this.step}, ${kept}`,
    );
  }

  async close(): Promise<void> {
    const { input, windows, metrics, optimizer, objective, folder, keeper } = this.parts;
    // A step that failed or was stopped leaves some, and the model may go on into another run.
    input.tuned.zeroGradients();
    await windows.close();
    await metrics?.close();
    optimizer.dispose();
    objective.dispose();
    keeper?.dispose();
    await folder?.release();
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
  let objective: Objective<Model, AnyBatch> | null = null;
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
      metrics = await MetricsFile.open(folder.metrics, step);
      await writeFileAtomic(folder.config, configText(options, identity));
    }
    const { gradientAccumulationSteps: accumulation } = options.optimization;
    const memory = await planMemory(input, options, plan);
    objective = objectiveOf(
      input,
      options.regularizers,
      ({ code, message }) => warnings.push({ type: 'warning', code, message }),
      {
        chunkBytes: memory?.chunkBytes ?? 0,
        captureGraphs: options.resources.captureGraphs,
        ...(options.resources.cacheTeacher && {
          teacherCache: folder === null ? null : join(folder.run, kTeacherCacheName),
        }),
      },
    );
    const run = new Run(
      {
        input,
        options,
        plan,
        identity,
        folder,
        metrics,
        optimizer,
        objective,
        keeper: await makeKeeper(input, folder, step > 0),
        windows: new WindowReader<AnyBatch>(
          input.data,
          { accumulation, positions: options.regularizers.positions },
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
    objective?.dispose();
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
      ? defaultMetric(tuned.model)
      : (metricForBestModel ?? null);
  if (metric === null || evalData === undefined) return null;
  const keeper = new BestKeeper(metric, folder === null ? null : join(folder.run, 'best'));
  if (resumed) await keeper.resume();
  return keeper;
}

/** The checkpoint to go on from, or null (with a warning) when the earlier run did not come to one. */
async function takeUp(
  folder: OutputFolder,
  found: { identity: Identity; plan: RunPlan; warnings: Warning[]; device: string },
): Promise<Checkpoint | null> {
  const { identity, plan, warnings, device } = found;
  const warn = (code: string, message: string): void => {
    warnings.push({ type: 'warning', code, message });
  };
  const checkpoint = await latestCheckpoint(folder.checkpoints, {
    device,
    onDamaged: (message) => warn('checkpoint_damaged', message),
  });
  if (checkpoint === null) {
    warn(
      'nothing_to_resume',
      `${folder.path} has no checkpoint: the run starts from the beginning`,
    );
    return null;
  }
  try {
    checkContinues(checkpoint, identity, plan);
  } catch (error) {
    disposeAll(checkpoint.tensors);
    throw error;
  }
  return checkpoint;
}

/** @throws ArgumentError for a checkpoint of another run */
function checkContinues({ state, path }: Checkpoint, identity: Identity, plan: RunPlan): void {
  if (!('baseModel' in state.identity)) {
    throw new ArgumentError(
      `${path} is of an earlier version of balora, which did not note dtype and base model: it cannot be continued; ` +
        'begin anew in another folder, or with overwrite',
    );
  }
  const changed = differences(
    { ...state.identity, totalSteps: state.totalSteps },
    { ...identity, totalSteps: plan.totalSteps },
  );
  if (changed.length > 0) {
    throw new ArgumentError(
      `${path} belongs to another run and cannot be continued bit for bit: ${changed.join('; ')}`,
    );
  }
}

function disposeAll(tensors: Readonly<Record<string, Tensor>>): void {
  for (const tensor of Object.values(tensors)) tensor.dispose();
}

async function removeTeacherCache(folder: OutputFolder): Promise<void> {
  await rm(join(folder.run, kTeacherCacheName), { force: true });
}

function restore(checkpoint: Checkpoint, input: AnyTrainerOptions, optimizer: Optimizer): void {
  const { path, state, tensors } = checkpoint;
  const values = withoutPrefix(kPrefix.tuned, tensors);
  input.tuned.restore(values, path);
  disposeAll(values);
  optimizer.restore(
    { tensors: withoutPrefix(kPrefix.optimizer, tensors), steps: state.optimizerSteps },
    path,
  );
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

function withPrefix<T>(prefix: string, values: Readonly<Record<string, T>>): Record<string, T> {
  return Object.fromEntries(Object.entries(values).map(([key, value]) => [prefix + key, value]));
}

function withoutPrefix<T>(prefix: string, values: Readonly<Record<string, T>>): Record<string, T> {
  return Object.fromEntries(
    Object.entries(values)
      .filter(([key]) => key.startsWith(prefix))
      .map(([key, value]) => [key.slice(prefix.length), value]),
  );
}
