/**
 * GGUF files (versions 2 and 3, little-endian): metadata of every type, and tensors decoded from F32 and 14 block types
 * on the engine's stream. Every violation of the format is a FormatError with the path, the byte offset and the field.
 */
import { withDevice } from '../device.ts';
import { ArgumentError } from '../errors.ts';
import { type DType, native } from '../native.ts';
import { checkKeys } from '../options/call.ts';
import { noGrad, Tensor } from '../tensor.ts';
import {
  type FileIdentity,
  infoMap,
  type ReadOptions,
  type TensorFile,
  type TensorInfo,
} from './tensor_file.ts';

/**
 * A value of GGUF metadata. Integers beyond 2^53 are BigInts. An array of numbers is a typed array of the file's type, and one of
 * booleans a Uint8Array of 0 and 1; arrays of strings and of arrays are lists.
 */
export type GgufMetadataValue =
  | number
  | bigint
  | boolean
  | string
  | GgufNumbers
  | readonly GgufMetadataValue[];

/** An array of numbers in GGUF metadata. */
export type GgufNumbers =
  | Uint8Array
  | Int8Array
  | Uint16Array
  | Int16Array
  | Uint32Array
  | Int32Array
  | Float32Array
  | Float64Array
  | BigUint64Array
  | BigInt64Array;

/** Options of {@link GgufFile.read}. */
export interface GgufReadOptions extends ReadOptions {
  /**
   * Number of heads whose rows are stored in the llama architecture's interleaved order (attn_q, attn_k): they are reordered to
   * Hugging Face's order of halves. Default 0: rows stay as stored.
   */
  permutedHeads?: number;
}

/** An open GGUF file. Made by {@link GgufFile.open}. */
export class GgufFile implements TensorFile {
  readonly identity: FileIdentity;
  readonly version: number;
  readonly alignment: number;
  /** The metadata by key. A value is read from the file when it is asked for, and so before the file is closed. */
  readonly metadata: ReadonlyMap<string, GgufMetadataValue>;
  /** The format's names for the types of the metadata: "UINT32", "ARRAY STRING". */
  readonly metadataTypes: ReadonlyMap<string, string>;
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  readonly #file: unknown;

  private constructor(readonly path: string) {
    this.#file = native.openGguf(path);
    const header = native.ggufHeader(this.#file) as {
      identity: FileIdentity;
      version: number;
      alignment: number;
      metadata: [string, string][];
      tensors: TensorInfo[];
    };
    this.identity = header.identity;
    this.version = header.version;
    this.alignment = header.alignment;
    this.metadataTypes = new Map(header.metadata);
    this.metadata = new StoredMetadata(this.#file, [...this.metadataTypes.keys()]);
    this.tensors = infoMap(header.tensors);
  }

  /**
   * Maps a file and checks its header.
   * @throws FormatError for a file that cannot be opened or breaks the format, UnsupportedError for version 1 and
   *   big-endian files
   */
  static open(path: string): GgufFile {
    return new GgufFile(path);
  }

  /**
   * Enqueues the decoding of one tensor. Values are f32, computed in the reference's order of operations, and rounded once for
   * other dtypes.
   * @throws FormatError if the file has no such tensor, UnsupportedError for a type that is not decoded
   */
  read(name: string, options: GgufReadOptions = {}): Tensor {
    checkKeys('read', options, 'dtype checkFinite permutedHeads device');
    const { dtype = 'f32', checkFinite = false, permutedHeads = 0, device } = options;
    const decoded: DType = dtype === 'bf16' ? 'bf16' : 'f32';
    const tensor = withDevice(
      device,
      () => new Tensor(native.readGguf(this.#file, name, decoded, permutedHeads, checkFinite)),
    );
    if (decoded === dtype) return tensor;
    const converted = noGrad(() => tensor.to(dtype));
    tensor.dispose();
    return converted;
  }

  /**
   * Enqueues the reading of one tensor that stays in the blocks of the file, and is decoded to `dtype` (default f32) where it is used:
   * pages of the file, or a copy of its rows where `permutedHeads` is not 0 or the device has memory of its own. It is frozen.
   * @throws as `read` does
   */
  readBlocks(name: string, options: GgufReadOptions = {}): Tensor {
    checkKeys('readBlocks', options, 'dtype checkFinite permutedHeads device');
    const { dtype = 'f32', checkFinite = false, permutedHeads = 0, device } = options;
    return withDevice(
      device,
      () => new Tensor(native.readGgufBlocks(this.#file, name, dtype, permutedHeads, checkFinite)),
    );
  }

  /**
   * The bytes of an entry of the metadata as they stand in the file: key, type and value. A text in it need not be UTF-8.
   * @throws ArgumentError if the file has no such key
   */
  entry(key: string): Uint8Array {
    const index = [...this.metadataTypes.keys()].indexOf(key);
    if (index < 0) throw new ArgumentError(`${this.path}: the metadata have no ${key}`);
    return native.ggufEntry(this.#file, index) as Uint8Array;
  }

  /** Enqueues the copying of one tensor's bytes to a file that is being written: use `GgufWriter.copy`. @internal */
  copyTo(writer: unknown, name: string, source: string): void {
    native.copyGguf(writer, name, this.#file, source);
  }

  close(): void {
    native.closeGguf(this.#file);
  }

  /** Closes the file at the end of a `using` block. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/** The metadata of an open file. A value is read when it is asked for, since one alone may be as large as the file. */
class StoredMetadata implements ReadonlyMap<string, GgufMetadataValue> {
  readonly #indices: ReadonlyMap<string, number>;
  readonly #values = new Map<string, GgufMetadataValue>();

  constructor(
    private readonly file: unknown,
    keys: readonly string[],
  ) {
    this.#indices = new Map(keys.map((key, index) => [key, index]));
  }

  get size(): number {
    return this.#indices.size;
  }

  has(key: string): boolean {
    return this.#indices.has(key);
  }

  get(key: string): GgufMetadataValue | undefined {
    const index = this.#indices.get(key);
    if (index === undefined) return undefined;
    let value = this.#values.get(key);
    if (value === undefined) {
      value = native.ggufValue(this.file, index) as GgufMetadataValue;
      this.#values.set(key, value);
    }
    return value;
  }

  keys(): MapIterator<string> {
    return this.#indices.keys();
  }

  values(): MapIterator<GgufMetadataValue> {
    return this.#all().values();
  }

  entries(): MapIterator<[string, GgufMetadataValue]> {
    return this.#all().entries();
  }

  [Symbol.iterator](): MapIterator<[string, GgufMetadataValue]> {
    return this.entries();
  }

  forEach(
    visit: (
      value: GgufMetadataValue,
      key: string,
      map: ReadonlyMap<string, GgufMetadataValue>,
    ) => void,
  ): void {
    for (const [key, value] of this) visit(value, key, this);
  }

  #all(): Map<string, GgufMetadataValue> {
    return new Map(Array.from(this.keys(), (key) => [key, this.get(key) as GgufMetadataValue]));
  }
}
