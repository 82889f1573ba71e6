/**
 * The file run/metrics.jsonl: one JSON object for each step, appended when the step ends. A resumed run first removes the lines
 * of steps after its checkpoint, so that no step is listed twice.
 */
import { type FileHandle, open } from 'node:fs/promises';
import { diskError, writeFileAtomic } from '../io/files.ts';
import { isMissing, readText } from '../io/regular_file.ts';
import type { StepRecord } from './types.ts';

export class MetricsFile {
  private constructor(
    private readonly path: string,
    private readonly file: FileHandle,
  ) {}

  /**
   * Opens the file for appending after `step`; lines of later steps and incomplete lines are removed. `last` is the record of
   * `step` from the checkpoint; it is added if the step was saved but its line could not be written.
   */
  static async open(
    path: string,
    { step, last = null }: { step: number; last?: StepRecord | null },
  ): Promise<MetricsFile> {
    const lines = await linesUpTo(path, step);
    const isWritten = lines.some((line) => (JSON.parse(line) as StepRecord).step === step);
    if (last !== null && !isWritten) lines.push(JSON.stringify(last));
    await writeFileAtomic(path, lines.map((line) => `${line}\n`).join(''));
    return new MetricsFile(path, await open(path, 'a'));
  }

  async append(record: StepRecord): Promise<void> {
    try {
      await this.file.appendFile(`${JSON.stringify(record)}\n`);
    } catch (error) {
      throw diskError(this.path, error);
    }
  }

  async close(): Promise<void> {
    await this.file.close();
  }
}

async function linesUpTo(path: string, step: number): Promise<string[]> {
  if (step === 0) return [];
  const text = await readText(path).catch((error: unknown) => {
    if (isMissing(error)) return '';
    throw error;
  });
  return text.split('\n').filter((line) => {
    try {
      return (JSON.parse(line) as { step: number }).step <= step;
    } catch {
      return false;
    }
  });
}
