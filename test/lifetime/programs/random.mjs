// Random choices that a seed determines.

/** A sequence of numbers in [0, 1) from a seed (mulberry32). */
function sequence(state) {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let word = Math.imul(state ^ (state >>> 15), state | 1);
    word ^= word + Math.imul(word ^ (word >>> 7), word | 61);
    return ((word ^ (word >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Random functions that share one sequence: an integer below a limit, an entry of a list, true with a probability. */
export function choices(seed) {
  const next = sequence(seed);
  const below = (limit) => Math.floor(next() * limit);
  return { below, pick: (list) => list[below(list.length)], chance: (probability) => next() < probability };
}
