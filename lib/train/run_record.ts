/** The record that a run leaves in run/ of its output folder, beside its checkpoints: steps, evaluations, export and result. */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { Evaluation } from '../eval/types.ts';
import { removeFile, writeFileAtomic } from '../io/files.ts';
import { type ExportNote, RUN_FILES } from '../io/run_folder.ts';
import { type Environment, logEnvironment } from './environment.ts';
import { type EarlierEvaluation, EvaluationLog } from './evaluation_log.ts';
import { toJson } from './json.ts';
import { isUpTo, LineLog } from './line_log.ts';
import { openMetrics } from './metrics.ts';
import type { Sample } from './samples.ts';
import type { StepRecord, TrainResult } from './types.ts';

/** The point at which a record is opened. */
interface RecordStart {
  /** Number of steps done; lines of later ones are removed. */
  readonly step: number;
  /** The record of that step; null before the first. */
  readonly last: StepRecord | null;
  /** The fingerprint of the held-out data; null without them. */
  readonly evalData: string | null;
  /** Whether the run answers prompts of the user's. */
  readonly hasSamples: boolean;
}

/** A line of run/samples.jsonl: an answer to a prompt. */
interface SampleLine extends Sample {
  readonly step: number;
  /** Index of the prompt. */
  readonly sample: number;
}

export class RunRecord {
  private constructor(
    private readonly run: string,
    private readonly metrics: LineLog<StepRecord>,
    private readonly evaluations: EvaluationLog,
    private readonly samples: LineLog<SampleLine> | null,
  ) {}

  /** Opens the record in a run's folder run/. */
  static async open(
    run: string,
    { step, last, evalData, hasSamples: isWanted }: RecordStart,
  ): Promise<RunRecord> {
    const metrics = await openMetrics(join(run, RUN_FILES.metrics), { step, last });
    let evaluations: EvaluationLog | null = null;
    try {
      evaluations = await EvaluationLog.open(run, { step, data: evalData });
      // Answers of an evaluation that was interrupted are given again with it.
      const kept = evaluations.earlier === null ? step - 1 : step;
      const samples = await openSamples(join(run, RUN_FILES.samples), { isWanted, kept });
      return new RunRecord(run, metrics, evaluations, samples);
    } catch (error) {
      await metrics.close();
      await evaluations?.close();
      throw error;
    }
  }

  /** The evaluation, made earlier, of the step at which the record was opened; null: there is none. */
  get earlierEvaluation(): EarlierEvaluation | null {
    return this.evaluations.earlier;
  }

  /** Notes that the run begins, or goes on: what an earlier end has left as its result is no longer one. */
  async begin(environment: Environment): Promise<void> {
    await removeFile(join(this.run, RUN_FILES.result));
    await logEnvironment(join(this.run, RUN_FILES.environment), environment);
  }

  async addStep(record: StepRecord): Promise<void> {
    await this.metrics.append(record);
  }

  async addEvaluation(step: number, result: Evaluation): Promise<void> {
    await this.evaluations.append(step, result);
  }

  /** Adds the answers of an evaluation, before the evaluation itself. */
  async addSamples(step: number, samples: readonly Sample[]): Promise<void> {
    for (const [sample, answer] of samples.entries()) {
      await this.samples?.append({ step, sample, ...answer });
    }
  }

  /** Runs `write`, which writes the adapter or model. While it does, there is no note of what these are. */
  async export(note: ExportNote, write: () => Promise<void>): Promise<void> {
    const path = join(this.run, RUN_FILES.exported);
    await removeFile(path);
    await write();
    await writeFileAtomic(path, `${JSON.stringify(note)}\n`);
  }

  async writeResult(result: TrainResult): Promise<void> {
    await writeFileAtomic(join(this.run, RUN_FILES.result), `${toJson(result, 2)}\n`);
  }

  async close(): Promise<void> {
    try {
      await this.metrics.close();
    } finally {
      await this.evaluations.close();
      await this.samples?.close();
    }
  }
}

/** Opens the log of answers after step `kept`. A run that gives none has no such file, unless it had one before it was resumed. */
async function openSamples(
  path: string,
  { isWanted, kept }: { isWanted: boolean; kept: number },
): Promise<LineLog<SampleLine> | null> {
  if (!isWanted && !existsSync(path)) return null;
  return LineLog.open<SampleLine>(path, isUpTo(kept));
}
