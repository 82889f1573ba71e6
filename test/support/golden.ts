/** Golden arrays from a (well-formed) safetensors file, by a reader that is independent of the product's. */
import { readFileSync } from 'node:fs';

type GoldenData = Float32Array | Float64Array | Int32Array | BigInt64Array | Uint8Array;

export interface GoldenArray {
  readonly shape: readonly number[];
  /** The values; bf16 is widened to f32. */
  readonly data: GoldenData;
}

export function goldenArrays(path: string): Map<string, GoldenArray> {
  const bytes = readFileSync(path);
  const begin = 8 + Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString('utf8', 8, begin)) as Record<
    string,
    { dtype: string; shape: number[]; data_offsets: [number, number] }
  >;
  const arrays = new Map<string, GoldenArray>();
  for (const [name, { dtype, shape, data_offsets }] of Object.entries(header)) {
    if (name === '__metadata__') continue;
    const data = Uint8Array.from(bytes.subarray(begin + data_offsets[0], begin + data_offsets[1]));
    arrays.set(name, { shape, data: decode(dtype, data.buffer) });
  }
  return arrays;
}

/** The array with a name. @throws where there is none */
export function goldenArray(arrays: Map<string, GoldenArray>, name: string): GoldenArray {
  const found = arrays.get(name);
  if (found === undefined) throw new Error(`the golden file has no "${name}"`);
  return found;
}

function decode(dtype: string, buffer: ArrayBuffer): GoldenData {
  switch (dtype) {
    case 'F32':
      return new Float32Array(buffer);
    case 'F64':
      return new Float64Array(buffer);
    case 'I32':
      return new Int32Array(buffer);
    case 'I64':
      return new BigInt64Array(buffer);
    case 'I8':
      return Float32Array.from(new Int8Array(buffer)); // as the others, a type that tensors have
    case 'U8':
    case 'BOOL':
      return new Uint8Array(buffer);
    case 'BF16':
      return new Float32Array(
        Uint32Array.from(new Uint16Array(buffer), (bits) => bits << 16).buffer,
      );
    default:
      throw new Error(`golden dtype ${dtype}`);
  }
}
