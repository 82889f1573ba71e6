/**
 * A cache of the teacher's outputs for the consistency term, kept from one epoch to the next: C numbers and an entropy for each
 * row that a loss uses (see `teacherSummary`). Entries are found by a digest of a sequence's ids, positions and rows, so each epoch may
 * form other batches. They are kept in a file, because those of a large data set do not fit into memory. A file in a run's
 * folder remains when the run is interrupted, so that the resumed run uses the same numbers.
 *
 * A shared file is kept for other runs: nothing in it depends on the rank, the method, the seed or the learning rate of the run that
 * wrote it. One run appends to it at a time; others read what is there.
 *
 *     header   512 bytes: JSON and spaces; the file of a run with a different header is overwritten, a shared one is refused
 *     record   digest 16, rows u32, crc32 u32 of what follows, crc32 u32 of these 24 bytes; mean rows x C f32 or f64, entropy rows f64
 */
import { createHash, randomUUID } from 'node:crypto';
import {
  closeSync,
  constants,
  existsSync,
  fstatSync,
  ftruncateSync,
  openSync,
  readSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import type { SelectedRows } from '../data/select_rows.ts';
import { ArgumentError, FormatError } from '../errors.ts';
import { diskError, kNoLink, writtenLink } from '../io/files.ts';
import { requireRegular } from '../io/regular_file.ts';
import type { TeacherSummary } from '../ops/index.ts';
import { shown } from '../shown.ts';
import { noGrad, tensor, unscoped } from '../tensor.ts';

/** Name of the cache file in the folder of a run. */
export const kTeacherCacheName = 'teacher_cache.bin';

/** Where a cache keeps its outputs. */
export interface TeacherCachePlace {
  /** Path of the file; null for a temporary file, which close() removes. */
  readonly path: string | null;
  /** Present where several runs share the file: whether this one appends to it. */
  readonly shared?: { readonly appends: boolean };
}

/** Everything, apart from the rows themselves, that the cached numbers depend on. */
export interface TeacherCacheKind {
  /** The frozen model and what of an adapter belongs to the teacher. */
  readonly model: string;
  readonly dtype: string;
  readonly channels: number;
  readonly vocabulary: number;
  readonly temperature: number;
  /** The type of its products with frozen weights. Default: `dtype`. */
  readonly products?: 'int8';
}

/** One sequence of a batch, with the data by which the cache finds it again in another batch. */
export interface CachedSequence {
  /** All ids that the teacher's rows of the sequence depend on. */
  readonly ids: Int32Array;
  /** The positions of the ids; left out where the model knows none but 0, 1, 2, ... */
  readonly positions?: Int32Array;
  /** The index of its first row in the batch; `end` is one past its last row. */
  readonly begin: number;
  readonly end: number;
}

/** The selected rows of one sequence. */
interface SequenceRows {
  readonly key: string;
  readonly rows: number;
}

const kFormat = 2;
const kHeaderBytes = 512;
const kDigestBytes = 16;
/** Offsets within a record's header. */
const [kRowsAt, kPayloadCrcAt, kHeaderCrcAt] = [kDigestBytes, kDigestBytes + 4, kDigestBytes + 8];
const kRecordHeaderBytes = kHeaderCrcAt + 4;
const kEntropyBytes = 8;
/** Copies of a summary in the process's memory on its way between the device and the file, those that wait for a collection included. */
const kCopies = 6;

const elementBytes = (wide: boolean): number => (wide ? 8 : 4);
/** Bytes of so many rows in a record. */
const payloadBytes = (rows: number, channels: number, wide: boolean): number =>
  rows * (channels * elementBytes(wide) + kEntropyBytes);

export class TeacherCache {
  readonly #file: number;
  readonly #path: string;
  readonly #temporary: boolean;
  readonly #shared: boolean;
  readonly #appends: boolean;
  readonly #header: Buffer;
  readonly #wide: boolean;
  readonly #channels: number;
  /** Position of each sequence's record in the file, by digest. */
  readonly #positions = new Map<string, number>();
  #end = kHeaderBytes;

  /**
   * Opens or creates the cache file.
   * @param device device to which summaries are read; default see getDefaultDevice
   * @throws FormatError for a shared file that is damaged or belongs to another teacher; NativeError where the disk fails
   */
  constructor(
    { path, shared }: TeacherCachePlace,
    kind: TeacherCacheKind,
    private readonly device?: string,
  ) {
    this.#temporary = path === null;
    this.#path = path ?? join(tmpdir(), `balora-${randomUUID()}-${kTeacherCacheName}`);
    this.#shared = shared !== undefined;
    this.#appends = shared?.appends ?? true;
    const text = Buffer.from(JSON.stringify({ format: kFormat, ...kind }));
    if (text.length > kHeaderBytes) {
      throw new ArgumentError(
        `a cache of the teacher has ${kHeaderBytes} bytes for its head, and this one's is ${text.length} long`,
      );
    }
    this.#header = Buffer.alloc(kHeaderBytes, ' ');
    text.copy(this.#header);
    this.#wide = kind.dtype === 'f64';
    this.#channels = kind.channels;
    this.#file = this.#open();
    try {
      requireRegular(this.#path, fstatSync(this.#file));
      this.#begin();
    } catch (error) {
      closeSync(this.#file);
      throw diskError(this.#path, error);
    }
  }

  /** Bytes of the process's memory that reading or writing the summary of so many rows takes: its copies on the way. */
  static bytes(
    rows: number,
    { dtype, channels }: Pick<TeacherCacheKind, 'dtype' | 'channels'>,
  ): number {
    return kCopies * payloadBytes(rows, channels, dtype === 'f64');
  }

  /** The number of sequences in the cache. */
  get size(): number {
    return this.#positions.size;
  }

  /** The summary of a batch's selected rows, or null where one of its sequences is not in the cache or has a damaged record. */
  get(sequences: readonly CachedSequence[], selected: SelectedRows): TeacherSummary | null {
    const groups = rowsBySequence(sequences, selected);
    const parts: Buffer[] = [];
    for (const group of groups) {
      const payload = this.#payload(group);
      if (payload === null) return null;
      parts.push(payload);
    }
    const rows = selected.rows.length;
    const mean = this.#numbers(rows * this.#channels);
    const entropy = new Float64Array(rows);
    let row = 0;
    for (const [i, payload] of parts.entries()) {
      const { rows: count } = groups[i] as SequenceRows;
      const bytes = count * this.#channels * mean.BYTES_PER_ELEMENT;
      bytesOf(mean).set(payload.subarray(0, bytes), row * this.#channels * mean.BYTES_PER_ELEMENT);
      bytesOf(entropy).set(payload.subarray(bytes), row * kEntropyBytes);
      row += count;
    }
    const onDevice = this.device === undefined ? {} : { device: this.device };
    return unscoped(() =>
      noGrad(() => ({
        mean: tensor(mean, { shape: [rows, this.#channels], ...onDevice }),
        entropy: tensor(entropy, { shape: [rows], ...onDevice }),
      })),
    );
  }

  /** Adds the summary of a batch's selected rows to the cache. */
  async add(
    sequences: readonly CachedSequence[],
    selected: SelectedRows,
    summary: TeacherSummary,
  ): Promise<void> {
    const mean = bytesOf((await summary.mean.data()) as Float32Array);
    const entropy = bytesOf((await summary.entropy.data()) as Float64Array);
    const width = this.#channels * elementBytes(this.#wide);
    let row = 0;
    for (const { key, rows } of rowsBySequence(sequences, selected)) {
      const payload = Buffer.concat([
        mean.subarray(row * width, (row + rows) * width),
        entropy.subarray(row * kEntropyBytes, (row + rows) * kEntropyBytes),
      ]);
      row += rows;
      if (this.#appends && this.#payload({ key, rows }) === null) this.#append(key, rows, payload);
    }
  }

  close(): void {
    closeSync(this.#file);
    if (this.#temporary) rmSync(this.#path, { force: true });
  }

  #numbers(count: number): Float32Array | Float64Array {
    return this.#wide ? new Float64Array(count) : new Float32Array(count);
  }

  #payloadBytes(rows: number): number {
    return payloadBytes(rows, this.#channels, this.#wide);
  }

  #open(): number {
    // All reads and writes give a position. Neither a temporary file nor that of a run is ever written through a link that somebody has
    // put there; the path of a shared file is the user's own, and may be a link.
    const { O_CREAT, O_EXCL, O_NONBLOCK, O_RDONLY, O_RDWR } = constants;
    const way = O_NONBLOCK | (this.#appends ? O_RDWR : O_RDONLY) | (this.#shared ? 0 : kNoLink);
    // A file that is there may be another user's, of which Linux refuses O_CREAT in folders such as /tmp.
    const creates = this.#temporary || !existsSync(this.#path);
    const create = (creates ? O_CREAT : 0) | (this.#temporary ? O_EXCL : 0);
    try {
      return openSync(this.#path, way | create, 0o600);
    } catch (error) {
      const isLink = !this.#shared && (error as NodeJS.ErrnoException).code === 'ELOOP';
      if (isLink) throw writtenLink(this.#path);
      throw diskError(this.#path, error, this.#appends ? 'write' : 'read');
    }
  }

  /** Finds the records of the file, and begins a new one where it has none of this kind and may be overwritten. */
  #begin(): void {
    const found = this.#read(0, kHeaderBytes);
    if (found?.equals(this.#header) || (this.#shared && !this.#isUnwritten)) this.#scan();
    else if (this.#appends) this.#write(this.#header, 0);
    if (this.#appends) ftruncateSync(this.#file, this.#end);
  }

  /** Whether the header is not there yet, or only a part of it, as on a disk that was full. */
  get #isUnwritten(): boolean {
    const { size } = fstatSync(this.#file);
    if (size >= kHeaderBytes) return false;
    return this.#header.subarray(0, size).equals(this.#read(0, size) as Buffer);
  }

  #append(key: string, rows: number, payload: Buffer): void {
    const header = Buffer.alloc(kRecordHeaderBytes);
    header.write(key, 'hex');
    header.writeUInt32LE(rows, kRowsAt);
    header.writeUInt32LE(crc32(payload), kPayloadCrcAt);
    header.writeUInt32LE(crc32(header.subarray(0, kHeaderCrcAt)), kHeaderCrcAt);
    const record = Buffer.concat([header, payload]);
    this.#write(record, this.#end);
    this.#positions.set(key, this.#end);
    this.#end += record.length;
  }

  #payload({ key, rows }: SequenceRows): Buffer | null {
    if (rows === 0) return Buffer.alloc(0);
    // Another run may have appended the record since this one looked.
    if (!this.#appends && !this.#positions.has(key)) this.#scan();
    const place = this.#positions.get(key);
    if (place === undefined) return null;
    const record = this.#read(place, kRecordHeaderBytes + this.#payloadBytes(rows));
    const payload = record?.subarray(kRecordHeaderBytes) ?? null;
    if (payload !== null && record?.readUInt32LE(kPayloadCrcAt) === crc32(payload)) return payload;
    if (this.#shared) throw this.#damaged(place);
    return null;
  }

  /** Finds the complete records from #end on. What an interrupted run has left of its last record does not count. */
  #scan(): void {
    if (this.#isUnwritten) return;
    const { size } = fstatSync(this.#file);
    const found = this.#read(0, kHeaderBytes);
    if (!found?.equals(this.#header)) throw this.#foreign(found);
    for (;;) {
      const header = this.#read(this.#end, kRecordHeaderBytes);
      if (header === null) return;
      if (header.readUInt32LE(kHeaderCrcAt) !== crc32(header.subarray(0, kHeaderCrcAt))) {
        if (this.#shared) throw this.#damaged(this.#end);
        return;
      }
      const next =
        this.#end + kRecordHeaderBytes + this.#payloadBytes(header.readUInt32LE(kRowsAt));
      if (next > size) return;
      this.#positions.set(header.toString('hex', 0, kDigestBytes), this.#end);
      this.#end = next;
    }
  }

  /** Reads bytes at a position; null where the file ends before them. */
  #read(position: number, bytes: number): Buffer | null {
    const buffer = Buffer.alloc(bytes);
    return readSync(this.#file, buffer, 0, bytes, position) === bytes ? buffer : null;
  }

  #write(bytes: Buffer, position: number): void {
    try {
      // A disk that is nearly full takes a part.
      for (let done = 0; done < bytes.length; )
        done += writeSync(this.#file, bytes, done, bytes.length - done, position + done);
    } catch (error) {
      throw diskError(this.#path, error);
    }
  }

  #damaged(position: number): FormatError {
    return new FormatError(`${this.#path}: the record at byte ${position} is damaged`, {
      path: this.#path,
      offset: position,
      advice: "remove the file; the teacher's outputs are computed anew",
    });
  }

  #foreign(found: Buffer | null): FormatError {
    const [there, kind] = [headerOf(found), headerOf(this.#header)];
    const key = Object.keys(kind ?? {}).find((name) => there?.[name] !== kind?.[name]);
    const isDamaged = key === undefined || there?.[key] === undefined;
    const reason =
      there === null
        ? "it is not a cache of a teacher's outputs"
        : isDamaged
          ? 'its head is damaged'
          : `it holds outputs of another teacher: ${kWords[key] ?? key} is ${shown(there[key])}, not ${shown(kind?.[key])}`;
    return new FormatError(`${this.#path}: ${reason}`, {
      path: this.#path,
      advice: 'choose another file',
    });
  }
}

/** Names of keys of the header in messages, where the keys are no words. */
const kWords: Readonly<Record<string, string>> = {
  model: 'its base',
  products: 'the type of its products',
};

/** The header of a cache of any teacher, with the type of its products; null for another file. */
function headerOf(bytes: Buffer | null): Record<string, unknown> | null {
  try {
    const header: unknown = JSON.parse(bytes?.toString() ?? '');
    if (typeof header !== 'object' || header === null || !('temperature' in header)) return null;
    const found = header as Record<string, unknown>;
    return { ...found, products: found.products ?? found.dtype };
  } catch {
    return null;
  }
}

/** The selected rows of each sequence, in the order of the sequences. */
function rowsBySequence(
  sequences: readonly CachedSequence[],
  { rows }: SelectedRows,
): SequenceRows[] {
  const groups: SequenceRows[] = [];
  let next = 0;
  for (const { ids, positions, begin, end } of sequences) {
    const first = next;
    while (next < rows.length && (rows[next] as number) < end) next++;
    const places = rows.subarray(first, next).map((row) => row - begin);
    const hash = createHash('sha256')
      .update(`${ids.length} ${places.length} `)
      .update(bytesOf(ids))
      .update(bytesOf(places));
    if (positions?.some((position, t) => position !== t)) hash.update(bytesOf(positions));
    const digest = hash.digest('hex');
    groups.push({ key: digest.slice(0, 2 * kDigestBytes), rows: next - first });
  }
  return groups;
}

function bytesOf(values: Float32Array | Float64Array | Int32Array): Buffer {
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength);
}
