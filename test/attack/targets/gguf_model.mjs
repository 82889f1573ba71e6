// A whole model in a GGUF file, its hyperparameters, vocabulary and tensors changed in their structure, loaded with its tokenizer.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { AutoModelForCausalLM, setMemoryLimit, Tokenizer } from 'balora';
import { readGguf, writeGguf } from '../formats.mjs';
import { kFixtures, useModel } from '../models.mjs';
import { mutateBytes } from '../mutations.mjs';
import { vocabulary } from '../tokenizers.mjs';

const kFile = 'model.gguf';
const kArray = 9;

/** A value of the same type that is another; integers stay in the range of the type. */
function otherValue(random, { type, value }) {
  if (type === 8) return random.pick([random.text().replace(/[\ud800-\udfff]/g, '?'), value.slice(1), `${value}x`]);
  if (type === 7) return random.below(2);
  if (type === 6 || type === 12) return random.pick([0, -1, 1e-30, 1e30, Number.NaN, Number.POSITIVE_INFINITY]);
  if (type === 10 || type === 11) return random.pick([0n, 1n, 2n ** 53n]);
  if (type !== kArray) return random.pick([0, 1, 2, 3, 7, 100, ...(type > 3 ? [2 ** 31 - 1] : [])]);
  const items = [...value.items];
  if (items.length === 0) return value;
  const at = random.below(items.length);
  random.pick([
    () => items.splice(at, random.pick([1, 1, 50, items.length])),
    () => items.push(...items.slice(at, at + 3)),
    () => items.splice(at, 1, otherValue(random, { type: value.type, value: items[at] })),
    () => items.splice(at, 1, items[random.below(items.length)]),
  ])();
  return { ...value, items };
}

const kChanges = [
  (random, { metadata }) => {
    const pair = random.pick(metadata);
    pair.value = otherValue(random, pair);
  },
  (random, { metadata }) => {
    metadata.splice(random.below(metadata.length), 1);
  },
  // Another type under the same key.
  (random, { metadata }) => {
    const pair = random.pick(metadata);
    Object.assign(pair, random.pick([{ type: 4, value: 7 }, { type: 8, value: 'x' }, { type: 7, value: 1 }, { type: 6, value: 0.5 }]));
  },
  (random, { metadata }) => {
    const pair = random.pick(metadata);
    Object.assign(pair, { type: kArray, value: { type: 4, items: random.several(0, 4, () => random.below(100)) } });
  },
  (random, { tensors }) => {
    tensors.splice(random.below(tensors.length), 1);
  },
  (random, { tensors }) => {
    random.pick(tensors).name += random.pick(['x', '.weight', '']);
  },
  (random, { tensors }) => {
    const tensor = random.pick(tensors);
    tensor.shape = random.pick([[...tensor.shape].reverse(), [1, ...tensor.shape], [tensor.shape.reduce((a, b) => a * b, 1)]]);
  },
];

function input(random, { model, vocabularies }) {
  const changed = structuredClone(model);
  // The file of the fixtures has no vocabulary that a tokenizer can be made of: it gets one.
  const kept = changed.metadata.filter(({ key }) => !key.startsWith('tokenizer.'));
  changed.metadata = [...kept, ...structuredClone(random.pick(vocabularies))];
  for (let left = random.integer(0, 3); left > 0; --left) random.pick(kChanges)(random, changed);
  const bytes = writeGguf(changed);
  return { text: random.pick(['the cat', 'Call me Ishmael.', random.text()]), files: { [kFile]: random.chance(0.1) ? mutateBytes(random, bytes, 4000) : bytes } };
}

async function run({ text }, _state, folder) {
  const path = join(folder, kFile);
  const failures = [];
  const attempt = (work) => work().catch((error) => failures.push(error));
  await attempt(async () => {
    const tokenizer = await Tokenizer.fromPretrained(path);
    tokenizer.decode(tokenizer.encode(text));
    if (tokenizer.chatTemplate !== null) tokenizer.renderChat([{ role: 'user', content: text }]);
    await tokenizer.savePretrained(join(folder, 'saved'));
  });
  await attempt(async () => {
    const model = await AutoModelForCausalLM.fromPretrained(path);
    await useModel(model).finally(() => model.dispose());
  });
  if (failures.length > 0) throw failures.find(({ code }) => !/^ERR_(ARGUMENT|FORMAT|UNSUPPORTED)$/.test(code)) ?? failures[0];
}

export default {
  what: "GGUF models: hyperparameters, vocabulary, tensors' names and shapes",
  share: 1.5,
  open: () => {
    setMemoryLimit(256 * 2 ** 20);
    const model = readGguf(readFileSync(join(kFixtures, 'quant/tiny_llama.gguf')));
    const size = model.tensors.find(({ name }) => name === 'token_embd.weight').shape[0];
    return { model, vocabularies: ['gpt2', 'llama'].map((kind) => vocabulary(kind, size)) };
  },
  input,
  run,
  accepts: ['ERR_OUT_OF_MEMORY'],
  mentions: (_input, { code }) => (code === 'ERR_ARGUMENT' || code === 'ERR_OUT_OF_MEMORY' ? [] : [kFile, 'chat template']),
  quotes: /^chat template/,
};
