/** Files with the records of scored items: a line for each, after one that says what was scored. */
import { join } from 'node:path';
import { ArgumentError } from '../errors.ts';
import { type ItemRecord, isItemRecord } from '../eval/scoring.ts';
import { makeFolder } from '../io/files.ts';
import { ifThere, openRegular } from '../io/regular_file.ts';
import { shown } from '../shown.ts';
import { LineLog } from '../train/line_log.ts';

/** The values that the records of a task depend on, as plain JSON. Records of another identity are not mixed with these. */
export type RecordsIdentity = Readonly<Record<string, string | number | boolean | null>>;

interface Header {
  readonly scored: RecordsIdentity;
}

/** The records of a task in a folder. */
export class ItemRecords {
  private constructor(
    private readonly log: LineLog<ItemRecord | Header>,
    /** The records that the file had when it was opened, by the index of the item. */
    readonly done: ReadonlyMap<number, ItemRecord>,
  ) {}

  /**
   * Opens FOLDER/TASK.jsonl, or makes it.
   * @throws ArgumentError naming what differs where the file has the records of another model, of other data or settings
   */
  static async open(folder: string, task: string, identity: RecordsIdentity): Promise<ItemRecords> {
    await makeFolder(folder);
    const path = join(folder, `${task}.jsonl`);
    await checkIsRecords(path);
    const done = new Map<number, ItemRecord>();
    let header: RecordsIdentity | null = null;
    const log = await LineLog.open<ItemRecord | Header>(path, (value) => {
      if ('scored' in value) {
        const { scored } = value;
        if (typeof scored !== 'object' || scored === null) throw noRecords(path);
        header ??= scored;
        checkIdentity(path, header, identity);
        return true;
      }
      // An item whose line somebody has changed is scored again.
      if (!isItemRecord(value)) return false;
      done.set(value.index, value);
      return true;
    });
    if (header === null) await log.append({ scored: identity }, { sync: true });
    return new ItemRecords(log, done);
  }

  async add(record: ItemRecord): Promise<void> {
    await this.log.append(record);
  }

  async close(): Promise<void> {
    await this.log.close();
  }
}

/** How the first line of a file of records begins. */
const kBegin = '{"scored":';

/** Refuses a file that something else wrote, before it is opened for writing. @throws ArgumentError */
async function checkIsRecords(path: string): Promise<void> {
  const file = await ifThere(openRegular(path));
  if (file === null) return;
  try {
    const { bytesRead, buffer } = await file.read(Buffer.alloc(kBegin.length), 0, kBegin.length, 0);
    const found = buffer.toString('utf8', 0, bytesRead);
    // The first line may have been cut off when the process was killed.
    if (kBegin.startsWith(found)) return;
  } finally {
    await file.close();
  }
  throw noRecords(path);
}

function noRecords(path: string): ArgumentError {
  return new ArgumentError(`${path} is no file of records; choose another --output`);
}

function checkIdentity(path: string, found: RecordsIdentity, wanted: RecordsIdentity): void {
  const keys = [...new Set([...Object.keys(found), ...Object.keys(wanted)])];
  const other = keys.filter((key) => found[key] !== wanted[key]);
  if (other.length === 0) return;
  const [key] = other as [string];
  throw new ArgumentError(
    `${path} has records of another ${other.join(', ')} (${key}: ${shown(found[key])}, now ${shown(wanted[key])}); ` +
      'choose another --output, or delete the file',
  );
}
