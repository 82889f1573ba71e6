/** Reads the int32 tensors of a (well-formed) safetensors file with golden ids, independently of the product's reader. */
import { readFileSync } from 'node:fs';

export function readInt32Tensors(path: string): Map<string, Int32Array> {
  const bytes = readFileSync(path);
  const headerLength = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString('utf8', 8, 8 + headerLength)) as Record<
    string,
    { dtype: string; data_offsets: [number, number] }
  >;
  const tensors = new Map<string, Int32Array>();
  for (const [name, { dtype, data_offsets }] of Object.entries(header)) {
    if (dtype !== 'I32') continue;
    const [begin, end] = data_offsets;
    const data = bytes.subarray(8 + headerLength + begin, 8 + headerLength + end);
    tensors.set(name, new Int32Array(Uint8Array.from(data).buffer));
  }
  return tensors;
}

/** The f32 and f64 tensors of a (well-formed) safetensors file, widened. */
export function readFloatTensors(path: string): Map<string, Float64Array> {
  const bytes = readFileSync(path);
  const headerLength = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString('utf8', 8, 8 + headerLength)) as Record<
    string,
    { dtype: string; data_offsets: [number, number] }
  >;
  const tensors = new Map<string, Float64Array>();
  for (const [name, { dtype, data_offsets }] of Object.entries(header)) {
    if (dtype !== 'F32' && dtype !== 'F64') continue;
    const [begin, end] = data_offsets;
    const data = Uint8Array.from(bytes.subarray(8 + headerLength + begin, 8 + headerLength + end));
    const array = dtype === 'F32' ? new Float32Array(data.buffer) : new Float64Array(data.buffer);
    tensors.set(name, Float64Array.from(array));
  }
  return tensors;
}
