// Mutations of inputs: bits and bytes of a file, characters of a text, parts of a JSON value. Each returns a changed copy.
import { kNumbers, kTexts } from './random.mjs';

const kMostBytes = 1 << 20;

/** Changes of bytes; each gives the new contents. */
const kByteChanges = [
  // One bit.
  (random, bytes) => {
    const copy = Buffer.from(bytes);
    if (copy.length > 0) copy[random.below(copy.length)] ^= 1 << random.below(8);
    return copy;
  },
  // One byte.
  (random, bytes) => {
    const copy = Buffer.from(bytes);
    if (copy.length > 0) copy[random.below(copy.length)] = random.pick([0, 1, 0x7f, 0x80, 0xff, 0x22, 0x2c, 0x7b, 0x0a]);
    return copy;
  },
  // The end is missing.
  (random, bytes) => bytes.subarray(0, random.below(bytes.length + 1)),
  // More bytes than there should be.
  (random, bytes) => Buffer.concat([bytes, random.bytes(random.integer(1, 40))]),
  // A part is missing.
  (random, bytes) => {
    const at = random.below(bytes.length + 1);
    return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + random.integer(1, 16))]);
  },
  // A part is there twice.
  (random, bytes) => {
    const at = random.below(bytes.length + 1);
    const part = bytes.subarray(at, at + random.integer(1, 64));
    return Buffer.concat([bytes.subarray(0, at), part, bytes.subarray(at)]).subarray(0, kMostBytes);
  },
  // A whole number of 1, 2, 4 or 8 bytes at the edge of a type.
  (random, bytes) => {
    const copy = Buffer.from(bytes);
    const size = random.pick([1, 2, 4, 8]);
    if (copy.length < size) return copy;
    const at = random.below(copy.length - size + 1);
    const value = random.pick([0n, 1n, 2n, 255n, 65535n, 2n ** 31n - 1n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 62n, 2n ** 63n, 2n ** 64n - 1n]);
    for (let i = 0; i < size; ++i) copy[at + i] = Number((value >> BigInt(8 * i)) & 255n);
    return copy;
  },
  // Random bytes inserted.
  (random, bytes) => {
    const at = random.below(bytes.length + 1);
    return Buffer.concat([bytes.subarray(0, at), random.bytes(random.integer(1, 8)), bytes.subarray(at)]);
  },
];

/** Bytes with one to four changes, most of them in the first `focus` bytes, where the header is. */
export function mutateBytes(random, bytes, focus = bytes.length) {
  let result = bytes;
  for (let left = random.integer(1, 4); left > 0; --left) {
    const change = random.pick(kByteChanges);
    if (focus >= result.length || random.chance(0.2)) result = change(random, result);
    else result = Buffer.concat([change(random, result.subarray(0, focus)), result.subarray(focus)]);
  }
  return result;
}

/** Changes of a text; each gives the new text. */
const kTextChanges = [
  (random, text) => {
    const at = random.below(text.length + 1);
    return text.slice(0, at) + random.pick(kTexts) + text.slice(at);
  },
  (random, text) => {
    const at = random.below(text.length + 1);
    return text.slice(0, at) + text.slice(at + random.integer(1, 12));
  },
  (random, text) => {
    const at = random.below(text.length + 1);
    return text.slice(0, at) + text.slice(at, at + random.integer(1, 40)).repeat(random.pick([2, 2, 3, 50])) + text.slice(at);
  },
  // A number at the edge of a type in the place of another.
  (random, text) => {
    const numbers = [...text.matchAll(/-?\d+(\.\d+)?/g)];
    if (numbers.length === 0) return text;
    const { 0: found, index } = random.pick(numbers);
    return text.slice(0, index) + random.pick(kNumbers) + text.slice(index + found.length);
  },
  // Nested many times.
  (random, text) => {
    const at = random.below(text.length + 1);
    const [open, close] = random.pick([['[', ']'], ['{"a":', '}'], ['(', ')'], ['"', '"'], ['- ', ''], ['{{', '}}']]);
    const times = random.pick([1, 10, 100, 5000]);
    return text.slice(0, at) + open.repeat(times) + close.repeat(random.chance(0.7) ? times : 0) + text.slice(at);
  },
  // Two characters change places.
  (random, text) => {
    const [a, b] = [random.below(text.length + 1), random.below(text.length + 1)].sort((x, y) => x - y);
    return b >= text.length || a === b ? text : text.slice(0, a) + text[b] + text.slice(a + 1, b) + text[a] + text.slice(b + 1);
  },
];

/** A text with one to three changes. */
export function mutateText(random, text) {
  let result = text;
  for (let left = random.integer(1, 3); left > 0; --left) result = random.pick(kTextChanges)(random, result);
  return result.slice(0, kMostBytes);
}

/** A JSON value of any kind. */
export function anyJson(random, depth = 0) {
  const kinds = depth > 2 ? 6 : 8;
  switch (random.below(kinds)) {
    case 0:
      return null;
    case 1:
      return random.chance(0.5);
    case 2:
    case 3:
      return random.number();
    case 4:
    case 5:
      return random.text();
    case 6:
      return random.several(0, 4, () => anyJson(random, depth + 1));
    default:
      return Object.fromEntries(random.several(0, 3, () => [random.text(), anyJson(random, depth + 1)]));
  }
}

/** Every place in a JSON value, as the container and the key. */
function placesOf(value, places = []) {
  if (value === null || typeof value !== 'object') return places;
  for (const key of Object.keys(value)) {
    places.push([value, key]);
    placesOf(value[key], places);
  }
  return places;
}

/** Changes of a JSON value in one place. */
const kJsonChanges = [
  (random, [container, key]) => {
    container[key] = anyJson(random);
  },
  (random, [container, key]) => {
    if (Array.isArray(container)) container.splice(Number(key), 1);
    else delete container[key];
  },
  // A number near or far.
  (random, [container, key]) => {
    const before = container[key];
    container[key] = typeof before === 'number' ? random.pick([-before, before + 1, before - 1, 2 * before, before / 2, random.number()]) : random.number();
  },
  (random, [container, key]) => {
    container[key] = String(container[key]);
  },
  (random, [container, key]) => {
    container[key] = [container[key]];
  },
  (random, [container]) => {
    if (Array.isArray(container)) container.push(anyJson(random));
    else define(container, random.text(), anyJson(random));
  },
  // A key under another name.
  (random, [container, key]) => {
    if (Array.isArray(container)) return;
    const value = container[key];
    delete container[key];
    define(container, random.chance(0.5) ? key.toUpperCase() : key + random.text(), value);
  },
  // A long list.
  (random, [container, key]) => {
    const text = JSON.stringify(container[key]) ?? 'null';
    const length = Math.min(random.pick([10, 100, 3000]), Math.floor(3e5 / text.length));
    container[key] = Array.from({ length }, () => JSON.parse(text));
  },
];

/** Sets a key that may be `__proto__`. */
function define(container, key, value) {
  Object.defineProperty(container, key, { value, enumerable: true, writable: true, configurable: true });
}

/** A copy of a JSON value with one to three changes. */
export function mutateJson(random, value) {
  const copy = structuredClone(value);
  for (let left = random.integer(1, 3); left > 0; --left) {
    const places = placesOf(copy);
    if (places.length === 0) return anyJson(random);
    random.pick(kJsonChanges)(random, random.pick(places));
  }
  return copy;
}

/** The text of a mutated JSON value; one in six has a mutated text instead. */
export function mutateJsonText(random, value) {
  if (random.chance(1 / 6)) return mutateText(random, JSON.stringify(value));
  return random.chance(0.03) ? JSON.stringify(anyJson(random)) : JSON.stringify(mutateJson(random, value));
}
