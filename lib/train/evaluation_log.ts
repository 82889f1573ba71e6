/**
 * The evaluations of a run: a line for each in run/evaluations.jsonl, and the last one in full, with every example, in
 * run/last_evaluation.json. A resumed run finds there whether the evaluation of its step has been made, and does not repeat it.
 */
import { join } from 'node:path';
import { z } from 'zod';
import {
  type ClassifierEvaluation,
  EVALUATION_TEXTS,
  type Evaluation,
  type EvaluationResult,
  isEvaluation,
} from '../eval/types.ts';
import { removeFile, writeFileAtomic } from '../io/files.ts';
import { isMissing, readText } from '../io/regular_file.ts';
import { RUN_FILES } from '../io/run_folder.ts';
import { fromJson, toJson } from './json.ts';
import { isUpTo, LineLog } from './line_log.ts';

/** The step of an evaluation, and the fingerprint of its held-out data; null where these have none. */
interface Place {
  readonly step: number;
  readonly data: string | null;
}

/** A line of run/evaluations.jsonl: the numbers of an evaluation, without those of single examples. */
export type EvaluationLine = Place &
  (
    | (Omit<EvaluationResult, 'examples'> & { readonly examples: number })
    | Omit<ClassifierEvaluation, 'predictions' | 'labels'>
  );

/** The evaluation of the step that a run is resumed at, made before the interruption. */
export interface EarlierEvaluation {
  /** The result in full; null where only its line is left, since other evaluations followed. */
  readonly result: Evaluation | null;
}

export class EvaluationLog {
  private constructor(
    private readonly lines: LineLog<EvaluationLine>,
    private readonly lastPath: string,
    private readonly data: string | null,
    /** The evaluation of the step at which the log was opened; null: there is none. */
    readonly earlier: EarlierEvaluation | null,
  ) {}

  /**
   * Opens the log after `step`; evaluations of later steps are removed.
   * @param place.data the fingerprint of the held-out data, of which an earlier evaluation must be
   */
  static async open(run: string, { step, data }: Place): Promise<EvaluationLog> {
    const lastPath = join(run, RUN_FILES.lastEvaluation);
    const lines = await LineLog.open<EvaluationLine>(
      join(run, RUN_FILES.evaluations),
      isUpTo(step),
    );
    try {
      const full = await readFull(lastPath);
      if (full !== null && !isUpTo(step)(full)) await removeFile(lastPath);
      const isOfStep = (place: Place | null) =>
        data !== null && place?.step === step && place.data === data;
      const result = isOfStep(full) ? (full?.result ?? null) : null;
      return new EvaluationLog(lines, lastPath, data, isOfStep(lines.last) ? { result } : null);
    } catch (error) {
      await lines.close();
      throw error;
    }
  }

  /** Writes an evaluation. The line comes last: it says that the evaluation has been made. */
  async append(step: number, result: Evaluation): Promise<void> {
    const place = { step, data: this.data };
    await writeFileAtomic(this.lastPath, `${toJson({ ...place, result })}\n`);
    await this.lines.append({ ...place, ...numbersOf(result) }, { sync: true });
  }

  async close(): Promise<void> {
    await this.lines.close();
  }
}

/** The numbers of an evaluation without those of single examples. */
function numbersOf(result: Evaluation) {
  if ('metrics' in result) {
    const { predictions: _, labels: __, ...numbers } = result;
    return numbers;
  }
  return { ...result, examples: result.examples.length };
}

async function readFull(path: string): Promise<(Place & { result: Evaluation }) | null> {
  const text = await readText(path).catch((error: unknown) => {
    if (isMissing(error)) return 'null';
    throw error;
  });
  try {
    const found = kFull.safeParse(fromJson(text, { texts: ['data', ...EVALUATION_TEXTS] }));
    // A file that somebody changed is not used: the evaluation is made again.
    return found.success ? found.data : null;
  } catch {
    return null;
  }
}

const kFull = z.object({
  step: z.int(),
  data: z.string().nullable(),
  result: z.custom<Evaluation>(isEvaluation),
});
