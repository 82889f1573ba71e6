/** Writes a GGUF file again with its matrices in bf16 and everything else in f32, which is how llama.cpp is given the same weights. */
import { type FileHandle, open } from 'node:fs/promises';
import { GgufFile, type GgufMetadataValue } from '../../lib/io/index.ts';

/** The format's numbers for types of metadata, by their names. */
const kTypes: Readonly<Record<string, number>> = {
  ...{ UINT8: 0, INT8: 1, UINT16: 2, INT16: 3, UINT32: 4, INT32: 5, FLOAT32: 6, BOOL: 7 },
  ...{ STRING: 8, ARRAY: 9, UINT64: 10, INT64: 11, FLOAT64: 12 },
};
/** ggml's numbers for the types of tensors, and llama.cpp's for a file of bf16. */
const [kF32, kBf16, kFileOfBf16] = [0, 30, 32];
const kAlignment = 32;

/** Writes `from`, with values rounded to bf16, as a new file. */
export async function writeBf16Gguf(from: string, to: string): Promise<void> {
  using file = GgufFile.open(from);
  const tensors = [...file.tensors].map(([name, { shape }]) => ({
    ...{ name, shape, type: shape.length > 1 ? kBf16 : kF32 },
    bytes: shape.reduce((product, extent) => product * extent, shape.length > 1 ? 2 : 4),
  }));
  const metadata = [...file.metadata].map(([key, value]) => {
    const type = file.metadataTypes.get(key) as string;
    const own = key === 'general.file_type' ? kFileOfBf16 : value;
    return Buffer.concat([text(key), typed(type, own)]);
  });
  let offset = 0;
  const infos = tensors.map(({ name, shape, type, bytes }) => {
    const at = offset;
    offset += padded(bytes);
    const extents = [...shape].reverse().map(u64);
    return Buffer.concat([text(name), u32(shape.length), ...extents, u32(type), u64(at)]);
  });
  const head = Buffer.concat([
    ...[Buffer.from('GGUF'), u32(3), u64(tensors.length), u64(metadata.length)],
    ...metadata,
    ...infos,
  ]);
  await using output = await open(to, 'wx');
  await write(output, head);
  for (const { name, type } of tensors) {
    using tensor = file.read(name, { dtype: type === kBf16 ? 'bf16' : 'f32' });
    const values = (await tensor.data()) as Float32Array;
    await write(output, type === kBf16 ? upperHalves(values) : bytesOf(values));
  }
}

/** Appends bytes, and zeros up to the alignment. */
async function write(output: FileHandle, bytes: Uint8Array): Promise<void> {
  await output.appendFile(bytes);
  await output.appendFile(new Uint8Array(padded(bytes.byteLength) - bytes.byteLength));
}

/** The bf16 bits of f32 numbers that are bf16 values. */
function upperHalves(values: Float32Array): Uint8Array {
  const words = new Uint16Array(values.buffer, values.byteOffset, 2 * values.length);
  return bytesOf(Uint16Array.from(values, (_, i) => words[2 * i + 1] as number));
}

function typed(type: string, value: GgufMetadataValue): Buffer {
  const [kind = '', item = ''] = type.split(' ');
  if (kind !== 'ARRAY') return Buffer.concat([u32(kTypes[kind] as number), scalar(kind, value)]);
  const items = value as ArrayLike<GgufMetadataValue>;
  const head = [u32(kTypes.ARRAY as number), u32(kTypes[item] as number), u64(items.length)];
  return Buffer.concat([...head, ...Array.from(items, (each) => scalar(item, each))]);
}

function scalar(type: string, value: GgufMetadataValue): Buffer {
  if (type === 'STRING') return text(value as string);
  const bytes = Buffer.alloc(8);
  const number = Number(value);
  switch (type) {
    case 'UINT8':
    case 'BOOL':
      return bytes.subarray(0, bytes.writeUInt8(number));
    case 'INT8':
      return bytes.subarray(0, bytes.writeInt8(number));
    case 'UINT16':
      return bytes.subarray(0, bytes.writeUInt16LE(number));
    case 'INT16':
      return bytes.subarray(0, bytes.writeInt16LE(number));
    case 'UINT32':
      return bytes.subarray(0, bytes.writeUInt32LE(number));
    case 'INT32':
      return bytes.subarray(0, bytes.writeInt32LE(number));
    case 'FLOAT32':
      return bytes.subarray(0, bytes.writeFloatLE(number));
    case 'FLOAT64':
      return bytes.subarray(0, bytes.writeDoubleLE(number));
    case 'UINT64':
      return bytes.subarray(0, bytes.writeBigUInt64LE(BigInt(value as bigint)));
    default:
      return bytes.subarray(0, bytes.writeBigInt64LE(BigInt(value as bigint)));
  }
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value);
  return Buffer.concat([u64(bytes.length), bytes]);
}

function u32(value: number): Buffer {
  return scalar('UINT32', value);
}

function u64(value: number): Buffer {
  return scalar('UINT64', value);
}

function bytesOf({ buffer, byteOffset, byteLength }: Float32Array | Uint16Array): Uint8Array {
  return new Uint8Array(buffer, byteOffset, byteLength);
}

function padded(bytes: number): number {
  return Math.ceil(bytes / kAlignment) * kAlignment;
}
