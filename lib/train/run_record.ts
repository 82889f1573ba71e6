/** The record that a run leaves in run/ of its output folder, beside its checkpoints: steps, evaluations, export and result. */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import type { Evaluation } from '../eval/types.ts';
import { writeFileAtomic } from '../io/files.ts';
import { type ExportNote, RUN_FILES } from '../io/run_folder.ts';
import { type Environment, logEnvironment } from './environment.ts';
import { type EarlierEvaluation, EvaluationLog } from './evaluation_log.ts';
import { toJson } from './json.ts';
import type { LineLog } from './line_log.ts';
import { openMetrics } from './metrics.ts';
import type { StepRecord, TrainResult } from './types.ts';

/** The point at which a record is opened. */
interface RecordStart {
  /** Number of steps done; lines of later ones are removed. */
  readonly step: number;
  /** The record of that step; null before the first. */
  readonly last: StepRecord | null;
  /** The fingerprint of the held-out data; null without them. */
  readonly evalData: string | null;
}

export class RunRecord {
  private constructor(
    private readonly run: string,
    private readonly metrics: LineLog<StepRecord>,
    private readonly evaluations: EvaluationLog,
  ) {}

  /** Opens the record in a run's folder run/. */
  static async open(run: string, { step, last, evalData }: RecordStart): Promise<RunRecord> {
    const metrics = await openMetrics(join(run, RUN_FILES.metrics), { step, last });
    try {
      return new RunRecord(run, metrics, await EvaluationLog.open(run, { step, data: evalData }));
    } catch (error) {
      await metrics.close();
      throw error;
    }
  }

  /** The evaluation, made earlier, of the step at which the record was opened; null: there is none. */
  get earlierEvaluation(): EarlierEvaluation | null {
    return this.evaluations.earlier;
  }

  /** Notes that the run begins, or goes on: what an earlier end has left as its result is no longer one. */
  async begin(environment: Environment): Promise<void> {
    await rm(join(this.run, RUN_FILES.result), { force: true });
    await logEnvironment(join(this.run, RUN_FILES.environment), environment);
  }

  async addStep(record: StepRecord): Promise<void> {
    await this.metrics.append(record);
  }

  async addEvaluation(step: number, result: Evaluation): Promise<void> {
    await this.evaluations.append(step, result);
  }

  /** Runs `write`, which writes the adapter or model. While it does, there is no note of what these are. */
  async export(note: ExportNote, write: () => Promise<void>): Promise<void> {
    const path = join(this.run, RUN_FILES.exported);
    await rm(path, { force: true });
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
    }
  }
}
