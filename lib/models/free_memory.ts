/** The refusal of weights that do not fit into the free memory, before any of them is read. */
import { NativeError } from '../errors.ts';
import { formatBytes } from '../io/format_bytes.ts';
import { availableMemory } from '../runtime.ts';
import { DTYPE_BYTES, type DType } from '../tensor.ts';

/** Weights that are to be read. */
interface WantedWeights {
  /** Path of the file, for messages. */
  readonly path: string;
  readonly dtype: DType;
  /** Bytes of memory that they take in a dtype. */
  bytesIn(dtype: DType): number;
}

/**
 * Refuses weights that do not fit into the free memory of the default device.
 * @throws NativeError (ERR_OUT_OF_MEMORY) with the sizes, and a dtype in which they would fit
 */
export function requireFreeMemory({ path, dtype, bytesIn }: WantedWeights): void {
  const available = availableMemory();
  const bytes = bytesIn(dtype);
  if (available === null || bytes <= available.free) return;
  const { device, free, total } = available;
  const sizes = `${formatBytes(free)} of ${formatBytes(total)} are free on ${device}`;
  throw new NativeError(
    `${path}: the weights take ${formatBytes(bytes)} in ${dtype}, and ${sizes}`,
    { code: 'ERR_OUT_OF_MEMORY', path, advice: smallerDtype({ path, dtype, bytesIn }, free) },
  );
}

/** Advice that names the first smaller dtype in which the weights fit. */
function smallerDtype({ dtype, bytesIn }: WantedWeights, free: number): string {
  const smaller = (['f32', 'bf16'] as const).filter((d) => DTYPE_BYTES[d] < DTYPE_BYTES[dtype]);
  const fitting = smaller.find((d) => bytesIn(d) <= free);
  if (fitting === undefined) {
    return 'no dtype is small enough: end other programs, raise the limit of the container, or choose a smaller model';
  }
  const bytes = bytesIn(fitting);
  const size = bytes === 0 ? 'no memory beside the file' : formatBytes(bytes);
  return `use dtype ${fitting}, in which they take ${size}`;
}
