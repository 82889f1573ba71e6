/**
 * A cache of the teacher's outputs for the consistency term, kept from one epoch to the next: C numbers and an entropy for each
 * row that a loss uses (see `teacherSummary`). Entries are found by a digest of a sequence's ids and rows, so each epoch may
 * form other batches. They are kept in a file, because those of a large data set do not fit into memory. A file in a run's
 * folder remains when the run is interrupted, so that the resumed run uses the same numbers.
 *
 *     header   512 bytes: JSON and spaces; a file with a different header is overwritten
 *     record   digest 16, rows u32, crc32 u32 of what follows; mean rows x C f32 or f64, entropy rows f64
 */
import { createHash, randomUUID } from 'node:crypto';
import {
  closeSync,
  constants,
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
import { requireRegular } from '../io/regular_file.ts';
import type { SelectedRows } from '../losses/positions.ts';
import type { TeacherSummary } from '../ops/index.ts';
import { noGrad, tensor, unscoped } from '../tensor.ts';

/** Name of the cache file in the folder of a run. */
export const kTeacherCacheName = 'teacher_cache.bin';

/** Everything, apart from the rows themselves, that the cached numbers depend on. */
export interface TeacherCacheKind {
  readonly model: string;
  readonly dtype: string;
  readonly channels: number;
  readonly vocabulary: number;
  readonly temperature: number;
}

/** One sequence of a batch, with the data by which the cache finds it again in another batch. */
export interface CachedSequence {
  /** All ids that the teacher's rows of the sequence depend on. */
  readonly ids: Int32Array;
  /** The index of its first row in the batch; `end` is one past its last row. */
  readonly begin: number;
  readonly end: number;
}

/** The selected rows of one sequence. */
interface SequenceRows {
  readonly key: string;
  readonly rows: number;
}

const kHeaderBytes = 512;
const kDigestBytes = 16;
const kRecordHeaderBytes = kDigestBytes + 8;
const kEntropyBytes = 8;

export class TeacherCache {
  readonly #file: number;
  readonly #path: string;
  readonly #temporary: boolean;
  readonly #wide: boolean;
  readonly #channels: number;
  /** Position of each sequence's record in the file, by digest. */
  readonly #positions = new Map<string, number>();
  #end = kHeaderBytes;

  /**
   * Opens or creates the cache file.
   * @param path path of the file; null for a temporary file, which close() removes
   * @param device device to which summaries are read; default see getDefaultDevice
   */
  constructor(
    path: string | null,
    kind: TeacherCacheKind,
    private readonly device?: string,
  ) {
    this.#temporary = path === null;
    this.#path = path ?? join(tmpdir(), `balora-${randomUUID()}-${kTeacherCacheName}`);
    this.#wide = kind.dtype === 'f64';
    this.#channels = kind.channels;
    // The file of an earlier run is kept and extended; all reads and writes give a position.
    // Neither a temporary file nor that of a run is ever written through a link that somebody has put there.
    const create =
      constants.O_CREAT |
      constants.O_NOFOLLOW |
      constants.O_NONBLOCK |
      (this.#temporary ? constants.O_EXCL : 0);
    this.#file = openSync(this.#path, constants.O_RDWR | create, 0o600);
    requireRegular(this.#path, fstatSync(this.#file));
    const header = Buffer.alloc(kHeaderBytes, ' ');
    header.write(JSON.stringify({ format: 1, ...kind }));
    const found = this.#read(0, kHeaderBytes);
    if (found?.equals(header)) this.#scan();
    else writeSync(this.#file, header, 0, kHeaderBytes, 0);
    ftruncateSync(this.#file, this.#end);
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
    const width = this.#channels * this.#elementBytes;
    let row = 0;
    for (const { key, rows } of rowsBySequence(sequences, selected)) {
      const payload = Buffer.concat([
        mean.subarray(row * width, (row + rows) * width),
        entropy.subarray(row * kEntropyBytes, (row + rows) * kEntropyBytes),
      ]);
      row += rows;
      if (this.#payload({ key, rows }) === null) this.#append(key, rows, payload);
    }
  }

  close(): void {
    closeSync(this.#file);
    if (this.#temporary) rmSync(this.#path, { force: true });
  }

  get #elementBytes(): number {
    return this.#wide ? 8 : 4;
  }

  #numbers(count: number): Float32Array | Float64Array {
    return this.#wide ? new Float64Array(count) : new Float32Array(count);
  }

  #payloadBytes(rows: number): number {
    return rows * (this.#channels * this.#elementBytes + kEntropyBytes);
  }

  #append(key: string, rows: number, payload: Buffer): void {
    const header = Buffer.alloc(kRecordHeaderBytes);
    header.write(key, 'hex');
    header.writeUInt32LE(rows, kDigestBytes);
    header.writeUInt32LE(crc32(payload), kDigestBytes + 4);
    const record = Buffer.concat([header, payload]);
    writeSync(this.#file, record, 0, record.length, this.#end);
    this.#positions.set(key, this.#end);
    this.#end += record.length;
  }

  #payload({ key, rows }: SequenceRows): Buffer | null {
    if (rows === 0) return Buffer.alloc(0);
    const place = this.#positions.get(key);
    if (place === undefined) return null;
    const record = this.#read(place, kRecordHeaderBytes + this.#payloadBytes(rows));
    const payload = record?.subarray(kRecordHeaderBytes) ?? null;
    if (payload === null || record?.readUInt32LE(kDigestBytes + 4) !== crc32(payload)) return null;
    return payload;
  }

  /** Finds the complete records of an earlier process. */
  #scan(): void {
    const { size } = fstatSync(this.#file);
    for (;;) {
      const header = this.#read(this.#end, kRecordHeaderBytes);
      if (header === null) return;
      const next =
        this.#end + kRecordHeaderBytes + this.#payloadBytes(header.readUInt32LE(kDigestBytes));
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
}

/** The selected rows of each sequence, in the order of the sequences. */
function rowsBySequence(
  sequences: readonly CachedSequence[],
  { rows }: SelectedRows,
): SequenceRows[] {
  const groups: SequenceRows[] = [];
  let next = 0;
  for (const { ids, begin, end } of sequences) {
    const first = next;
    while (next < rows.length && (rows[next] as number) < end) next++;
    const places = rows.subarray(first, next).map((row) => row - begin);
    const digest = createHash('sha256')
      .update(`${ids.length} ${places.length} `)
      .update(bytesOf(ids))
      .update(bytesOf(places))
      .digest('hex');
    groups.push({ key: digest.slice(0, 2 * kDigestBytes), rows: next - first });
  }
  return groups;
}

function bytesOf(values: Float32Array | Float64Array | Int32Array): Buffer {
  return Buffer.from(values.buffer, values.byteOffset, values.byteLength);
}
