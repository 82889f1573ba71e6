// Writers and readers of safetensors and GGUF that are independent of balora's, for valid inputs and for the oracles of damaged ones.

/** Bits of an element by safetensors' names of dtypes. */
export const kBits = {
  ...{ BOOL: 8, U8: 8, I8: 8, F8_E5M2: 8, F8_E4M3: 8, I16: 16, U16: 16, F16: 16, BF16: 16 },
  ...{ I32: 32, U32: 32, F32: 32, F64: 64, I64: 64, U64: 64 },
};

const product = (shape) => shape.reduce((size, extent) => size * extent, 1);

/**
 * The bytes of a safetensors file.
 * @param tensors [{ name, dtype, shape, data }]
 * @param options metadata: texts by name, or null; padding: spaces behind the header; change: called with the header before it is written
 */
export function writeSafetensors(tensors, { metadata = null, padding = 0, change = (header) => header } = {}) {
  let offset = 0;
  const entries = tensors.map(({ name, dtype, shape, data }) => {
    const entry = [name, { dtype, shape, data_offsets: [offset, offset + data.length] }];
    offset += data.length;
    return entry;
  });
  const rows = metadata === null ? entries : [['__metadata__', metadata], ...entries];
  const changed = change(Object.fromEntries(rows));
  const text = typeof changed === 'string' ? changed : JSON.stringify(changed);
  const header = Buffer.from(text + ' '.repeat(padding));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([length, header, ...tensors.map(({ data }) => data)]);
}

/** The tensors and metadata of a safetensors file that the format allows; null for any other. */
export function readSafetensors(bytes) {
  if (bytes.length < 8) return null;
  const length = Number(bytes.readBigUInt64LE(0));
  if (length > bytes.length - 8) return null;
  let header;
  try {
    header = JSON.parse(new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes.subarray(8, 8 + length)));
  } catch {
    return null;
  }
  const data = bytes.subarray(8 + length);
  const { __metadata__: metadata = {}, ...entries } = header;
  const tensors = Object.entries(entries).map(([name, { dtype, shape, data_offsets: [begin, end] }]) => ({
    ...{ name, dtype, shape, begin, end, data: data.subarray(begin, end) },
    fits: kBits[dtype] === undefined || (kBits[dtype] * product(shape)) / 8 === end - begin,
  }));
  return { metadata, tensors, size: data.length };
}

/** GGUF's types of metadata by number: name, bytes, and how one is written. */
const kValueTypes = [
  ...[['UINT8', 1, 'writeUInt8'], ['INT8', 1, 'writeInt8'], ['UINT16', 2, 'writeUInt16LE'], ['INT16', 2, 'writeInt16LE']],
  ...[['UINT32', 4, 'writeUInt32LE'], ['INT32', 4, 'writeInt32LE'], ['FLOAT32', 4, 'writeFloatLE'], ['BOOL', 1, 'writeUInt8']],
  ...[['STRING'], ['ARRAY'], ['UINT64', 8, 'writeBigUInt64LE'], ['INT64', 8, 'writeBigInt64LE'], ['FLOAT64', 8, 'writeDoubleLE']],
];
const kString = 8;
const kArray = 9;

/** ggml's types by number: name, elements of a block, bytes of a block. */
export const kGgmlTypes = {
  ...{ 0: ['F32', 1, 4], 1: ['F16', 1, 2], 2: ['Q4_0', 32, 18], 3: ['Q4_1', 32, 20], 6: ['Q5_0', 32, 22], 7: ['Q5_1', 32, 24] },
  ...{ 8: ['Q8_0', 32, 34], 10: ['Q2_K', 256, 84], 11: ['Q3_K', 256, 110], 12: ['Q4_K', 256, 144], 13: ['Q5_K', 256, 176] },
  ...{ 14: ['Q6_K', 256, 210], 20: ['IQ4_NL', 32, 18], 23: ['IQ4_XS', 256, 136], 30: ['BF16', 1, 2] },
};

function u32(value) {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function u64(value) {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt.asUintN(64, BigInt(value)));
  return bytes;
}

function ggufText(text) {
  const bytes = Buffer.from(text);
  return Buffer.concat([u64(bytes.length), bytes]);
}

/** The bytes of an array in an array, so many times, the innermost empty. */
function nestedArrays(depth) {
  const outer = Buffer.concat([u32(kArray), u64(1)]);
  return Buffer.concat([...Array(depth).fill(outer), u32(4), u64(0)]);
}

/** The bytes of a value of metadata, without its type. */
function ggufValue(type, value) {
  if (type === kString) return ggufText(value);
  if (type === kArray) {
    if (value.depth) return nestedArrays(value.depth);
    const items = value.items.map((item) => ggufValue(value.type, item));
    return Buffer.concat([u32(value.type), u64(value.count ?? items.length), ...items]);
  }
  const [, size, write] = kValueTypes[type] ?? ['?', 4, 'writeUInt32LE'];
  const bytes = Buffer.alloc(size);
  bytes[write](value, 0);
  return bytes;
}

/**
 * The bytes of a GGUF file.
 * @param model { version, alignment, metadata: [{ key, type, value }], tensors: [{ name, shape (row-major), type, data, offset? }] };
 *   the counts and offsets are right unless `counts` or a tensor's `offset` gives others
 */
export function writeGguf({ version = 3, alignment = 32, metadata, tensors, counts = {} }) {
  const padded = (size) => Math.ceil(size / alignment) * alignment;
  let offset = 0;
  const infos = tensors.map(({ name, shape, type, data, offset: given }) => {
    const at = given ?? offset;
    offset += padded(data.length);
    return Buffer.concat([ggufText(name), u32(shape.length), ...[...shape].reverse().map(u64), u32(type), u64(at)]);
  });
  const pairs = metadata.map(({ key, type, value }) => Buffer.concat([ggufText(key), u32(type), ggufValue(type, value)]));
  const head = Buffer.concat([
    ...[Buffer.from('GGUF'), u32(version), u64(counts.tensors ?? tensors.length), u64(counts.metadata ?? metadata.length)],
    ...[...pairs, ...infos],
  ]);
  const filled = (bytes) => Buffer.concat([bytes, Buffer.alloc(padded(bytes.length) - bytes.length)]);
  return Buffer.concat([filled(head), ...tensors.map(({ data }) => filled(data))]);
}

/** The contents of a valid GGUF file, in the form that writeGguf takes. */
export function readGguf(bytes) {
  let at = 4;
  const number = (size) => {
    const value = size === 4 ? bytes.readUInt32LE(at) : Number(bytes.readBigUInt64LE(at));
    at += size;
    return value;
  };
  const text = () => {
    const length = number(8);
    at += length;
    return bytes.toString('utf8', at - length, at);
  };
  const valueOf = (type) => {
    if (type === kString) return text();
    if (type === kArray) {
      const of = number(4);
      return { type: of, items: Array.from({ length: number(8) }, () => valueOf(of)) };
    }
    const [, size, write] = kValueTypes[type];
    at += size;
    return bytes[write.replace('write', 'read')](at - size);
  };
  const version = number(4);
  const [tensorCount, metadataCount] = [number(8), number(8)];
  const metadata = Array.from({ length: metadataCount }, () => {
    const key = text();
    const type = number(4);
    return { key, type, value: valueOf(type) };
  });
  const infos = Array.from({ length: tensorCount }, () => {
    const name = text();
    const shape = Array.from({ length: number(4) }, () => number(8)).reverse();
    return { name, shape, type: number(4), at: number(8) };
  });
  const alignment = Number(metadata.find(({ key }) => key === 'general.alignment')?.value ?? 32);
  const begin = Math.ceil(at / alignment) * alignment;
  const tensors = infos.map(({ at: from, ...info }) => {
    const [, block, size] = kGgmlTypes[info.type];
    return { ...info, data: bytes.subarray(begin + from, begin + from + (product(info.shape) / block) * size) };
  });
  return { version, alignment, metadata, tensors };
}

/** The name of a type of metadata: `UINT32`, `ARRAY STRING`. */
export const typeName = (type, value) => (type === kArray ? `ARRAY ${kValueTypes[value.type]?.[0]}` : kValueTypes[type][0]);
