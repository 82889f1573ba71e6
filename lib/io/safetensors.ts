/**
 * safetensors files: opened as a memory map whose tensors are read or aliased one at a time, and written atomically.
 * The format is checked strictly; every violation is a FormatError with the path, the byte offset and the field.
 */
import { withDevice } from '../device.ts';
import { ArgumentError, UnsupportedError } from '../errors.ts';
import { type DType, native } from '../native.ts';
import { checkKeys } from '../options/call.ts';
import { Tensor } from '../tensor.ts';
import {
  type FileIdentity,
  infoMap,
  type ReadOptions,
  readAll,
  type TensorFile,
  type TensorInfo,
  written,
} from './tensor_file.ts';

const kDTypes: Readonly<Record<string, DType>> = {
  F32: 'f32',
  F64: 'f64',
  F16: 'f16',
  BF16: 'bf16',
  I32: 'i32',
  I64: 'i64',
  U8: 'u8',
};

/** Options of {@link SafetensorsFile.read}. */
export interface SafetensorsReadOptions extends ReadOptions {
  /**
   * Whether the tensor may alias the file's pages where dtype and alignment allow: no copy, and frozen. Without it the tensor owns
   * its memory. On the CPU only: on other devices the tensor is always copied. Default false.
   */
  share?: boolean;
}

/** An open safetensors file. Made by {@link SafetensorsFile.open}. */
export class SafetensorsFile implements TensorFile {
  readonly identity: FileIdentity;
  /** The file's `__metadata__`, strings only. */
  readonly metadata: ReadonlyMap<string, string>;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly #file: unknown;

  private constructor(readonly path: string) {
    this.#file = native.openSafetensors(path);
    const header = native.safetensorsHeader(this.#file) as {
      identity: FileIdentity;
      metadata: [string, string][];
      tensors: TensorInfo[];
    };
    this.identity = header.identity;
    this.metadata = new Map(header.metadata);
    this.tensors = infoMap(header.tensors);
  }

  /**
   * Maps a file and checks its header.
   * @throws FormatError for a file that cannot be opened or breaks the format
   */
  static open(path: string): SafetensorsFile {
    return new SafetensorsFile(path);
  }

  /**
   * Enqueues the reading of one tensor, converted between float types where asked.
   * @throws FormatError if the file has no such tensor, UnsupportedError for a dtype without conversion
   */
  read(name: string, options: SafetensorsReadOptions = {}): Tensor {
    checkKeys('read', options, 'dtype checkFinite share device');
    const { share = false, checkFinite = false, device } = options;
    const info = this.tensors.get(name);
    const stored = info?.dtype ?? 'F32';
    const dtype = options.dtype ?? (Object.hasOwn(kDTypes, stored) ? kDTypes[stored] : undefined);
    if (dtype === undefined) {
      throw new UnsupportedError(
        `${this.path}: ${name} has the dtype ${info?.dtype}, which is not supported; convert it to F32, F16 or BF16`,
      );
    }
    return withDevice(
      device,
      () => new Tensor(native.readSafetensors(this.#file, name, dtype, share, checkFinite)),
    );
  }

  /**
   * The bytes of a tensor of any dtype as they stand in the file, (n) u8 on the default device: on the CPU frozen pages of the file.
   * @throws FormatError if the file has no such tensor
   */
  readBytes(name: string): Tensor {
    return new Tensor(native.readSafetensorsBytes(this.#file, name));
  }

  close(): void {
    native.closeSafetensors(this.#file);
  }

  /** Closes the file at the end of a `using` block. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/** Loads all tensors of a file, which own their memory, and its metadata. */
export async function loadSafetensors(
  path: string,
  options: ReadOptions = {},
): Promise<{ tensors: Record<string, Tensor>; metadata: Record<string, string> }> {
  checkKeys('loadSafetensors', options, 'dtype checkFinite device');
  const file = SafetensorsFile.open(path);
  try {
    const tensors = await readAll(file, options);
    return { tensors, metadata: Object.fromEntries(file.metadata) };
  } finally {
    file.close();
  }
}

/** Reads model.safetensors.index.json: the file name of every tensor in a sharded checkpoint. */
export function readSafetensorsIndex(path: string): Map<string, string> {
  return new Map(native.safetensorsIndex(path) as [string, string][]);
}

/** The dtype and shape of a tensor in a file to be written. */
export interface TensorSpec {
  readonly dtype: DType;
  readonly shape: readonly number[];
}

/**
 * Writes a safetensors file tensor by tensor, in any order. The file appears under its name at {@link commit}, complete; until
 * then, and after a failure, there is only a temporary file that {@link abandon} removes.
 */
export class SafetensorsWriter {
  readonly #writer: unknown;

  /** @throws NativeError with sizes when the disk cannot hold the file */
  constructor(
    readonly path: string,
    specs: Readonly<Record<string, TensorSpec>>,
    metadata: Readonly<Record<string, string>> = {},
  ) {
    const rows = Object.values(specs);
    this.#writer = native.createSafetensors(
      path,
      Object.keys(specs),
      rows.map(({ dtype }) => dtype),
      rows.map(({ shape }) => shape),
      Object.keys(metadata),
      Object.values(metadata),
    );
  }

  /** Enqueues one tensor; its dtype and shape must be those announced. */
  write(name: string, tensor: Tensor): void {
    native.writeSafetensors(this.#writer, name, tensor.handle);
  }

  /** Resolves when the file is on the disk under its name. @throws NativeError, and then leaves nothing behind */
  async commit(): Promise<void> {
    try {
      await native.commitSafetensors(this.#writer);
    } catch (error) {
      await this.abandon();
      throw error;
    }
  }

  /** Removes what was written, and resolves when it is gone. Idempotent; after commit() it does nothing. */
  abandon(): Promise<void> {
    return native.abandonSafetensors(this.#writer);
  }
}

/**
 * Writes tensors to a file that appears whole or not at all.
 * @throws NativeError with sizes when the disk is full, ArgumentError for names the format reserves
 */
export async function saveSafetensors(
  path: string,
  tensors: Readonly<Record<string, Tensor>>,
  metadata: Readonly<Record<string, string>> = {},
): Promise<void> {
  if (path === '')
    throw new ArgumentError('saveSafetensors: the path is empty; give the name of a file');
  const writer = new SafetensorsWriter(path, tensors, metadata);
  await written(writer, () => {
    for (const [name, tensor] of Object.entries(tensors)) writer.write(name, tensor);
  });
}
