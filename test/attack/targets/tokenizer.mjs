// tokenizer.json and the files beside it, of every kind of vocabulary, changed in their structure; then texts to ids and back.
import { Tokenizer } from 'balora';
import { require } from '../finding.mjs';
import { mutateJsonText } from '../mutations.mjs';
import { kTokenizers } from '../tokenizers.mjs';

const kTextsToEncode = ['the cat sat.', 'Call me Ishmael', '  the\n\ncat\t', 'naïve 🐋 <s> </s>', 'x'.repeat(2000), '123456 7.5'];

function input(random) {
  const at = random.below(kTokenizers.length);
  const { json, config } = kTokenizers[at];
  const kind = random.pick(['valid', 'tokenizer', 'tokenizer', 'tokenizer', 'tokenizer', 'config', 'map', 'both']);
  const changed = (name, value) => (kind === name || kind === 'both' ? mutateJsonText(random, value) : JSON.stringify(value));
  const files = { 'tokenizer.json': changed('tokenizer', json), 'tokenizer_config.json': changed('config', config) };
  if (kind === 'map') files['special_tokens_map.json'] = mutateJsonText(random, { eos_token: '</s>', unk_token: { content: '<unk>' } });
  return { kind, at, text: random.chance(0.7) ? random.pick(kTextsToEncode) : random.several(0, 5, () => random.text()).join(' '), files };
}

async function run({ kind, text }, _state, folder) {
  const tokenizer = await Tokenizer.fromPretrained(folder);
  const ids = tokenizer.encode(text);
  require(ids.every((id) => Number.isInteger(id) && id >= 0), () => `ids that are none: ${ids.slice(0, 20)}`);
  require(kind !== 'valid' || ids.every((id) => id < tokenizer.vocabSize), 'an id beyond the vocabulary');
  tokenizer.decode(ids);
  tokenizer.decode(ids, { skipSpecialTokens: true });
  tokenizer.encodePair(text, 'the', { maxLength: 64 });
  for (const id of ids.slice(0, 5)) tokenizer.tokenBytes(id);
  if (tokenizer.chatTemplate !== null) tokenizer.renderChat([{ role: 'user', content: text }], { addGenerationPrompt: true });
  await tokenizer.savePretrained(`${folder}/saved`);
}

export default {
  what: 'tokenizer.json, tokenizer_config.json and special_tokens_map.json of every kind of vocabulary',
  share: 1.5,
  input,
  run,
  quotes: /^chat template|Unknown [\w-]+ type/,
};
