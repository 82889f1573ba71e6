/** Drawing of tokens. Each draw is a function of the seed, the sequence and the position, so that a batch changes nothing. */
import { philox4x32 } from '../data/philox.ts';
import { exponentials } from './scores.ts';

/** Counter word that separates this use of a seed from others ("draw"). */
const kDrawStream = 0x64726177;

/**
 * A number from [0, 1) with 53 random bits, uniformly distributed: a pure function of its arguments.
 * @param seed integer from 0 to 2^53 - 1
 */
export function uniform(seed: number, sequence: number, position: number): number {
  const key: [number, number] = [seed >>> 0, Math.floor(seed / 2 ** 32)];
  const [high, low] = philox4x32([position, sequence, 0, kDrawStream], key);
  return ((high >>> 5) * 2 ** 26 + (low >>> 6)) / 2 ** 53;
}

/** Draws ids by the probabilities of their scores. */
export class Sampler {
  #powers = new Float64Array(0);

  /** @param seed integer from 0 to 2^53 - 1 */
  constructor(readonly seed: number) {}

  /** Draws an id by the softmax of the scores (V), of which at least one is finite. */
  draw(
    scores: Float32Array,
    { sequence, position }: { sequence: number; position: number },
  ): number {
    if (this.#powers.length !== scores.length) this.#powers = new Float64Array(scores.length);
    const powers = this.#powers;
    let rest = uniform(this.seed, sequence, position) * exponentials(scores, powers);
    let last = 0;
    for (let id = 0; id < scores.length; id++) {
      const power = powers[id] as number;
      if (power === 0) continue;
      rest -= power;
      last = id;
      if (rest < 0) break;
    }
    return last;
  }
}
