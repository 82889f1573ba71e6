// GGUF's block types decoded by plain loops, one element at a time, in f64: the definition of ggml-quants.c without its layout tricks.

/** The number that a half-precision word stands for. */
export function half(word) {
  const [sign, exponent, fraction] = [word & 0x8000 ? -1 : 1, (word >> 10) & 31, word & 1023];
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15));
}

/** The number that a bfloat16 word stands for. */
export function bfloat(word) {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt16LE(word, 2);
  return bytes.readFloatLE(0);
}

const f16At = (bytes, at) => half(bytes.readUInt16LE(at));
const nibble = (bytes, at, i) => (i < 16 ? bytes[at + i] & 15 : bytes[at + i - 16] >> 4);
const highBit = (bytes, at, i) => ((bytes.readUInt32LE(at) >>> i) & 1) << 4;
const kNonLinear = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/** Scale and minimum of the j-th of eight sub-blocks, 6 bits each in 12 bytes (Q4_K, Q5_K). */
function scaleAndMinimum(bytes, at, j) {
  const byte = (i) => bytes[at + i];
  if (j < 4) return [byte(j) & 63, byte(j + 4) & 63];
  return [(byte(j + 4) & 15) | ((byte(j - 4) >> 6) << 4), (byte(j + 4) >> 4) | ((byte(j) >> 6) << 4)];
}

/** Scale of the j-th of sixteen sub-blocks of Q3_K: 4 low bits in 8 bytes, 2 high bits in 4 more; minus 32. */
function scaleOfQ3(bytes, at, j) {
  const low = j < 8 ? bytes[at + j] & 15 : bytes[at + j - 8] >> 4;
  const high = (bytes[at + 8 + (j % 4)] >> (2 * (j >> 2))) & 3;
  return (low | (high << 4)) - 32;
}

/** Element i of the block that begins at `at`, by the name of the type. */
const kElements = {
  F32: (bytes, at) => bytes.readFloatLE(at),
  F16: f16At,
  BF16: (bytes, at) => bfloat(bytes.readUInt16LE(at)),
  Q8_0: (bytes, at, i) => f16At(bytes, at) * bytes.readInt8(at + 2 + i),
  Q4_0: (bytes, at, i) => f16At(bytes, at) * (nibble(bytes, at + 2, i) - 8),
  Q4_1: (bytes, at, i) => f16At(bytes, at) * nibble(bytes, at + 4, i) + f16At(bytes, at + 2),
  Q5_0: (bytes, at, i) => f16At(bytes, at) * ((nibble(bytes, at + 6, i) | highBit(bytes, at + 2, i)) - 16),
  Q5_1: (bytes, at, i) => f16At(bytes, at) * (nibble(bytes, at + 8, i) | highBit(bytes, at + 4, i)) + f16At(bytes, at + 2),
  IQ4_NL: (bytes, at, i) => f16At(bytes, at) * kNonLinear[nibble(bytes, at + 2, i)],
  IQ4_XS: (bytes, at, i) => {
    const j = i >> 5;
    const low = (bytes[at + 4 + (j >> 1)] >> (4 * (j & 1))) & 15;
    const high = (bytes.readUInt16LE(at + 2) >> (2 * j)) & 3;
    return f16At(bytes, at) * ((low | (high << 4)) - 32) * kNonLinear[nibble(bytes, at + 8 + 16 * j, i & 31)];
  },
  Q2_K: (bytes, at, i) => {
    const q = (bytes[at + 16 + 32 * (i >> 7) + (i & 31)] >> (2 * ((i >> 5) & 3))) & 3;
    const scale = bytes[at + (i >> 4)];
    return f16At(bytes, at + 80) * (scale & 15) * q - f16At(bytes, at + 82) * (scale >> 4);
  },
  Q3_K: (bytes, at, i) => {
    const low = (bytes[at + 32 + 32 * (i >> 7) + (i & 31)] >> (2 * ((i >> 5) & 3))) & 3;
    const high = (bytes[at + (i & 31)] >> (i >> 5)) & 1;
    return f16At(bytes, at + 108) * scaleOfQ3(bytes, at + 96, i >> 4) * (low - (high ? 0 : 4));
  },
  Q4_K: (bytes, at, i) => {
    const [scale, minimum] = scaleAndMinimum(bytes, at + 4, i >> 5);
    const q = (bytes[at + 16 + 32 * (i >> 6) + (i & 31)] >> (i & 32 ? 4 : 0)) & 15;
    return f16At(bytes, at) * scale * q - f16At(bytes, at + 2) * minimum;
  },
  Q5_K: (bytes, at, i) => {
    const [scale, minimum] = scaleAndMinimum(bytes, at + 4, i >> 5);
    const low = (bytes[at + 48 + 32 * (i >> 6) + (i & 31)] >> (i & 32 ? 4 : 0)) & 15;
    const high = (bytes[at + 16 + (i & 31)] >> (i >> 5)) & 1;
    return f16At(bytes, at) * scale * (low | (high << 4)) - f16At(bytes, at + 2) * minimum;
  },
  Q6_K: (bytes, at, i) => {
    const [part, row, column] = [i >> 7, (i >> 5) & 3, i & 31];
    const low = (bytes[at + 64 * part + 32 * (row & 1) + column] >> (row & 2 ? 4 : 0)) & 15;
    const high = (bytes[at + 128 + 32 * part + column] >> (2 * row)) & 3;
    const scale = bytes.readInt8(at + 192 + 8 * part + 2 * row + (column >> 4));
    return f16At(bytes, at + 208) * scale * ((low | (high << 4)) - 32);
  },
};

/** All elements of a tensor. @param type [name, elements of a block, bytes of a block] */
export function decode([name, block, size], bytes) {
  const element = kElements[name];
  return Array.from({ length: (bytes.length / size) * block }, (_, i) => element(bytes, Math.floor(i / block) * size, i % block));
}

