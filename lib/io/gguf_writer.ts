/** Writing of GGUF files (version 3): metadata, and tensors that are encoded one at a time on the engine's stream. */
import { fileError } from '../errors.ts';
import { native } from '../native.ts';
import { Tensor } from '../tensor.ts';
import type { GgufFile } from './gguf.ts';

/** A value of metadata with its type. */
export type GgufTypedValue =
  | { readonly type: 'UINT32' | 'FLOAT32'; readonly value: number }
  | { readonly type: 'BOOL'; readonly value: boolean }
  | { readonly type: 'STRING'; readonly value: string }
  | { readonly type: 'ARRAY STRING'; readonly value: readonly string[] }
  | { readonly type: 'ARRAY INT32' | 'ARRAY FLOAT32'; readonly value: ArrayLike<number> };

/** Entries of metadata by key, in the order of the file: values, and the bytes of {@link GgufFile.entry}. */
export type GgufEntries = ReadonlyMap<string, GgufTypedValue | Uint8Array>;

/** The type and shape of a tensor in a file to be written. */
export interface GgufTensorSpec {
  /** ggml's name for the type: F32, F16, BF16, Q8_0, Q5_0, Q5_1, Q4_K, Q5_K or Q6_K, or that of a tensor that is copied. */
  readonly type: string;
  /** Extents, row-major. */
  readonly shape: readonly number[];
}

/** Numbers of general.file_type (llama.cpp's llama_ftype). */
export const GGUF_FILE_TYPES = { F32: 0, F16: 1, Q8_0: 7, Q4_K_M: 15, BF16: 32 } as const;

const kDefaultAlignment = 32;

/**
 * Writes a GGUF file tensor by tensor, in any order. The file appears under its name at {@link commit}, complete; until then, and
 * after a failure, there is only a temporary file that {@link abandon} removes.
 */
export class GgufWriter {
  readonly #writer: unknown;

  /** @throws NativeError with sizes when the disk cannot hold the file, ArgumentError for a shape that a type's blocks do not fit */
  constructor(
    readonly path: string,
    metadata: GgufEntries,
    tensors: ReadonlyMap<string, GgufTensorSpec>,
  ) {
    const rows = [...tensors.values()];
    this.#writer = native.createGguf(
      path,
      entryBytes(metadata),
      metadata.size,
      alignmentOf(metadata, path),
      [...tensors.keys()],
      rows.map(({ type }) => type),
      rows.map(({ shape }) => shape),
    );
  }

  /**
   * Enqueues one tensor, whose values are encoded as the announced type.
   * @param tensor f32, as many values as were announced
   * @returns the sum of the squared differences between the values and those in the file: one element, f64
   * @throws UnsupportedError for a type that is not encoded; at commit, ArgumentError for a value that the type does not have
   */
  write(name: string, tensor: Tensor): Tensor {
    return new Tensor(native.writeGguf(this.#writer, name, tensor.handle));
  }

  /** Enqueues the bytes of a tensor of another file, which has the announced type. */
  copy(name: string, file: GgufFile, source = name): void {
    file.copyTo(this.#writer, name, source);
  }

  /** Resolves when the file is on the disk under its name. @throws NativeError, and then leaves nothing behind */
  async commit(): Promise<void> {
    try {
      await native.commitGguf(this.#writer);
    } catch (error) {
      await this.abandon();
      throw error;
    }
  }

  /** Removes what was written, and resolves when it is gone. Idempotent; after commit() it does nothing. */
  abandon(): Promise<void> {
    return native.abandonGguf(this.#writer);
  }
}

/** The numbers of the types of metadata (ggml/docs/gguf.md). */
const kTypes = { UINT32: 4, INT32: 5, FLOAT32: 6, BOOL: 7, STRING: 8, ARRAY: 9 };

function entryBytes(metadata: GgufEntries): Uint8Array {
  return Buffer.concat(
    Array.from(metadata, ([key, value]) =>
      value instanceof Uint8Array ? value : Buffer.concat([text(key), ...typed(value)]),
    ),
  );
}

function typed(entry: GgufTypedValue): Buffer[] {
  switch (entry.type) {
    case 'UINT32':
      return [u32(kTypes.UINT32), u32(entry.value)];
    case 'FLOAT32':
      return [u32(kTypes.FLOAT32), bytesOf(Float32Array.of(entry.value))];
    case 'BOOL':
      return [u32(kTypes.BOOL), Buffer.of(entry.value ? 1 : 0)];
    case 'STRING':
      return [u32(kTypes.STRING), text(entry.value)];
    case 'ARRAY STRING':
      return [...array(kTypes.STRING, entry.value), ...entry.value.map(text)];
    case 'ARRAY INT32':
      return [...array(kTypes.INT32, entry.value), bytesOf(Int32Array.from(entry.value))];
    case 'ARRAY FLOAT32':
      return [...array(kTypes.FLOAT32, entry.value), bytesOf(Float32Array.from(entry.value))];
  }
}

function array(type: number, { length }: { readonly length: number }): Buffer[] {
  return [u32(kTypes.ARRAY), u32(type), u64(length)];
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value);
  return Buffer.concat([u64(bytes.length), bytes]);
}

const u32 = (value: number): Buffer => bytesOf(Uint32Array.of(value));
const u64 = (value: number): Buffer => bytesOf(BigUint64Array.of(BigInt(value)));

/** The bytes of numbers, little-endian as all platforms of the engine are. */
function bytesOf({ buffer, byteOffset, byteLength }: NodeJS.ArrayBufferView): Buffer {
  return Buffer.from(buffer as ArrayBuffer, byteOffset, byteLength);
}

function alignmentOf(metadata: GgufEntries, path: string): number {
  const entry = metadata.get('general.alignment');
  if (entry === undefined) return kDefaultAlignment;
  if (!(entry instanceof Uint8Array)) return Number(entry.value);
  // A UINT32, as the reader has checked: the last four bytes of the entry.
  if (entry.length < 4) throw fileError(path, 'general.alignment is damaged');
  return new DataView(entry.buffer, entry.byteOffset + entry.length - 4, 4).getUint32(0, true);
}
