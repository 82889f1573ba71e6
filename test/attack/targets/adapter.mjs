// Folders of adapters: adapter_config.json and adapter_model.safetensors, either of them changed, loaded onto their base.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { AdapterModel, AutoModelForCausalLM } from 'balora';
import { readSafetensors, writeSafetensors } from '../formats.mjs';
import { kFixtures, useModel } from '../models.mjs';
import { mutateBytes, mutateJson, mutateJsonText } from '../mutations.mjs';

const kBase = join(kFixtures, 'architectures/llama-untied-gqa');
const kFolders = ['adapter', 'adapter-dora', 'adapter-lora-bias', 'adapter-one-layer', 'adapter-pattern', 'adapter-regex', 'adapter-rslora'];

/** The tensors with one of them changed in name, shape, type or values. */
function otherTensors(random, tensors) {
  const copy = tensors.map(({ name, dtype, shape, data }) => ({ name, dtype, shape, data: Buffer.from(data) }));
  const at = random.below(copy.length);
  const tensor = copy[at];
  random.pick([
    () => copy.splice(at, 1),
    () => copy.push({ ...tensor, name: `${tensor.name}.more` }),
    () => Object.assign(tensor, { name: tensor.name.replace(random.pick(['lora_A', 'base_model.', '.weight', 'model', '0']), random.pick(['lora_B', '', 'x', '7'])) }),
    () => Object.assign(tensor, { shape: [...tensor.shape].reverse() }),
    () => Object.assign(tensor, { shape: [tensor.data.length / 4] }),
    () => Object.assign(tensor, { dtype: random.pick(['F32', 'I32', 'F16']), shape: [0, tensor.shape.at(-1) ?? 1], data: Buffer.alloc(0) }),
    () => Object.assign(tensor, { dtype: 'I32' }),
    () => tensor.data.writeFloatLE(random.pick([Number.NaN, Number.POSITIVE_INFINITY, 3e38]), 0),
    () => Object.assign(tensor, { dtype: 'F64', shape: [tensor.data.length / 8], data: tensor.data.subarray(0, 8 * Math.floor(tensor.data.length / 8)) }),
  ])();
  return copy;
}

function input(random, { folders }) {
  const { config, bytes, tensors, metadata } = random.pick(folders);
  const kind = random.pick(['config', 'config', 'tensors', 'tensors', 'bytes', 'header']);
  const files = { 'adapter_config.json': kind === 'config' ? mutateJsonText(random, config) : JSON.stringify(config) };
  if (kind === 'tensors') files['adapter_model.safetensors'] = writeSafetensors(otherTensors(random, tensors), { metadata });
  else if (kind === 'header') files['adapter_model.safetensors'] = writeSafetensors(tensors, { metadata, change: (header) => mutateJson(random, header) });
  else files['adapter_model.safetensors'] = kind === 'bytes' ? mutateBytes(random, bytes, 4000) : bytes;
  return { files };
}

async function run(_input, { model }, folder) {
  const tuned = await AdapterModel.fromPretrained(model, folder);
  try {
    await useModel(model);
    await tuned.savePretrained(join(folder, 'saved'));
  } finally {
    tuned.dispose();
  }
}

export default {
  what: 'adapter folders: configuration and tensors',
  share: 1.5,
  open: async () => ({
    model: await AutoModelForCausalLM.fromPretrained(join(kBase, 'model')),
    folders: kFolders.map((name) => {
      const bytes = readFileSync(join(kBase, name, 'adapter_model.safetensors'));
      const { tensors, metadata } = readSafetensors(bytes);
      const config = JSON.parse(readFileSync(join(kBase, name, 'adapter_config.json'), 'utf8'));
      return { config, bytes, tensors, metadata };
    }),
  }),
  input,
  run,
};
