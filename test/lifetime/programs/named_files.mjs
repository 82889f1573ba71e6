// Opens files of every kind through the library, each in the place of one that a user would name, and prints what came of it: a line of
// JSON for each.
//
//   node named_files.mjs FOLDER BAD    FOLDER has a model, and an adapter with its run; BAD takes the place of one file after the other
import { cpSync, mkdirSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { AdapterModel, AutoModelForCausalLM, Tokenizer } from '../../../dist/index.js';
import { openRows } from '../../../dist/data/open_rows.js';
import { readConfigFile } from '../../../dist/cli/config_file.js';
import { listTensors } from '../../../dist/cli/tensor_view.js';
import { generate } from '../../../dist/generate/generate.js';
import { GgufFile, loadSafetensors } from '../../../dist/io/index.js';
import { saveModel } from '../../../dist/models/index.js';
import { latestCheckpoint } from '../../../dist/train/checkpoints.js';
import { acquireLock } from '../../../dist/io/folder_lock.js';

const [folder, bad] = process.argv.slice(2);
const model = await AutoModelForCausalLM.fromPretrained(join(folder, 'model'));
const load = (path) => AutoModelForCausalLM.fromPretrained(path);

let count = 0;
/** A copy of a folder in which `name` is BAD, and other files are as given. */
function copyWith(source, name, files = {}) {
  const copy = join(folder, `copy-${count++}`);
  mkdirSync(copy);
  if (source !== null) cpSync(join(folder, source), copy, { recursive: true });
  for (const [file, text] of Object.entries(files)) {
    rmSync(join(copy, file), { force: true });
    if (text !== null) writeFileSync(join(copy, file), text);
  }
  rmSync(join(copy, name), { force: true });
  symlinkSync(bad, join(copy, name));
  return copy;
}
/** BAD under a name of its own. */
const named = (name) => join(copyWith(null, name), name);

const kCheckpoints = 'adapter/run/checkpoints';
const kCheckpoint = { device: 'cpu', onDamaged: () => {} };
const [step] = readdirSync(join(folder, kCheckpoints));
const kIndex = 'model.safetensors.index.json';
const noWeights = { 'model.safetensors': null };
const sharded = {
  ...noWeights,
  [kIndex]: JSON.stringify({ weight_map: { 'model.norm.weight': 'shard.safetensors' } }),
};
const ways = {
  'config.json': () => load(copyWith('model', 'config.json')),
  'model.safetensors': () => load(copyWith('model', 'model.safetensors')),
  index: () => load(copyWith('model', kIndex, noWeights)),
  shard: () => load(copyWith('model', 'shard.safetensors', sharded)),
  'a .gguf file': () => load(named('x.gguf')),
  'a folder with a .gguf file': () => load(copyWith(null, 'x.gguf')),
  'a vocabulary': () => Tokenizer.fromPretrained(named('x.gguf')),
  'a path without extension': () => load(named('model')),
  ...Object.fromEntries(
    ['tokenizer.json', 'tokenizer_config.json', 'special_tokens_map.json', 'chat_template.jinja'].map(
      (name) => [name, () => Tokenizer.fromPretrained(copyWith('model', name))],
    ),
  ),
  'Tokenizer.fromFile': () => Tokenizer.fromFile(named('tokenizer.json')),
  ...Object.fromEntries(
    ['adapter_config.json', 'adapter_model.safetensors'].map((name) => [
      name,
      () => AdapterModel.fromPretrained(model, copyWith('adapter', name)),
    ]),
  ),
  ...Object.fromEntries(
    ['jsonl', 'json', 'tsv', 'csv', 'parquet', 'txt'].map((end) => [
      `data.${end}`,
      () => openRows(named(`data.${end}`)),
    ]),
  ),
  loadSafetensors: () => loadSafetensors(named('x.safetensors')),
  'GgufFile.open': async () => GgufFile.open(named('x.gguf')),
  inspect: () => listTensors(named('x.safetensors')),
  '--config': () => readConfigFile(named('options.yaml'), { table: {}, flags: {} }),
  'generation_config.json': async () => {
    const own = await load(copyWith('model', 'generation_config.json'));
    await generate(own, { ids: [[1]], maxNewTokens: 1 }).result;
  },
  'a saved file beside the weights': async () => {
    const own = await load(copyWith('model', 'tokenizer.json'));
    await saveModel(own, join(folder, 'saved'));
  },
  lock: () => acquireLock(join(copyWith(null, 'lock'), 'lock')),
  ...Object.fromEntries(
    ['state.json', 'state.safetensors', 'SHA256SUMS'].map((name) => [
      `checkpoint: ${name}`,
      () => latestCheckpoint(copyWith(kCheckpoints, join(step, name)), kCheckpoint),
    ]),
  ),
};
for (const [what, open] of Object.entries(ways)) {
  const said = await open().then(
    () => ({ code: null, message: 'it was opened' }),
    ({ name, code, message, path }) => ({ name, code, message, path }),
  );
  console.log(JSON.stringify({ what, ...said }));
}
