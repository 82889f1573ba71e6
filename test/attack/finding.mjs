// The error that the oracle of a target throws where balora did something wrong.

/** A fault of balora that an input has shown; `kind` is a short name of it. */
export class Finding extends Error {
  constructor(message, kind = 'wrong result') {
    super(message);
    this.kind = kind;
  }
}

/** Throws a finding unless the condition holds. */
export function require(condition, message) {
  if (!condition) throw new Finding(typeof message === 'function' ? message() : message);
}

/** Throws a finding unless both lists of numbers agree: equal, both NaN, or not farther apart than the bound of each (default 0). */
export function requireClose(what, found, expected, bounds = []) {
  require(found.length === expected.length, () => `${what}: ${found.length} values instead of ${expected.length}`);
  for (let i = 0; i < expected.length; ++i) {
    const [a, b] = [Number(found[i]), Number(expected[i])];
    if (a === b || (Number.isNaN(a) && Number.isNaN(b))) continue;
    const fits = Number.isFinite(b) && Math.abs(a - b) <= (bounds[i] ?? 0);
    require(fits, `${what}: value ${i} is ${a} instead of ${b}, farther than ${bounds[i] ?? 0}`);
  }
}
