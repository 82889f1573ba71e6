/**
 * Weights in blocks of 4-bit or int8 codes, as bitsandbytes makes and stores them. A weight in blocks is a frozen tensor that keeps
 * its codes in memory; linears, embeddings and heads decode them where they use them, and `to()` makes its values, or copies the codes
 * to another device.
 */
import { withDevice } from '../device.ts';
import { type DType, native } from '../native.ts';
import { noGrad, scope, Tensor } from '../tensor.ts';

/** The types of 4-bit codes that bitsandbytes has. */
export type FourBitType = 'NF4' | 'FP4';

/** The parts of a 4-bit weight, all on one device, which is that of the weight. */
export interface FourBitParts {
  readonly type: FourBitType;
  /** Elements that share an absmax; blocks run over the row-major weight, and the last may be short. */
  readonly blockSize: number;
  /** Values of the 16 codes. Default: the type's own. */
  readonly code?: readonly number[];
  /** Codes, two to a byte, the first in the high half. */
  readonly packed: Tensor; // (n / 2, rounded up) u8
  /** The factor of each block; with `nested` its code in the map. */
  readonly absmax: Tensor; // (blocks) f32, or u8
  /** absmax = map[code] * absmax of the nested block + offset (double quantisation). */
  readonly nested?: NestedParts | null;
}

/** The parts from which the factors of a double quantised weight follow. */
export interface NestedParts {
  readonly absmax: Tensor; // (nested blocks) f32
  readonly map: Tensor; // (256) f32
  readonly blockSize: number;
  readonly offset: number;
}

/** Shape, type and name of a weight in blocks. */
export interface BlockOptions {
  /** Names the weight in errors. */
  readonly name: string;
  readonly shape: readonly number[];
  /** Type that the values are decoded to where they are used. */
  readonly dtype: DType;
  /** Whether to refuse values that are NaN or infinite, at the next sync. Only for parts on the CPU. */
  readonly checkFinite: boolean;
}

/** Elements of a block where nothing else is said, bitsandbytes' default. */
export const kBlockSize = 64;

/**
 * A 4-bit weight of its parts, which are copied: element i is code[nibble i] * absmax[i / blockSize] in f32.
 * @throws FormatError for parts that do not fit together
 */
export function fourBitWeight(parts: FourBitParts, options: BlockOptions): Tensor {
  const { name, shape, dtype, checkFinite } = options;
  const { type, blockSize, packed, absmax, nested = null } = parts;
  const given = {
    ...{ type, blockSize, packed: packed.handle, absmax: absmax.handle },
    code: parts.code ?? native.fourBitCode(type),
    nestedAbsmax: nested?.absmax.handle ?? null,
    nestedMap: nested?.map.handle ?? null,
    nestedBlockSize: nested?.blockSize ?? 1,
    nestedOffset: nested?.offset ?? 0,
  };
  return withDevice(
    packed.device,
    () => new Tensor(native.fourBitWeight(name, given, shape, dtype, checkFinite)),
  );
}

/**
 * An int8 weight (LLM.int8): element (o,i) is weight[o,i] * scales[o] / 127 in f32.
 * @param weight (out * in) u8: the bytes of int8 numbers, row by row; its device is the result's
 * @param scales (out) f32
 */
export function int8Weight(weight: Tensor, scales: Tensor, options: BlockOptions): Tensor {
  const { name, shape, dtype, checkFinite } = options;
  return withDevice(
    weight.device,
    () =>
      new Tensor(native.int8Weight(name, weight.handle, scales.handle, shape, dtype, checkFinite)),
  );
}

/**
 * The codes of a weight in NF4 (Dettmers et al. 2023) and the absmax of each block, bit for bit those of bitsandbytes.
 * @param x (...), any float dtype, on the CPU; values must be finite
 * @param blockSize even
 * @returns packed (n / 2, rounded up) u8, absmax (n / blockSize, rounded up) f32
 */
export function quantizeNf4(
  x: Tensor,
  blockSize: number = kBlockSize,
): { packed: Tensor; absmax: Tensor } {
  const [packed, absmax] = native.quantizeNf4(x.handle, blockSize);
  return { packed: new Tensor(packed), absmax: new Tensor(absmax) };
}

/** Blocks that share a nested absmax. */
export const kNestedBlockSize = 256;

/**
 * The codes of absmax in bitsandbytes' dynamic map (double quantisation). The offset, their mean, is rounded to f32 from a sum in f64.
 * @param absmax (n) f32
 * @returns codes (n) u8, nested (n / 256, rounded up) f32, offset () f32
 */
export function quantizeAbsmax(absmax: Tensor): { codes: Tensor; nested: Tensor; offset: Tensor } {
  const [codes, nested, offset] = native.quantizeAbsmax(absmax.handle);
  return { codes: new Tensor(codes), nested: new Tensor(nested), offset: new Tensor(offset) };
}

/** The values of the codes of a type, in their order. */
export function fourBitCode(type: FourBitType): readonly number[] {
  return native.fourBitCode(type);
}

/** The 256 values of bitsandbytes' dynamic map, ascending. */
export function dynamicMap(): readonly number[] {
  return native.nestedMap();
}

/**
 * A weight (...) quantised to NF4 in memory, on its device; the codes are made on the CPU.
 * @param name names it in errors
 * @param options dtype: type that the values are decoded to where they are used, default x's; blockSize: default 64
 */
export function nf4Weight(
  x: Tensor,
  name: string,
  { dtype = x.dtype, blockSize = kBlockSize }: { dtype?: DType; blockSize?: number } = {},
): Tensor {
  const { shape, device } = x;
  return scope(() =>
    noGrad(() =>
      fourBitWeight(
        { type: 'NF4', blockSize, ...quantizeNf4(x.to('cpu'), blockSize) },
        { name, shape, dtype, checkFinite: false },
      ).to(device),
    ),
  );
}

/** Bytes of memory of the tensor's storage. */
export function storageBytes(x: Tensor): number {
  return native.storageBytes(x.handle);
}
