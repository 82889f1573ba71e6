/** Reads the int32 tensors of a (well-formed) safetensors file: an independent reader for golden ids, not the product's. */
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
