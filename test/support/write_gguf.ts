/** Writes GGUF files for tests: F32 tensors, bytes of other types, and the types of metadata that models need. */
import { writeFileSync } from 'node:fs';

export interface GgufTensor {
  readonly name: string;
  /** Shape in row-major order, as in numpy; GGUF lists it in reverse. */
  readonly shape: readonly number[];
  readonly data: Float32Array | Uint8Array;
  /** ggml's number for the type of `data`. Default 0: F32. */
  readonly type?: number;
}

/** A value of metadata: integers are written as u32, lists of them as i32. */
export type GgufValue =
  | number
  | boolean
  | { f32: number }
  | string
  | readonly string[]
  | readonly number[]
  | Float32Array
  | Uint8Array;

const kAlignment = 32;
const kTypes = { u8: 0, u32: 4, i32: 5, f32: 6, bool: 7, string: 8, array: 9 };

export function writeGguf(
  path: string,
  metadata: Readonly<Record<string, GgufValue>>,
  tensors: readonly GgufTensor[],
): void {
  let offset = 0;
  const infos = tensors.map(({ name, shape, data, type = 0 }) => {
    const at = offset;
    offset += padded(data.byteLength);
    return Buffer.concat([
      text(name),
      u32(shape.length),
      ...[...shape].reverse().map(u64),
      u32(type),
      u64(at),
    ]);
  });
  const head = Buffer.concat([
    Buffer.from('GGUF'),
    u32(3),
    u64(tensors.length),
    u64(Object.keys(metadata).length),
    ...Object.entries(metadata).flatMap(([key, value]) => [text(key), typed(value)]),
    ...infos,
  ]);
  const parts = tensors.map(({ data }) =>
    filled(Buffer.from(data.buffer, data.byteOffset, data.byteLength)),
  );
  writeFileSync(path, Buffer.concat([filled(head), ...parts]));
}

function typed(value: GgufValue): Buffer {
  if (typeof value === 'string') return Buffer.concat([u32(kTypes.string), text(value)]);
  if (typeof value === 'boolean') {
    return Buffer.concat([u32(kTypes.bool), Buffer.from([value ? 1 : 0])]);
  }
  if (typeof value === 'number') return Buffer.concat([u32(kTypes.u32), u32(value)]);
  if (value instanceof Float32Array || value instanceof Uint8Array) {
    const type = value instanceof Uint8Array ? kTypes.u8 : kTypes.f32;
    const bytes = Buffer.from(value.buffer, value.byteOffset, value.byteLength);
    return Buffer.concat([u32(kTypes.array), u32(type), u64(value.length), bytes]);
  }
  if ('f32' in value) return Buffer.concat([u32(kTypes.f32), f32(value.f32)]);
  const strings = value.every((item) => typeof item === 'string');
  const items = value.map((item) => (typeof item === 'string' ? text(item) : u32(item)));
  const type = strings ? kTypes.string : kTypes.i32;
  return Buffer.concat([u32(kTypes.array), u32(type), u64(value.length), ...items]);
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value);
  return Buffer.concat([u64(bytes.length), bytes]);
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function f32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeFloatLE(value);
  return bytes;
}

function padded(bytes: number): number {
  return Math.ceil(bytes / kAlignment) * kAlignment;
}

function filled(bytes: Buffer): Buffer {
  return Buffer.concat([bytes, Buffer.alloc(padded(bytes.length) - bytes.length)]);
}
