/**
 * A frozen base that is larger than memory: its weights are maps of files, of which a share stays in memory and the rest is read
 * ahead of the ops that use it and dropped behind them (native/io/offload.h). Results are those of a base in memory, bit for bit.
 */
import { constants, existsSync } from 'node:fs';
import { access, statfs } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { NativeError, UnsupportedError } from '../errors.ts';
import { native } from '../native.ts';
import { Tensor } from '../tensor.ts';
import { storageBytes } from './blocks.ts';
import { formatBytes } from './format_bytes.ts';

/** Figures of a base that is larger than memory, in bytes. */
export interface OffloadStats {
  /** All weights that are read ahead. */
  readonly totalBytes: number;
  /** The part of them that stays in memory. */
  readonly residentBytes: number;
  /** The part of the others that is read ahead or in use now, and the largest since `residentBytes` was set. */
  readonly presentBytes: number;
  readonly mostPresentBytes: number;
  /** Read so far, from the disk or from the system's cache of it. */
  readonly readBytes: number;
  /** Seconds that the engine has waited for bytes. */
  readonly waitedSeconds: number;
}

/** Layers whose weights are in memory at one time, beside those that stay: the one that is computed and the next. */
const kLayersAtOnce = 2;

/** The weights of a model that are read from the disk as they are used. */
export class OffloadedBase {
  readonly #offload: unknown;
  /** Bytes of each group of weights that are used together. */
  readonly #groups = new Map<string, number>();
  #largestBytes = 0;
  #residentBytes = 0;
  /** Whether ops read no more than some rows of a table: not where it is the head, too. */
  gathersTables = false;

  /** @param folder where a cache file may be made that has no name; see {@link offloadFolder} */
  constructor(readonly folder: string) {
    this.#offload = native.openOffload(folder);
  }

  /**
   * Offloads a frozen weight. Pages of a file are used where they are; other weights are written to the cache file. The tensor that is
   * given is disposed of.
   * @param name the weight's path in the model
   * @param isTable whether ids select rows of it
   * @returns the weight, of the same values
   * @throws NativeError (ERR_DISK_FULL), UnsupportedError for a device's memory
   */
  add(weight: Tensor, { name, isTable }: { name: string; isTable: boolean }): Tensor {
    const gathered = isTable && this.gathersTables;
    const offloaded = new Tensor(native.offloadWeight(this.#offload, weight.handle, gathered));
    weight.dispose();
    if (!gathered) {
      const bytes = storageBytes(offloaded);
      // The first number of a path is that of the layer; a further one may be that of an expert in it.
      const group = /^(.*?\.\d+)\./.exec(name)?.[1] ?? name;
      this.#groups.set(group, (this.#groups.get(group) ?? 0) + bytes);
      this.#largestBytes = Math.max(this.#largestBytes, bytes);
    }
    return offloaded;
  }

  /** Bytes beside the share that are in memory at one time: two layers, or the largest weight outside of them. */
  get aheadBytes(): number {
    const largest = Array.from(this.#groups, ([group, bytes]) =>
      /\.\d+$/.test(group) ? kLayersAtOnce * bytes : bytes,
    );
    return Math.max(0, ...largest);
  }

  /** Bytes of the largest weight. */
  get largestBytes(): number {
    return this.#largestBytes;
  }

  /** Bytes of the weights that are to stay in memory, at most. Weights that are not among them any more are dropped. */
  get residentBytes(): number {
    return this.#residentBytes;
  }

  set residentBytes(bytes: number) {
    this.#residentBytes = Math.max(0, Math.floor(bytes));
    native.setOffloadLimits(this.#offload, this.#residentBytes, this.aheadBytes);
  }

  stats(): OffloadStats {
    return native.offloadStats(this.#offload) as OffloadStats;
  }

  /** Ends the reading ahead. Weights that are still in use are then read by the ops themselves. */
  close(): void {
    native.closeOffload(this.#offload);
  }
}

/** The folder of the cache file where none is named: that of TMPDIR, or /var/tmp, which unlike /tmp is on a disk. */
export function offloadFolder(): string {
  const { TMPDIR } = process.env;
  if (TMPDIR !== undefined && TMPDIR !== '') return TMPDIR;
  return existsSync('/var/tmp') ? '/var/tmp' : tmpdir();
}

/** Numbers that Linux gives file systems whose files are in memory: tmpfs, ramfs. */
const kMemoryTypes: readonly number[] = [0x01021994, 0x858458f6];
const kAdvice = 'name another folder with offloadFolder (--offload-folder)';

/**
 * Checks that a folder can have a cache file of so many bytes, before anything is written.
 * @throws NativeError (ERR_IO for a folder that is not there or not writable, ERR_DISK_FULL), UnsupportedError for a folder in memory
 */
export async function requireDiskSpace(folder: string, bytes: number): Promise<void> {
  if (bytes === 0) return;
  const stats = await access(folder, constants.W_OK | constants.X_OK)
    .then(() => statfs(folder))
    .catch((cause: Error) => {
      throw new NativeError(`${folder}: takes no cache of an offloaded base: ${cause.message}`, {
        ...{ code: 'ERR_IO', path: folder, cause },
        advice: kAdvice,
      });
    });
  if (process.platform === 'linux' && kMemoryTypes.includes(stats.type)) {
    throw new UnsupportedError(
      `${folder}: is in memory (tmpfs), where the cache of an offloaded base saves none; ${kAdvice}`,
    );
  }
  const free = stats.bavail * stats.bsize;
  if (bytes <= free) return;
  throw new NativeError(
    `${folder}: the cache of an offloaded base takes ${formatBytes(bytes)}, and ${formatBytes(free)} are free`,
    { ...{ code: 'ERR_DISK_FULL', path: folder }, advice: kAdvice },
  );
}
