/**
 * The best evaluated step of a run. Its parameters are saved when its metric is better than all earlier ones, and restored at
 * the end, so that the run exports them. They are kept in the output folder (run/best/step-<number>/), or in memory where a run has
 * none. The folder of the former best step is removed only when that of the new one is there, complete.
 */
import { join } from 'node:path';
import { z } from 'zod';
import { copiesOf } from '../adapters/copies.ts';
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { MetricName } from '../data/glue.ts';
import { ArgumentError, FormatError } from '../errors.ts';
import { EVALUATION_TEXTS, type Evaluation, isEvaluation } from '../eval/types.ts';
import { CheckedFolder, writeChecksums } from '../io/checksums.ts';
import { namesIn, removeAll, writeFileAtomic, writeFolderAtomic } from '../io/files.ts';
import { listSteps, stepFolder } from '../io/run_folder.ts';
import { saveSafetensors } from '../io/safetensors.ts';
import type { Model } from '../models/index.ts';
import { taskOf } from '../tasks/list.ts';
import type { Tensor } from '../tensor.ts';
import { fromJson, toJson } from './json.ts';
import type { ResolvedRun } from './resolve_run.ts';
import type { AnyTrainerOptions } from './trainer_options.ts';
import type { BestStep } from './types.ts';

const kNoteFile = 'best.json';
const kTensorFile = 'state.safetensors';
const kFiles = [kNoteFile, kTensorFile];

/** The metric by which a run keeps its best step; null where it keeps none. */
export function bestMetric(
  { tuned, evalData }: AnyTrainerOptions,
  { metricForBestModel, output }: ResolvedRun,
): MetricName | null {
  if (evalData === undefined) return null;
  if (metricForBestModel === undefined && output.evalSteps > 0) {
    return taskOf(tuned.model).metrics(tuned.model).defaultMetric;
  }
  return metricForBestModel ?? null;
}

/**
 * Refuses a metric that no evaluation of the model has, before the first step.
 * @throws ArgumentError naming the metrics that there are
 */
export function checkMetric(
  { tuned }: AnyTrainerOptions,
  { metricForBestModel }: ResolvedRun,
): void {
  const metric = metricForBestModel ?? null;
  if (metric === null) return;
  const { names, subject } = taskOf(tuned.model).metrics(tuned.model);
  if (names.includes(metric)) return;
  throw new ArgumentError(
    `metricForBestModel: ${subject} has no ${metric}; choose one of ${names.join(', ')}`,
  );
}

/** The correlations, which are undefined (null) where all predictions are equal, as may happen with an untrained head. */
const kCorrelations: readonly MetricName[] = ['pearson', 'spearman', 'pearsonSpearmanMean'];

/** The worst possible value of a metric: every other value is better. */
const worstValue = (metric: MetricName): number =>
  metric === 'loss' ? Number.POSITIVE_INFINITY : Number.NEGATIVE_INFINITY;

/**
 * The value of a metric in an evaluation; NaN and an undefined correlation count as the worst value.
 * @throws ArgumentError naming the metrics that the evaluation has
 */
export function metricOf(evaluation: Evaluation, metric: MetricName): number {
  const found: Record<string, unknown> = {
    loss: evaluation.loss,
    ...('metrics' in evaluation ? evaluation.metrics : {}),
  };
  const value = found[metric];
  if (typeof value === 'number') return Number.isNaN(value) ? worstValue(metric) : value;
  if (value === null && kCorrelations.includes(metric)) return worstValue(metric);
  const names = Object.keys(found).filter((name) => typeof found[name] === 'number');
  throw new ArgumentError(
    `metricForBestModel: this evaluation has no ${metric}; choose one of ${names.join(', ')}`,
  );
}

interface Kept {
  readonly step: BestStep;
  readonly evaluation: Evaluation;
}

/** The part of a record that is used before the run ends. */
const kKept = z.looseObject({
  step: z.looseObject({
    step: z.int().nonnegative(),
    metric: z.string(),
    value: z.custom<number>((value) => typeof value === 'number'), // it may be infinite
  }),
  evaluation: z.custom<Evaluation>(isEvaluation),
});

/** Reads the record of the best step; null for anything else. */
function keptOf(text: string): Kept | null {
  try {
    return kKept.parse(
      fromJson(text, { texts: ['metric', ...EVALUATION_TEXTS] }),
    ) as unknown as Kept;
  } catch {
    return null;
  }
}

/** Keeps the parameters of the best evaluated step of a run. */
export class BestKeeper {
  #best: Kept | null = null;
  #state: Record<string, Tensor> | null = null;

  /**
   * Makes a keeper that has not seen a step yet.
   * @param folder run/best of the output folder; null to keep the parameters in memory
   */
  constructor(
    private readonly metric: MetricName,
    private readonly folder: string | null,
  ) {}

  /**
   * Reads the best step that the run kept before it was interrupted. A process that was killed may have left the former one beside it,
   * whole or in part.
   * @returns a message where it is damaged, so that the run continues without it; else null
   */
  async resume(): Promise<string | null> {
    const { folder } = this;
    if (folder === null) return null;
    const isOld = (await namesIn(folder)).includes(kNoteFile);
    let problem = isOld ? `${folder} was written by an earlier version of balora` : null;
    for (const { name } of (await listSteps(folder)).reverse()) {
      const path = join(folder, name);
      problem = null;
      let text: string;
      try {
        const checked = await CheckedFolder.open(path);
        await checked.verify(kTensorFile); // and again when it is read, at the end of the run
        text = await checked.text(kNoteFile);
      } catch (error) {
        if (!(error instanceof FormatError)) throw error;
        problem = `${path} is damaged (${error.fact})`;
        continue;
      }
      const note = keptOf(text);
      if (note === null) {
        problem = `${path} is damaged (${kNoteFile} is no record of an evaluation)`;
        continue;
      }
      if (note.step.metric === this.metric && this.#isBetter(note.step.value)) this.#best = note;
    }
    return problem && `${problem}, so the best step is chosen from the other evaluations`;
  }

  get best(): BestStep | null {
    return this.#best?.step ?? null;
  }

  get evaluation(): Evaluation | null {
    return this.#best?.evaluation ?? null;
  }

  /**
   * Keeps the parameters if their evaluation is the best so far; of equal evaluations the first is kept.
   * @param options.save whether to save them; otherwise they are those of the run's end, which need no copy. Default true
   */
  async offer(
    tuned: TunedModel<Model>,
    evaluation: Evaluation,
    step: number,
    { save = true }: { save?: boolean } = {},
  ): Promise<void> {
    const value = metricOf(evaluation, this.metric);
    if (!this.#isBetter(value)) return;
    const best: Kept = { step: { step, metric: this.metric, value }, evaluation };
    if (save) await this.#save(tuned, best);
    this.#best = best;
  }

  /** Whether a value of the metric is better than that of the best step so far. */
  #isBetter(value: number): boolean {
    const sign = this.metric === 'loss' ? -1 : 1;
    return this.#best === null || sign * value > sign * this.#best.step.value;
  }

  async #save(tuned: TunedModel<Model>, best: Kept): Promise<void> {
    const { folder } = this;
    if (folder === null) {
      this.#disposeState();
      this.#state = copiesOf(tuned.state());
      return;
    }
    const own = stepFolder(best.step.step);
    await writeFolderAtomic(join(folder, own), async (temporary) => {
      await saveSafetensors(join(temporary, kTensorFile), tuned.state());
      await writeFileAtomic(join(temporary, kNoteFile), `${toJson(best, 2)}\n`);
      await writeChecksums(temporary, kFiles);
    });
    for (const { name } of await listSteps(folder)) {
      if (name !== own) await removeAll(join(folder, name));
    }
  }

  /** Puts the best parameters back into the model, unless `step` is the best one itself. */
  async restore(tuned: TunedModel<Model>, step: number): Promise<void> {
    if (this.#best === null || this.#best.step.step === step) return;
    if (this.folder === null) {
      if (this.#state !== null) tuned.restore(this.#state, 'the best step');
      return;
    }
    const folder = join(this.folder, stepFolder(this.#best.step.step));
    const checked = await CheckedFolder.open(folder);
    const tensors = await checked.tensors(kTensorFile, { device: tuned.model.device });
    tuned.restore(tensors, join(folder, kTensorFile));
    for (const tensor of Object.values(tensors)) tensor.dispose();
  }

  dispose(): void {
    this.#disposeState();
  }

  #disposeState(): void {
    for (const tensor of Object.values(this.#state ?? {})) tensor.dispose();
    this.#state = null;
  }
}
