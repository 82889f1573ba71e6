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

/** Number of values of the highest digit and of the middle one, of 11 bits each; the lowest has 10. */
const kDigits = 0x800;
const kHigh = 21;
const kMiddle = 10;

/** Finds bounds; it keeps its scratch memory from call to call. */
export class Selection {
  readonly #sums = new Float64Array(kDigits);
  #candidates = new Int32Array(0);

  /**
   * Finds the bound of the fewest largest values whose count, or whose summed weights, are at least `target`: all values if
   * they do not reach it, at least one in any case.
   * @param values at least one, none of them NaN
   * @param weights weights >= 0 of the values, at least one above 0; equal values have equal weights. Default: each counts 1
   */
  largest(values: Float32Array, target: number, weights: Float32Array | null = null): Bound {
    const bits = new Int32Array(values.buffer, values.byteOffset, values.length);
    this.#addAll(bits, weights);
    let { digit, above } = highestDigit(this.#sums, target, 0);
    let count = this.#list(bits, digit);
    for (const shift of [kMiddle, 0]) {
      const digitOf = (i: number): number =>
        (orderOf(bits[i] as number) >> shift) & (shift === 0 ? 0x3ff : 0x7ff);
      this.#sums.fill(0);
      for (const i of this.#candidates.subarray(0, count)) {
        const sum = this.#sums[digitOf(i)] as number;
        this.#sums[digitOf(i)] = sum + (weights === null ? 1 : (weights[i] as number));
      }
      ({ digit, above } = highestDigit(this.#sums, target, above));
      const wanted = this.#candidates.subarray(0, count).filter((i) => digitOf(i) === digit);
      this.#candidates.set(wanted);
      count = wanted.length;
    }
    const i = this.#candidates[0] as number;
    const weight = weights === null ? 1 : (weights[i] as number);
    return { value: values[i] as number, above, weight };
  }

  /** Sums the weights of all values by their highest digit. Its two loops are simple, since they take most of the time. */
  #addAll(bits: Int32Array, weights: Float32Array | null): void {
    const sums = this.#sums;
    sums.fill(0);
    if (weights === null) {
      for (let i = 0; i < bits.length; i++) {
        const digit = (orderOf(bits[i] as number) >> kHigh) + kDigits / 2;
        sums[digit] = (sums[digit] as number) + 1;
      }
      return;
    }
    for (let i = 0; i < bits.length; i++) {
      const weight = weights[i] as number;
      if (weight === 0) continue;
      const digit = (orderOf(bits[i] as number) >> kHigh) + kDigits / 2;
      sums[digit] = (sums[digit] as number) + weight;
    }
  }

  /** Lists the values with a highest digit, and returns their number. */
  #list(bits: Int32Array, digit: number): number {
    if (this.#candidates.length < bits.length) this.#candidates = new Int32Array(bits.length);
    const candidates = this.#candidates;
    let count = 0;
    for (let i = 0; i < bits.length; i++) {
      const own = (orderOf(bits[i] as number) >> kHigh) + kDigits / 2;
      if (own === digit) candidates[count++] = i;
    }
    return count;
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
