/**
 * The best evaluated step of a run. Its parameters are saved when its metric is better than all earlier ones, and restored at
 * the end, so that the run exports them. They are kept in the output folder (run/best/), or in memory where a run has none.
 */
import { join } from 'node:path';
import { copiesOf } from '../adapters/copies.ts';
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { MetricName } from '../data/glue.ts';
import { ArgumentError, FormatError, withoutAdvice } from '../errors.ts';
import type { Evaluation } from '../eval/types.ts';
import { verifyChecksums, writeChecksums } from '../io/checksums.ts';
import { namesIn, writeFileAtomic, writeFolderAtomic } from '../io/files.ts';
import { readText } from '../io/regular_file.ts';
import { loadSafetensors, saveSafetensors } from '../io/safetensors.ts';
import type { Model } from '../models/index.ts';
import { taskOf } from '../tasks/list.ts';
import type { Tensor } from '../tensor.ts';
import type { AnyTrainerOptions } from './trainer_options.ts';
import type { BestStep } from './types.ts';

const kNoteFile = 'best.json';
const kTensorFile = 'state.safetensors';
const kFiles = [kNoteFile, kTensorFile];

/**
 * Refuses a metric that no evaluation of the model has, before the first step.
 * @throws ArgumentError naming the metrics that there are
 */
export function checkMetric({ tuned, metricForBestModel }: AnyTrainerOptions): void {
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
   * Reads the best step that the run kept before it was interrupted.
   * @returns a message where it is damaged, so that the run continues without it; else null
   */
  async resume(): Promise<string | null> {
    const { folder } = this;
    if (folder === null || (await namesIn(folder)).length === 0) return null;
    try {
      await verifyChecksums(folder, kFiles);
    } catch (error) {
      if (!(error instanceof FormatError)) throw error;
      return `${folder} is damaged (${withoutAdvice(error)}), so the best step is chosen from the evaluations to come`;
    }
    const note = JSON.parse(await readText(join(folder, kNoteFile))) as Kept;
    if (note.step.metric !== this.metric) return null;
    // The worst value is infinite, and JSON stores infinities as null.
    const value = note.step.value ?? worstValue(this.metric);
    this.#best = { ...note, step: { ...note.step, value } };
    return null;
  }

  get best(): BestStep | null {
    return this.#best?.step ?? null;
  }

  get evaluation(): Evaluation | null {
    return this.#best?.evaluation ?? null;
  }

  /** Keeps the parameters if their evaluation is the best so far; of equal evaluations the first is kept. */
  async offer(tuned: TunedModel<Model>, evaluation: Evaluation, step: number): Promise<void> {
    const value = metricOf(evaluation, this.metric);
    const sign = this.metric === 'loss' ? -1 : 1;
    if (this.#best !== null && !(sign * value > sign * this.#best.step.value)) return;
    this.#best = { step: { step, metric: this.metric, value }, evaluation };
    const { folder } = this;
    if (folder === null) {
      this.#disposeState();
      this.#state = copiesOf(tuned.state());
      return;
    }
    const note = `${JSON.stringify(this.#best, null, 2)}\n`;
    await writeFolderAtomic(folder, async (temporary) => {
      await saveSafetensors(join(temporary, kTensorFile), tuned.state());
      await writeFileAtomic(join(temporary, kNoteFile), note);
      await writeChecksums(temporary, kFiles);
    });
  }

  /** Puts the best parameters back into the model, unless `step` is the best one itself. */
  async restore(tuned: TunedModel<Model>, step: number): Promise<void> {
    if (this.#best === null || this.#best.step.step === step) return;
    if (this.folder === null) {
      if (this.#state !== null) tuned.restore(this.#state, 'the best step');
      return;
    }
    await verifyChecksums(this.folder, kFiles);
    const path = join(this.folder, kTensorFile);
    const { tensors } = await loadSafetensors(path, { device: tuned.model.device });
    tuned.restore(tensors, path);
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
