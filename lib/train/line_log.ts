/**
 * Logs of a run: files of one JSON object a line, to which lines are only added. A process that is killed leaves at worst a last line
 * that is cut off, which readers pass over and the resumed run removes.
 */
import type { FileHandle } from 'node:fs/promises';
import { diskError, openToAppend, refuseLink, writeFileAtomic } from '../io/files.ts';
import { isMissing, readText } from '../io/regular_file.ts';
import { objectIn } from '../io/run_folder.ts';
import { toJson } from './json.ts';

/** Whether a line of a log is of a step up to `last`. A line that says no step, which somebody has changed, is of none. */
export function isUpTo(last: number): (line: { readonly step?: unknown }) => boolean {
  return ({ step }) => typeof step === 'number' && step <= last;
}

export class LineLog<T extends object> {
  private constructor(
    private readonly path: string,
    private readonly file: FileHandle,
    /** The last object that was kept when the log was opened; null: none was. */
    readonly last: T | null,
  ) {}

  /**
   * Opens a log for adding to it. Lines that are cut off, and those that `keeps` refuses, are removed.
   * @throws FormatError for a link, whose file belongs to something else
   */
  static async open<T extends object>(
    path: string,
    keeps: (value: T) => boolean = () => true,
  ): Promise<LineLog<T>> {
    await refuseLink(path);
    const text = await textOf(path);
    let [kept, last] = ['', null as T | null];
    for (const line of (text ?? '').split('\n')) {
      const value = objectIn<T>(line);
      if (value === null || !keeps(value)) continue;
      kept += `${line}\n`;
      last = value;
    }
    if (kept !== text) await writeFileAtomic(path, kept);
    return new LineLog(path, await openToAppend(path), last);
  }

  /**
   * Adds a line.
   * @param options.sync whether the line must have reached the disk, for one that is rare and must not be lost
   */
  async append(value: T, { sync = false }: { sync?: boolean } = {}): Promise<void> {
    try {
      await this.file.appendFile(`${toJson(value)}\n`);
      if (sync) await this.file.sync();
    } catch (error) {
      throw diskError(this.path, error);
    }
  }

  async close(): Promise<void> {
    await this.file.close();
  }
}

/** The longest text that V8 has room for, in ASCII. */
const kMaxLogBytes = 2 ** 29 - 32;

/** The text of a file; null where there is none. */
async function textOf(path: string): Promise<string | null> {
  try {
    return await readText(path, { limit: kMaxLogBytes });
  } catch (error) {
    if (isMissing(error)) return null;
    throw error;
  }
}
