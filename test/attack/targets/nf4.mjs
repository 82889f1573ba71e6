// Folders of models in NF4, as `balora quantize` writes them: the configuration, the tensors, and the states of quantisation in them.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AutoModelForCausalLM } from 'balora';
import { saveNf4 } from '../../../dist/models/save_nf4.js';
import { readSafetensors, writeSafetensors } from '../formats.mjs';
import { kFixtures, useModel } from '../models.mjs';
import { mutateBytes, mutateJson, mutateJsonText } from '../mutations.mjs';

const kBase = join(kFixtures, 'architectures/llama-untied-gqa/model');
const kForms = [
  { blockSize: 32, doubleQuant: false },
  { blockSize: 32, doubleQuant: true },
];
const kFactors = /absmax|quant_map|quant_state|nested/;

/** The tensors with one of them changed: mostly one that says how the codes of another one are read. */
function otherTensors(random, tensors) {
  const copy = tensors.map(({ name, dtype, shape, data }) => ({ name, dtype, shape, data: Buffer.from(data) }));
  const factors = copy.filter(({ name }) => kFactors.test(name));
  const tensor = random.pick(random.chance(0.8) ? factors : copy);
  const state = random.pick(copy.filter(({ name }) => name.includes('quant_state')));
  random.pick([
    () => copy.splice(copy.indexOf(tensor), 1),
    () => Object.assign(tensor, { name: tensor.name.replace(random.pick(['absmax', 'quant_map', 'nested_', 'weight', 'nf4', '0']), random.pick(['', 'x', 'fp4', '7'])) }),
    () => Object.assign(tensor, { shape: [...tensor.shape].reverse() }),
    () => Object.assign(tensor, { shape: [], data: tensor.data.subarray(0, tensor.data.length / tensor.shape.reduce((a, b) => a * b, 1)) }),
    () => Object.assign(tensor, { shape: [0], data: Buffer.alloc(0) }),
    () => tensor.data.length >= 4 && tensor.data.writeFloatLE(random.pick([Number.NaN, Number.POSITIVE_INFINITY, 3e38, -1]), 0),
    () => Object.assign(tensor, { data: mutateBytes(random, tensor.data).subarray(0, tensor.data.length) }),
    () => {
      const data = Buffer.from(mutateJsonText(random, JSON.parse(state.data.toString())));
      Object.assign(state, { shape: [data.length], data });
    },
    () => {
      const data = Buffer.from(JSON.stringify({ ...JSON.parse(state.data.toString()), [random.pick(['shape', 'blocksize', 'dtype', 'nested_blocksize', 'nested_offset', 'quant_type'])]: random.pick([0, -1, 1, 64, 2 ** 40, null, [1, 1], [2 ** 31, 2 ** 31], 'nf4', 'fp4', 1e308]) }));
      Object.assign(state, { shape: [data.length], data });
    },
  ])();
  return copy.map((one) => ({ ...one, data: pad(one) }));
}

/** The bytes that a shape wants: tensors whose sizes do not fit are the target `safetensors`. */
function pad({ dtype, shape, data }) {
  const width = { F32: 4, F16: 2, BF16: 2, U8: 1 }[dtype];
  const size = shape.reduce((a, b) => a * b, 1) * width;
  return data.length >= size ? data.subarray(0, size) : Buffer.concat([data, Buffer.alloc(size - data.length)]);
}

function input(random, { folders }) {
  const { config, bytes, tensors, metadata } = random.pick(folders);
  const kind = random.pick(['config', 'tensors', 'tensors', 'tensors', 'bytes', 'header']);
  const { quantization_config: own } = config;
  const changed = () => (random.chance(0.3) ? mutateJsonText(random, config) : JSON.stringify({ ...config, quantization_config: mutateJson(random, own) }));
  const files = { 'config.json': kind === 'config' ? changed() : JSON.stringify(config) };
  if (kind === 'tensors') files['model.safetensors'] = writeSafetensors(otherTensors(random, tensors), { metadata });
  else if (kind === 'header') files['model.safetensors'] = writeSafetensors(tensors, { metadata, change: (header) => mutateJson(random, header) });
  else files['model.safetensors'] = kind === 'bytes' ? mutateBytes(random, bytes, 4000) : bytes;
  return { files, baseFormat: random.pick([undefined, 'nf4']) };
}

async function run({ baseFormat }, _state, folder) {
  const model = await AutoModelForCausalLM.fromPretrained(folder, baseFormat === undefined ? {} : { baseFormat });
  try {
    await useModel(model);
  } finally {
    model.dispose();
  }
}

/** What `balora quantize` writes in a form. */
async function folderOf(form) {
  const folder = mkdtempSync(join(tmpdir(), 'balora-attack-nf4-'));
  try {
    const model = await AutoModelForCausalLM.fromPretrained(kBase);
    await saveNf4(model, folder, form);
    model.dispose();
    const bytes = readFileSync(join(folder, 'model.safetensors'));
    const { tensors, metadata } = readSafetensors(bytes);
    return { config: JSON.parse(readFileSync(join(folder, 'config.json'), 'utf8')), bytes, tensors, metadata };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

export default {
  what: 'folders of models in NF4: configuration, codes and factors',
  open: async () => ({ folders: await Promise.all(kForms.map(folderOf)) }),
  input,
  run,
  mentions: () => ['model', 'config.json'],
};
