/**
 * Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), a counter-based generator: each
 * random number is a pure function of key and counter. The order of an epoch depends on (seed, epoch) alone, so no state is stored.
 */
import { ArgumentError } from '../errors.ts';

const kMultiplier0 = 0xd2511f53;
const kMultiplier1 = 0xcd9e8d57;
const kWeyl0 = 0x9e3779b9;
const kWeyl1 = 0xbb67ae85;
const kRounds = 10;

/** The high 32 bits of the 64-bit product. */
function multiplyHigh(a: number, b: number): number {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  const middle = aHigh * bLow + ((aLow * bLow) >>> 16);
  const carry = (middle & 0xffff) + aLow * bHigh;
  return (aHigh * bHigh + Math.floor(middle / 0x10000) + Math.floor(carry / 0x10000)) >>> 0;
}

export type Words4 = [number, number, number, number];

/** One block of four 32-bit words. */
export function philox4x32(counter: Readonly<Words4>, key: readonly [number, number]): Words4 {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < kRounds; round++) {
    const high0 = multiplyHigh(kMultiplier0, c0);
    const low0 = Math.imul(kMultiplier0, c0) >>> 0;
    const high1 = multiplyHigh(kMultiplier1, c2);
    const low1 = Math.imul(kMultiplier1, c2) >>> 0;
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + kWeyl0) >>> 0;
    k1 = (k1 + kWeyl1) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** Counter word that separates the shuffles of epochs from other uses of a seed ("shuf"). */
const kShuffleStream = 0x73687566;

/** Random 32-bit words, one at each call. */
export type RandomWords = () => number;

/**
 * A sequence of random words that is a pure function of its arguments.
 * @param seed integer from 0 to 2^53 - 1
 * @param stream 32-bit number that separates the uses of a seed
 * @param index 32-bit number of the sequence within its stream
 */
export function randomWords({
  seed,
  stream,
  index,
}: {
  seed: number;
  stream: number;
  index: number;
}): RandomWords {
  if (!Number.isSafeInteger(seed) || seed < 0) {
    throw new ArgumentError(`shuffle: seed must be an integer from 0 to 2^53 - 1, got ${seed}`);
  }
  const key: [number, number] = [seed >>> 0, Math.floor(seed / 2 ** 32)];
  let block: Words4 = [0, 0, 0, 0];
  let used = 4;
  let blocks = 0;
  return () => {
    if (used === 4) {
      block = philox4x32([blocks >>> 0, Math.floor(blocks / 2 ** 32), index, stream], key);
      blocks++;
      used = 0;
    }
    return block[used++] as number;
  };
}

/** A random whole number below a bound, each alike likely. */
export function randomBelow(next: RandomWords, bound: number): number {
  // Words beyond the last whole multiple of the bound are drawn again, so that no number is favoured.
  const limit = 2 ** 32 - (2 ** 32 % bound);
  let word = next();
  while (word >= limit) word = next();
  return word % bound;
}

/** A uniformly random order of 0..n-1 (Fisher-Yates). */
export function randomOrder(n: number, next: RandomWords): Uint32Array {
  const order = Uint32Array.from({ length: n }, (_, i) => i);
  for (let i = n - 1; i > 0; i--) {
    const j = randomBelow(next, i + 1);
    const kept = order[i] as number;
    order[i] = order[j] as number;
    order[j] = kept;
  }
  return order;
}

/**
 * A uniformly random order of 0..n-1 for an epoch, a pure function of its arguments.
 * @param seed integer from 0 to 2^53 - 1
 */
export function shuffledOrder(n: number, seed: number, epoch: number): Uint32Array {
  return randomOrder(n, randomWords({ seed, stream: kShuffleStream, index: epoch }));
}
