// Files of tensors: valid ones of any layout, which must be read exactly, and damaged ones.
import { join } from 'node:path';
import { SafetensorsFile } from 'balora/io';
import { bfloat, half } from '../block_decoders.mjs';
import { Finding, require, requireClose } from '../finding.mjs';
import { kBits, readSafetensors, writeSafetensors } from '../formats.mjs';
import { mutateBytes, mutateJson, mutateText } from '../mutations.mjs';

const kFile = 'model.safetensors';
const kSupported = ['F32', 'F64', 'F16', 'BF16', 'I32', 'I64', 'U8'];

/** The elements of a tensor's bytes; integers of 64 bits as BigInt. */
const kElements = {
  F32: (bytes, i) => bytes.readFloatLE(4 * i),
  F64: (bytes, i) => bytes.readDoubleLE(8 * i),
  F16: (bytes, i) => half(bytes.readUInt16LE(2 * i)),
  BF16: (bytes, i) => bfloat(bytes.readUInt16LE(2 * i)),
  I32: (bytes, i) => bytes.readInt32LE(4 * i),
  I64: (bytes, i) => bytes.readBigInt64LE(8 * i),
  U8: (bytes, i) => bytes[i],
};

function anyTensors(random) {
  const names = new Set(random.several(0, 6, (i) => (random.chance(0.2) ? random.text() : `layers.${i}.weight`)));
  names.delete('__metadata__');
  return [...names].filter((name) => name.isWellFormed?.() ?? !/[\ud800-\udfff]/u.test(name)).map((name) => {
    const dtype = random.chance(0.85) ? random.pick(kSupported) : random.pick(Object.keys(kBits));
    const shape = random.several(0, 3, () => random.pick([0, 1, 1, 2, 3, 5, 8, 17]));
    const size = shape.reduce((product, extent) => product * extent, 1);
    return { name, dtype, shape, data: random.bytes((size * kBits[dtype]) / 8) };
  });
}

function input(random) {
  const tensors = anyTensors(random);
  const metadata = random.chance(0.4) ? Object.fromEntries(random.several(0, 3, (i) => [`k${i}`, random.text().replace(/[\ud800-\udfff]/g, '?')])) : null;
  const options = { metadata, padding: random.pick([0, 0, 1, 7, 64]) };
  const kind = random.pick(['valid', 'header', 'text', 'bytes', 'bytes']);
  if (kind === 'header') options.change = (header) => mutateJson(random, header);
  if (kind === 'text') options.change = (header) => mutateText(random, JSON.stringify(header));
  const whole = writeSafetensors(tensors, options);
  const focus = 8 + Number(whole.readBigUInt64LE(0));
  const bytes = kind === 'bytes' ? mutateBytes(random, whole, focus) : whole;
  const read = random.pick([undefined, 'f32', 'bf16', 'f64']);
  return { kind, metadata, read, share: random.chance(0.5), checkFinite: random.chance(0.3), files: { [kFile]: bytes } };
}

/** Compares what balora says of the file with an independent reading of it. */
function compareHeaders(file, bytes) {
  const plain = readSafetensors(bytes);
  require(plain !== null, 'a file was accepted whose header is no JSON');
  const byName = new Map(plain.tensors.map((tensor) => [tensor.name, tensor]));
  require(byName.size === file.tensors.size, () => `${file.tensors.size} tensors instead of ${byName.size}`);
  let covered = 0;
  for (const { name, dtype, shape, bytes: size } of file.tensors.values()) {
    const expected = byName.get(name);
    require(expected !== undefined, `no tensor is called ${JSON.stringify(name)}`);
    require(expected.fits, `${name}: ${size} bytes do not fit its shape`);
    const facts = [dtype, shape.join(), size].join(' ');
    const plainFacts = [expected.dtype, expected.shape.join(), expected.end - expected.begin].join(' ');
    require(facts === plainFacts, `${name}: ${facts} instead of ${plainFacts}`);
    covered += size;
  }
  require(covered === plain.size, `tensors of ${covered} bytes in ${plain.size} bytes of data`);
  require(JSON.stringify([...file.metadata].sort()) === JSON.stringify(Object.entries(plain.metadata).sort()), 'other metadata');
  return byName;
}

async function compareTensor(file, { name, dtype, data }, { share, checkFinite }) {
  if (!kSupported.includes(dtype)) return;
  const count = (8 * data.length) / kBits[dtype];
  const expected = Array.from({ length: count }, (_, i) => kElements[dtype](data, i));
  const finite = expected.every((value) => typeof value === 'bigint' || Number.isFinite(value));
  const tensor = file.read(name, { share, checkFinite });
  try {
    const found = await tensor.data();
    if (typeof found[0] === 'bigint') require(found.every((value, i) => value === expected[i]), `${name}: other integers`);
    else requireClose(name, found, expected);
    require(finite || !checkFinite, `${name}: a value that is not finite was accepted`);
  } catch (error) {
    if (error instanceof Finding || finite || !checkFinite) throw error;
  } finally {
    tensor.dispose();
  }
}

async function run(input, _state, folder) {
  const path = join(folder, kFile);
  let file;
  try {
    file = SafetensorsFile.open(path);
  } catch (error) {
    if (input.kind === 'valid') throw new Finding(`a valid file was refused: ${error.message}`);
    throw error;
  }
  try {
    const tensors = compareHeaders(file, input.files[kFile]);
    for (const tensor of tensors.values()) await compareTensor(file, tensor, input);
    for (const { name, dtype } of tensors.values()) {
      if (input.read === undefined || !['F32', 'F16', 'BF16', 'F64'].includes(dtype)) continue;
      const tensor = file.read(name, { dtype: input.read });
      await tensor.data();
      tensor.dispose();
    }
  } finally {
    file.close();
  }
}

export default {
  what: 'safetensors files of any layout, damaged in their header or anywhere',
  input,
  run,
  mentions: (input) => [kFile, ...(input.kind === 'valid' ? [''] : [])],
};
