// GGUF files with metadata of all types and tensors of all block types: valid ones, which must be read exactly, and damaged ones.
import { join } from 'node:path';
import { GgufFile } from 'balora/io';
import { decode } from '../block_decoders.mjs';
import { Finding, require, requireClose } from '../finding.mjs';
import { kGgmlTypes, typeName, writeGguf } from '../formats.mjs';
import { mutateBytes } from '../mutations.mjs';

const kFile = 'model.gguf';
const kBoolean = 7;
const kArray = 9;
const kLimits = { 0: [0, 255], 1: [-128, 127], 2: [0, 65535], 3: [-32768, 32767], 4: [0, 2 ** 32 - 1], 5: [-(2 ** 31), 2 ** 31 - 1] };

const wellFormed = (text) => text.replace(/[\ud800-\udfff]/g, 'x');

function anyValue(random, type, depth = 0) {
  if (kLimits[type]) return random.pick([...kLimits[type], random.integer(0, 100)]);
  switch (type) {
    case 6:
      return Math.fround(random.pick([0, -0, 1.5, -3e38, 1e-40, random.integer(-9, 9)]));
    case kBoolean:
      return random.below(2);
    case 8:
      return wellFormed(random.text());
    case kArray: {
      const of = random.pick(depth > 1 ? [0, 4, 5, 6, 8] : [0, 1, 4, 5, 6, 7, 8, 8, 9, 10, 12]);
      return { type: of, items: random.several(0, 5, () => anyValue(random, of, depth + 1)) };
    }
    case 10:
      return random.pick([0n, 1n, 2n ** 53n, 2n ** 64n - 1n]);
    case 11:
      return random.pick([0n, -1n, 2n ** 53n, -(2n ** 63n), 2n ** 63n - 1n]);
    default:
      return random.pick([0, 0.1, -1e300, 5e-324]);
  }
}

function anyTensor(random, i) {
  const type = Number(random.pick(Object.keys(kGgmlTypes)));
  const [name, block, size] = kGgmlTypes[type];
  const shape = [...random.several(0, 2, () => random.pick([1, 1, 2, 3])), block * random.pick([1, 1, 2, 3])];
  const blocks = shape.reduce((product, extent) => product * extent, 1) / block;
  return { name: `blk.${i}.${name}`, shape, type, data: random.bytes(blocks * size) };
}

/** Faults of the structure; each changes the model before it is written. */
const kFaults = [
  (random, model) => {
    model.counts = { [random.pick(['tensors', 'metadata'])]: random.pick([0, 1, 100, 2 ** 31, 2 ** 53, 2n ** 63n, 2n ** 64n - 1n]) };
  },
  (random, model) => {
    model.version = random.pick([0, 1, 2, 3, 4, 0x03000000]);
  },
  (random, model) => {
    model.metadata.push({ key: 'general.alignment', type: 4, value: random.pick([0, 1, 3, 8, 33, 64, 2 ** 31, 2 ** 32 - 1]) });
  },
  (random, model) => {
    if (model.metadata.length > 0) model.metadata.push(random.pick(model.metadata));
  },
  (random, model) => {
    if (model.tensors.length > 0) model.tensors.push(random.pick(model.tensors));
  },
  (random, model) => {
    for (const tensor of model.tensors) if (random.chance(0.5)) tensor.offset = random.pick([0, 1, 32, 33, 2 ** 40, 2n ** 63n, 2n ** 64n - 32n]);
  },
  (random, model) => {
    for (const tensor of model.tensors) {
      if (random.chance(0.5)) tensor.shape = random.several(0, 6, () => random.pick([0, 1, 32, 256, 2 ** 31, 2 ** 32, 2n ** 63n, 2n ** 64n - 1n]));
    }
  },
  (random, model) => {
    for (const tensor of model.tensors) if (random.chance(0.5)) tensor.type = random.pick([4, 5, 9, 15, 24, 31, 39, 40, 1000, 2 ** 32 - 1]);
  },
  (random, model) => {
    model.metadata.push({ key: 'deep', type: kArray, value: { depth: random.pick([2, 10, 70, 5000, 100000]) } });
  },
  (random, model) => {
    const value = { type: random.pick([0, 4, 8, 9, 12]), items: [], count: random.pick([1, 2 ** 20, 2 ** 40, 2n ** 61n, 2n ** 64n - 1n]) };
    model.metadata.push({ key: 'long', type: kArray, value });
  },
  (random, model) => {
    model.metadata.push({ key: 'odd', type: random.pick([13, 14, 255, 2 ** 31]), value: 0 });
  },
];

function input(random) {
  const model = {
    version: random.pick([2, 3, 3]),
    metadata: random.several(0, 8, (i) => {
      const type = random.below(13);
      return { key: `a.${i}`, type, value: anyValue(random, type) };
    }),
    tensors: random.several(0, 5, (i) => anyTensor(random, i)),
  };
  const kind = random.pick(['valid', 'structure', 'structure', 'bytes', 'bytes']);
  if (kind === 'valid' && random.chance(0.3)) {
    model.alignment = random.pick([8, 16, 64, 128]);
    model.metadata.push({ key: 'general.alignment', type: 4, value: model.alignment });
  }
  if (kind === 'structure') random.pick(kFaults)(random, model);
  const whole = writeGguf(model);
  const focus = whole.length - model.tensors.reduce((sum, { data }) => sum + data.length, 0);
  const bytes = kind === 'bytes' ? mutateBytes(random, whole, focus) : whole;
  return { kind, model, dtype: random.pick(['f32', 'f32', 'bf16', 'f64']), checkFinite: random.chance(0.2), files: { [kFile]: bytes } };
}

/** A value of metadata as GgufFile gives it, as far as the comparison can know it. */
function plainValue(type, value) {
  // A list of booleans is a Uint8Array of 0 and 1, as all lists of numbers are typed arrays.
  if (type === kArray && value.type === kBoolean) return value.items;
  if (type === kArray) return [...value.items].map((item) => plainValue(value.type, item));
  if (type === kBoolean) return value === 1;
  if (typeof value === 'bigint') return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  return value;
}

const shown = (value) =>
  JSON.stringify(value, (_, part) => {
    if (typeof part === 'bigint') return Number.isSafeInteger(Number(part)) ? Number(part) : String(part);
    if (ArrayBuffer.isView(part)) return Array.from(part);
    return part;
  });

function compareMetadata(file, { metadata }) {
  require(file.metadata.size === metadata.length, () => `${file.metadata.size} values instead of ${metadata.length}`);
  for (const { key, type, value } of metadata) {
    require(file.metadataTypes.get(key) === typeName(type, value), () => `${key} has the type ${file.metadataTypes.get(key)}`);
    const [found, expected] = [shown(file.metadata.get(key)), shown(plainValue(type, value))];
    require(found === expected, `${key} is ${found} instead of ${expected}`);
  }
}

async function compareTensors(file, { tensors }) {
  require(file.tensors.size === tensors.length, () => `${file.tensors.size} tensors instead of ${tensors.length}`);
  for (const { name, shape, type, data } of tensors) {
    const tensor = file.read(name);
    const found = await tensor.data();
    require(tensor.shape.join() === shape.join(), `${name} has the shape ${tensor.shape} instead of ${shape}`);
    const expected = decode(kGgmlTypes[type], data).map(Math.fround);
    // Every product of a block type fits into the 24 bits of f32, so that at most one sum is rounded: once here, and to f64 before in the
    // loops, by which a tie may fall to the other side.
    requireClose(name, found, expected, expected.map((value) => Math.abs(value) * 2 ** -23));
    tensor.dispose();
  }
}

async function run({ kind, model, dtype, checkFinite }, _state, folder) {
  let file;
  try {
    file = GgufFile.open(join(folder, kFile));
  } catch (error) {
    if (kind === 'valid') throw new Finding(`a valid file was refused: ${error.message}`);
    throw error;
  }
  try {
    if (kind === 'valid') {
      compareMetadata(file, model);
      await compareTensors(file, model);
    }
    for (const name of file.tensors.keys()) {
      const tensor = file.read(name, { dtype, checkFinite });
      await tensor.data();
      tensor.dispose();
    }
  } finally {
    file.close();
  }
}

export default {
  what: 'GGUF files: metadata of all types, tensors of all block types, damaged in their structure or anywhere',
  input,
  run,
  mentions: () => [kFile],
};
