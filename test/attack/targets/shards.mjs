// A model in several files with an index, any of which is damaged.
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { AutoModelForCausalLM } from 'balora';
import { kFixtures, useModel } from '../models.mjs';
import { mutateBytes, mutateJsonText } from '../mutations.mjs';

const kFolder = join(kFixtures, 'architectures/llama-sharded/model');

function input(random, { whole }) {
  const files = { ...whole };
  const name = random.pick(['model.safetensors.index.json', ...Object.keys(files)]);
  if (random.chance(0.05)) delete files[name];
  else if (random.chance(0.05)) files[name] = files[random.pick(Object.keys(files))];
  else if (name.endsWith('.json')) files[name] = mutateJsonText(random, JSON.parse(files[name]));
  else files[name] = mutateBytes(random, files[name], 8 + Number(files[name].readBigUInt64LE(0)));
  return { files };
}

async function run(_input, _state, folder) {
  const model = await AutoModelForCausalLM.fromPretrained(folder);
  try {
    await useModel(model);
  } finally {
    model.dispose();
  }
}

export default {
  what: 'a sharded model: its index, its configuration and its shards',
  open: () => ({ whole: Object.fromEntries(readdirSync(kFolder).map((name) => [name, readFileSync(join(kFolder, name))])) }),
  input,
  run,
  mentions: () => ['model', 'config.json'],
};
