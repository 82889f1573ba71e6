// Random choices of the attack: one sequence for each input, which the seed, the target's name and the input's number determine.
import { choices } from '../lifetime/programs/random.mjs';

/** Numbers at the edges of types, and ordinary ones. */
export const kNumbers = [
  ...[0, 1, 2, 3, 7, 8, 31, 32, 33, 64, 255, 256, 257, 4096, 65535, 65536],
  ...[-1, -2, -128, -100, 0.5, -0.5, 1.5, 1e-5, 1e-300, 1e38, 3.5e38, 1e300],
  ...[2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1, 2 ** 53, 2 ** 53 + 2, 2 ** 63, -(2 ** 31), -(2 ** 63)],
];

/** Texts that programs tend to treat specially. */
export const kTexts = [
  ...['', ' ', '.', '..', '/', '\\', '../../etc/passwd', '\0', '\n', '\r\n', '\t', '"', "'", '`', '%s', '$&', '*', '?', '[', '('],
  ...['__proto__', 'constructor', 'toString', 'null', 'true', 'NaN', 'Infinity', '-0', '1e999', '0x10', '007'],
  ...['é', 'é', '\u{1f40b}', '\ud800', '\u202e', '\u001b[2J', 'x\nerror: y', '\u009b1m', '\ufeff', '\u2028', 'ſ', 'İ', 'x'.repeat(300), 'F32', 'f32', 'model'],
  ...['(a+)+$', '.*.*.*.*=', '{{ x }}', '{% for %}', '&a *a', '!!js/function', '<s>', '</s>', '[UNK]', '▁', 'Ġ'],
];

/** A hash of 32 bits (FNV-1a). */
function hash(text) {
  let state = 0x811c9dc5;
  for (let i = 0; i < text.length; ++i) state = Math.imul(state ^ text.charCodeAt(i), 0x01000193);
  return state >>> 0;
}

/**
 * The choices of one input.
 * @returns the functions of choices(), and `integer(least, most)`, `number()`, `text()`, `bytes(count)`, `several(least, most, make)`
 */
export function randomOf(seed, target, index) {
  const { below, pick, chance } = choices(hash(`${seed}/${target}/${index}`));
  const integer = (least, most) => least + below(most - least + 1);
  const characters = 'abcdefghijklmnopqrstuvwxyz_.0123456789 -';
  const several = (least, most, make) => Array.from({ length: integer(least, most) }, (_, i) => make(i));
  return {
    ...{ below, pick, chance, integer, several },
    number: () => (chance(0.8) ? pick(kNumbers) : (below(2 ** 31) - 2 ** 30) / pick([1, 1024, 2 ** 31])),
    text: () => (chance(0.6) ? pick(kTexts) : several(0, 20, () => characters[below(characters.length)]).join('')),
    bytes: (count) => Buffer.from(Array.from({ length: count }, () => below(256))),
  };
}
