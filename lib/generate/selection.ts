/**
 * Selection of the largest of many float32 numbers without sorting them: the bits of a number are put into an integer of the same
 * order, and the bound is found digit by digit from the counts, or the summed weights, of the numbers by digit. The time is
 * proportional to the number of values, whatever they are.
 */

/** The smallest of the selected values, and what lies above it. */
export interface Bound {
  readonly value: number;
  /** Count, or summed weights, of the values above `value`. */
  readonly above: number;
  /** Weight of each value that equals `value`; 1 without weights. */
  readonly weight: number;
}

/** Low bit and mask of each digit, the highest first: 11, 11 and 10 bits. */
const kDigits = [
  { shift: 21, mask: 0x7ff, flip: 0x400 },
  { shift: 10, mask: 0x7ff, flip: 0 },
  { shift: 0, mask: 0x3ff, flip: 0 },
] as const;

/** Finds bounds; it keeps its scratch memory from call to call. */
export class Selection {
  readonly #sums = new Float64Array(0x800);
  #candidates = new Int32Array(0);

  /**
   * Finds the bound of the fewest largest values whose count, or whose summed weights, are at least `target`: all values if
   * they do not reach it, at least one in any case.
   * @param values at least one, none of them NaN
   * @param weights weights >= 0 of the values; equal values have equal weights. Default: each counts 1
   */
  largest(values: Float32Array, target: number, weights: Float32Array | null = null): Bound {
    const bits = new Int32Array(values.buffer, values.byteOffset, values.length);
    const sums = this.#sums;
    let above = 0;
    let count = -1; // all values, which are not listed yet
    for (const { shift, mask, flip } of kDigits) {
      sums.fill(0);
      const candidates = this.#candidates;
      const number = count < 0 ? values.length : count;
      for (let n = 0; n < number; n++) {
        const i = count < 0 ? n : (candidates[n] as number);
        const digit = ((orderOf(bits[i] as number) >> shift) & mask) ^ flip;
        sums[digit] = (sums[digit] as number) + (weights === null ? 1 : (weights[i] as number));
      }
      const found = highestDigit(sums, target, above);
      above = found.above;
      count = this.#keep(bits, count, (key) => (((key >> shift) & mask) ^ flip) === found.digit);
    }
    const i = this.#candidates[0] as number;
    return {
      value: values[i] as number,
      above,
      weight: weights === null ? 1 : (weights[i] as number),
    };
  }

  /** Keeps the candidates whose keys are wanted, the first time those among all values, and returns their number. */
  #keep(bits: Int32Array, count: number, isWanted: (key: number) => boolean): number {
    if (this.#candidates.length < bits.length) this.#candidates = new Int32Array(bits.length);
    const candidates = this.#candidates;
    const number = count < 0 ? bits.length : count;
    let kept = 0;
    for (let n = 0; n < number; n++) {
      const i = count < 0 ? n : (candidates[n] as number);
      if (isWanted(orderOf(bits[i] as number))) candidates[kept++] = i;
    }
    return kept;
  }
}

/** An integer of the same order as the float32 number with these bits. */
function orderOf(bits: number): number {
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

/** The highest digit at which the sum from the top reaches the target; where none does, the lowest with a sum. */
function highestDigit(
  sums: Float64Array,
  target: number,
  above: number,
): { digit: number; above: number } {
  let found = { digit: sums.length - 1, above };
  let sum = above;
  for (let digit = sums.length - 1; digit >= 0; digit--) {
    const own = sums[digit] as number;
    if (own === 0) continue;
    found = { digit, above: sum };
    sum += own;
    if (sum >= target) break;
  }
  return found;
}
