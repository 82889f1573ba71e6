// config.json of every family, changed in its structure, beside its own weights or with random ones.
import { setMemoryLimit } from 'balora';
import { linkWeights, modelFolders, useModel } from '../models.mjs';
import { mutateJson, mutateJsonText } from '../mutations.mjs';

const kFile = 'config.json';

function input(random, { folders }) {
  const at = random.below(folders.length);
  const { config, loader } = folders[at];
  if (loader.fromConfig && random.chance(0.3)) {
    const changed = mutateJson(random, config);
    return { at, config: changed !== null && typeof changed === 'object' && !Array.isArray(changed) ? changed : config };
  }
  return { at, files: { [kFile]: random.chance(0.05) ? JSON.stringify(config) : mutateJsonText(random, config) } };
}

function load({ at, config }, { folders }, folder) {
  const { folder: origin, loader } = folders[at];
  if (config !== undefined) return loader.fromConfig(config);
  linkWeights(origin, folder);
  return loader.fromPretrained(folder);
}

async function run(input, state, folder) {
  const model = await load(input, state, folder);
  try {
    await useModel(model);
  } finally {
    model.dispose();
  }
}

export default {
  what: 'config.json of every model family, with its weights or random ones',
  share: 1.5,
  open: () => {
    setMemoryLimit(64 * 2 ** 20);
    return { folders: modelFolders() };
  },
  input,
  run,
  // A configuration alone may ask for a model that is too large, or whose numbers overflow.
  accepts: ['ERR_OUT_OF_MEMORY'],
  mentions: ({ config }, error) => (config || error.code === 'ERR_ARGUMENT' ? [] : [kFile, 'safetensors', 'configuration']),
  peakMiB: 600,
};
