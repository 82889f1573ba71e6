/** The interface of every weight file: its tensors by name, read one at a time, and the metadata beside them. */
import { synchronize } from '../runtime.ts';
import { type DType, disposeOnError, type Tensor } from '../tensor.ts';

/** A tensor as the header describes it; nothing of its data has been read. */
export interface TensorInfo {
  readonly name: string;
  /** Element type by the file's own name: "F32", "BF16", "Q4_K". */
  readonly dtype: string;
  /** Extents, row-major. */
  readonly shape: readonly number[];
  /** Size in the file, in bytes. */
  readonly bytes: number;
}

/** Options for reading a tensor from a file. */
export interface ReadOptions {
  /** Element type of the result; defaults to the file's own, and to f32 for quantised blocks. */
  dtype?: DType;
  /** Whether to check for NaN and infinities: the first one is a FormatError with its index, at the next sync. Default false. */
  checkFinite?: boolean;
  /** Device of the tensor. Default: see `getDefaultDevice()`. */
  device?: string;
}

/** Size, time of modification and inode of a file. */
export interface FileIdentity {
  /** In bytes. */
  readonly size: bigint;
  /** In nanoseconds since 1970. */
  readonly mtimeNs: bigint;
  readonly ino: bigint;
}

/**
 * A file of named tensors, mapped into memory. What is computed from the bytes of a file that is written to or shortened meanwhile
 * is an error at the next sync (`ERR_FILE_CHANGED`); a file that is replaced by rename stays what it was.
 */
export interface TensorFile {
  readonly path: string;
  /** The file as it was when it was opened. */
  readonly identity: FileIdentity;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** Enqueues the reading of one tensor. @throws FormatError if the file has no such tensor */
  read(name: string, options?: ReadOptions): Tensor;
  /** Unmaps the file; tensors that alias the mapping keep it alive. */
  close(): void;
}

/** Descriptions of tensors by their names. */
export function infoMap(tensors: readonly TensorInfo[]): Map<string, TensorInfo> {
  return new Map(tensors.map((info) => [info.name, info]));
}

/** Reads all tensors of a file, which own their memory. @throws as their reading does, and where the file has changed meanwhile */
export async function readAll(
  file: TensorFile,
  options: ReadOptions = {},
): Promise<Record<string, Tensor>> {
  // From entries, since assigning to the key __proto__ would add none.
  const tensors = Object.fromEntries(
    Array.from(file.tensors.keys(), (name) => [name, file.read(name, options)]),
  );
  await disposeOnError(Object.values(tensors), () => synchronize());
  return tensors;
}

/**
 * Fills a file with tensors and commits it; it is abandoned where filling it fails.
 * @returns the result of `fill`
 */
export async function written<T>(
  writer: { commit(): Promise<void>; abandon(): Promise<void> },
  fill: () => T | Promise<T>,
): Promise<T> {
  let result: T;
  try {
    result = await fill();
  } catch (error) {
    await writer.abandon();
    throw error;
  }
  await writer.commit();
  return result;
}

/** Whether two identities are those of one file that has not changed. */
export function isSameFile(a: FileIdentity, b: FileIdentity): boolean {
  return a.size === b.size && a.mtimeNs === b.mtimeNs && a.ino === b.ino;
}
