/**
 * Python's random.Random(seed).sample(range(n), k), by which lm-evaluation-harness draws the examples of a prompt: the Mersenne
 * Twister MT19937 (Matsumoto and Nishimura 1998), seeded by an array as Python does for a whole number.
 */
import { ArgumentError } from '../errors.ts';

const kWords = 624;
const kShift = 397;

/** A generator of random numbers with the numbers of Python's. */
export class PythonRandom {
  readonly #state = new Uint32Array(kWords);
  #next = kWords;

  /** @param seed a whole number from 0 to 2^32 - 1 */
  constructor(seed: number) {
    if (!Number.isInteger(seed) || seed < 0 || seed >= 2 ** 32) {
      throw new ArgumentError(
        `random: the seed must be a whole number from 0 to 2^32 - 1, got ${seed}`,
      );
    }
    this.#seedByWord(19_650_218);
    this.#mix(seed);
  }

  /** Draws `count` different numbers below `size`, in the order in which Python's sample() returns them. */
  sample(size: number, count: number): number[] {
    if (!(count >= 0 && count <= size)) {
      throw new ArgumentError(`random: cannot draw ${count} different ones of ${size}`);
    }
    // Python compares the sizes of a set and of a list of the whole population.
    const setSize = 21 + (count > 5 ? 4 ** Math.ceil(Math.log(3 * count) / Math.log(4)) : 0);
    return size <= setSize ? this.#fromPool(size, count) : this.#fromSet(size, count);
  }

  /** Draws a whole number below `size`, which is at least 1 and below 2^32. */
  below(size: number): number {
    const bits = 32 - Math.clz32(size);
    for (;;) {
      const drawn = this.word() >>> (32 - bits);
      if (drawn < size) return drawn;
    }
  }

  /** The next 32 bits. */
  word(): number {
    if (this.#next === kWords) this.#refill();
    let y = this.#state[this.#next++] as number;
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  #fromPool(size: number, count: number): number[] {
    const pool = Array.from({ length: size }, (_, i) => i);
    return Array.from({ length: count }, (_, i) => {
      const at = this.below(size - i);
      const drawn = pool[at] as number;
      pool[at] = pool[size - i - 1] as number;
      return drawn;
    });
  }

  #fromSet(size: number, count: number): number[] {
    const drawn = new Set<number>();
    while (drawn.size < count) drawn.add(this.below(size));
    return [...drawn];
  }

  #seedByWord(seed: number): void {
    const state = this.#state;
    state[0] = seed;
    for (let i = 1; i < kWords; i++) state[i] = Math.imul(1_812_433_253, turned(state, i - 1)) + i;
  }

  /** Mixes an array of one word into the state. */
  #mix(word: number): void {
    const state = this.#state;
    let i = 1;
    const advance = (): void => {
      if (++i < kWords) return;
      state[0] = state[kWords - 1] as number;
      i = 1;
    };
    for (let n = 0; n < kWords; n++, advance()) {
      state[i] = ((state[i] as number) ^ Math.imul(turned(state, i - 1), 1_664_525)) + word;
    }
    for (let n = 1; n < kWords; n++, advance()) {
      state[i] = ((state[i] as number) ^ Math.imul(turned(state, i - 1), 1_566_083_941)) - i;
    }
    state[0] = 0x80000000;
  }

  #refill(): void {
    const state = this.#state;
    for (let i = 0; i < kWords; i++) {
      const y =
        ((state[i] as number) & 0x80000000) | ((state[(i + 1) % kWords] as number) & 0x7fffffff);
      const twist = y & 1 ? 0x9908b0df : 0;
      state[i] = (state[(i + kShift) % kWords] as number) ^ (y >>> 1) ^ twist;
    }
    this.#next = 0;
  }
}

/** A word of the state xored with its upper two bits. */
function turned(state: Uint32Array, index: number): number {
  const word = state[index] as number;
  return word ^ (word >>> 30);
}
