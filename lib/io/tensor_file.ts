/** What every weight file offers: its tensors by name, read one at a time, and the metadata beside them. */
import type { DType, Tensor } from '../tensor.ts';

/** A tensor as the header describes it; nothing of its data has been read. */
export interface TensorInfo {
  readonly name: string;
  /** In the file's own words: "F32", "BF16", "Q4_K". */
  readonly dtype: string;
  /** Row-major. */
  readonly shape: readonly number[];
  /** Size in the file. */
  readonly bytes: number;
}

/** How a tensor is read out of a file. */
export interface ReadOptions {
  /** Element type of the result; defaults to the file's own, and to f32 for quantised blocks. */
  dtype?: DType;
  /**
   * Look for NaN and infinities: the first one is a FormatError with its index, at the next sync. Default false.
   */
  checkFinite?: boolean;
  /** Where the tensor is made. Default: see {@link getDefaultDevice}. */
  device?: string;
}

/** A file of named tensors, mapped into memory. */
export interface TensorFile {
  readonly path: string;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** Enqueues the reading of one tensor. @throws FormatError if the file has no such tensor */
  read(name: string, options?: ReadOptions): Tensor;
  /** Gives the map back; tensors that alias it keep it alive. */
  close(): void;
}

export function infoMap(tensors: readonly TensorInfo[]): Map<string, TensorInfo> {
  return new Map(tensors.map((info) => [info.name, info]));
}
