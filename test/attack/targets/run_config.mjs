// Configuration files of runs, in YAML and JSON: what the file's schema allows is read, and everything else is refused by its key.
import { join } from 'node:path';
import { stringify } from 'yaml';
import { readConfigFile } from '../../../dist/cli/config_file.js';
import { checkConfig, fileOptions } from '../../../dist/cli/option_table.js';
import { kTrainOptions } from '../../../dist/cli/train_options.js';
import { kebab, snake } from '../../../dist/options/option.js';
import { require } from '../finding.mjs';
import { anyJson, mutateJson, mutateText } from '../mutations.mjs';

const kGood = {
  ...{ model: 'm', data: 'd.jsonl', output: 'out', method: 'balora', r: 8, 'lora-alpha': 16, 'learning-rate': 2e-5 },
  ...{ 'max-steps': 10, dtype: 'bf16', 'target-modules': ['q_proj', 'v_proj'], 'memory-budget': '1.2GiB', shuffle: true },
};
const kYaml = ['&a [1, *a]', '*b', '<<: {r: 4}', '!!binary aGk=', '!!set {a, b}', '2024-01-01', '? [a, b]\n: c', '|\n  text', '- x', '0o17', '.inf', '~'];

function input(random, { names }) {
  const options = Object.fromEntries(
    random.several(0, 6, () => {
      const key = random.pick(names);
      return [random.pick([key, kebab(key), snake(key)]), anyJson(random)];
    }),
  );
  const config = random.pick([() => mutateJson(random, kGood), () => ({ ...kGood, ...options }), () => options])();
  const text = random.chance(0.5) ? JSON.stringify(config, null, random.pick([0, 2])) : stringify(config);
  const changed = random.pick([
    () => text,
    () => text,
    () => mutateText(random, text),
    () => `${text}\nextra: ${random.pick(kYaml)}\n`,
    () => `a: &a ["x","x"]\n${random.several(1, 12, (i) => `k${i}: &k${i} [*a,*a,*a,*a,*a,*a,*a,*a,*a]`).join('\n')}\n`,
  ])();
  return { files: { [`run${random.pick(['.yaml', '.json', ''])}`]: changed } };
}

async function run({ files }, _state, folder) {
  const [name] = Object.keys(files);
  const path = join(folder, name);
  const values = checkConfig(kTrainOptions, await readConfigFile(path, { table: kTrainOptions, flags: {} }), path);
  for (const key of Object.keys(values)) require(Object.hasOwn(kTrainOptions, key), `an option called ${key} was accepted`);
  require(Object.getPrototypeOf(values) === Object.prototype, 'the prototype of the options was changed');
}

export default {
  what: 'configuration files of runs, in YAML and JSON',
  open: () => ({ names: Object.keys(fileOptions(kTrainOptions)) }),
  input,
  run,
  mentions: ({ files }) => Object.keys(files),
};
