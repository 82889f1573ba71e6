// Text generation: options of any type, generation_config.json, stop strings, prompts of every form, chat templates and conversations.
import { cpSync } from 'node:fs';
import { join } from 'node:path';
import { AdapterModel, AutoModelForCausalLM, generate, openChat, saveModel, setMemoryLimit, Tokenizer } from 'balora';
import { generationOptions } from '../../../dist/generate/options.js';
import { require } from '../finding.mjs';
import { modelFolders } from '../models.mjs';
import { anyJson, mutateJsonText, mutateText } from '../mutations.mjs';
import { kTokenizers } from '../tokenizers.mjs';

const kFile = 'generation_config.json';
/** The special tokens of the model's vocabulary, which are no text. */
const kSpecial = ['<s>', '</s>'];
const kConfig = {
  ...{ model_type: 'llama', hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2, num_attention_heads: 2 },
  ...{ num_key_value_heads: 1, vocab_size: 264, max_position_embeddings: 96, rms_norm_eps: 1e-5, hidden_act: 'silu' },
  ...{ bos_token_id: 262, eos_token_id: 263, tie_word_embeddings: false },
};
const kGenerationConfig = { bos_token_id: 262, eos_token_id: [263, 5], do_sample: true, temperature: 0.6, max_length: 20 };
const kTemplate =
  "{% for m in messages %}{{ bos_token + m['role'] + ': ' + m['content'] }}{% endfor %}{% if add_generation_prompt %}a: {% endif %}";
/** Families of the fixtures whose caches differ: whole, by windows, of an encoder. */
const kFamilies = ['llama-untied-gqa', 'mistral', 'gemma2', 'gemma3-text', 'gpt2', 't5'];
const kMostTokens = 24;

/** Values of the options: those that are allowed more often. */
const anyOption = (random, name) =>
  random.pick([
    () => random.pick(kUsual[name] ?? [1, 2]),
    () => random.pick(kUsual[name] ?? [1, 2]),
    () => random.number(),
    () => random.text(),
    () => random.pick([true, false, null, undefined, Number.NaN, Number.POSITIVE_INFINITY, -0, 5n, [], {}]),
    () => anyJson(random),
  ])();
const kUsual = {
  ...{ maxNewTokens: [1, 4, 9], minNewTokens: [0, 1, 3], doSample: [true, false], temperature: [0, 1e-6, 0.7, 1, 50], topK: [0, 1, 5, 1000] },
  ...{ topP: [0.01, 0.5, 1], minP: [0, 0.1, 1], repetitionPenalty: [0.1, 1, 1.3, 100], seed: [0, 1, 2 ** 40], batchSize: [1, 2, 16] },
  ...{ eosTokenIds: [[], [5], [263, 0]], numReturnSequences: [1, 2, 3], logprobs: [null, 0, 1, 3], skipSpecialTokens: [true, false] },
};
const kOptions = [...Object.keys(generationOptions).filter((name) => name !== 'stopStrings'), 'sharePrefix', 'stream'];

/** Prompts of any form; `family` names a model of the fixtures, whose prompts are ids. */
function anyPrompt(random) {
  const text = () => random.pick([random.text(), 'Call me', 'the cat sat', '<s>x</s>', 'a'.repeat(random.pick([90, 96, 3000]))]);
  const ids = () => random.several(random.chance(0.1) ? 0 : 1, 9, () => (random.chance(0.95) ? random.below(97) : random.number()));
  const message = () => (random.chance(0.9) ? { role: random.pick(['user', 'system', 'assistant']), content: text() } : anyJson(random));
  const several = (one) => random.pick([one, () => random.several(0, 3, one), one])();
  return random.pick([
    () => ({ prompt: several(text) }),
    () => ({ ids: several(ids) }),
    () => ({ messages: several(() => random.several(0, 3, message)) }),
    () => ({ ids: several(ids), family: random.pick(kFamilies) }),
    () => ({ [random.pick(['prompt', 'ids', 'messages'])]: anyJson(random) }),
    () => ({ prompt: text(), ids: ids() }),
  ])();
}

const kKinds = {
  options: (random) => {
    const names = random.several(0, 4, () => (random.chance(0.97) ? random.pick(kOptions) : random.text()));
    const options = Object.fromEntries(names.map((name) => [name, anyOption(random, name)]));
    return { prompt: random.chance(0.3) ? anyPrompt(random) : { ids: [1, 2, 3] }, options };
  },
  prompts: (random) => ({ prompt: anyPrompt(random), options: { maxNewTokens: random.pick([1, 3, 8]) } }),
  stops: (random) => ({
    prompt: { prompt: random.pick(['Call me', 'the cat', random.text()]) },
    seed: random.below(1000),
    cuts: random.several(1, 4, () => [random.below(40), random.integer(1, 4)]),
    texts: random.chance(0.3) ? [random.text()] : [],
  }),
  config: (random) => ({ files: { [kFile]: mutateJsonText(random, kGenerationConfig) } }),
  template: (random) => ({
    template: random.chance(0.8) ? mutateText(random, kTemplate) : random.text(),
    prompt: { messages: random.several(1, 3, () => ({ role: random.pick(['user', 'assistant']), content: random.text() })) },
  }),
  chat: (random) => ({
    options: Object.fromEntries(
      random.several(0, 2, () => [random.pick(['system', 'messages', 'adapter', 'stopStrings', 'temperature', 'maxNewTokens', 'seed', 'batchSize']), anyJson(random)]),
    ),
    turns: random.several(1, 4, () =>
      random.pick([
        () => ({ send: random.text() }),
        () => ({ send: random.text() }),
        () => ({ send: anyJson(random) }),
        () => ({ leave: random.text() }),
        () => ({ twice: random.text() }),
        () => ({ adapter: random.pick([null, 'default', random.text()]) }),
        () => ({ system: random.pick([null, random.text(), random.number()]) }),
        () => ({ reset: true }),
      ])(),
    ),
  }),
};

function input(random) {
  const kind = random.pick(['options', 'options', 'options', 'prompts', 'prompts', 'stops', 'stops', 'config', 'template', 'chat', 'chat']);
  return { kind, ...kKinds[kind](random) };
}

/** Numbers of tokens and sequences that are larger than these made smaller, so that an input takes no longer than it must. */
function atMost(options) {
  const limits = { maxNewTokens: kMostTokens, numReturnSequences: 4 };
  const large = Object.entries(limits).filter(([key, most]) => typeof options[key] === 'number' && options[key] > most);
  // An option that is undefined has its default, which is more tokens than an input should take.
  return { ...options, maxNewTokens: options.maxNewTokens === undefined ? 6 : options.maxNewTokens, ...Object.fromEntries(large) };
}

const promptsOf = ({ prompt, ids, messages }) => {
  if (prompt !== undefined) return typeof prompt === 'string' ? 1 : prompt.length;
  if (ids !== undefined) return typeof ids[0] === 'number' ? 1 : ids.length;
  return Array.isArray(messages[0]) ? messages.length : 1;
};

/** Generates, and checks what holds for every result. */
async function generated(model, { stream: isStream, ...options }, { vocabulary, context }) {
  const generation = generate(model, options);
  const texts = [];
  if (isStream) for await (const { sequence, text } of generation) texts[sequence] = (texts[sequence] ?? '') + text;
  const results = await generation.result;
  const wanted = promptsOf(options) * (options.numReturnSequences ?? 1);
  require(results.length === wanted, () => `${results.length} sequences instead of ${wanted}`);
  for (const [i, { text, tokens, logprobs, finishReason, promptTokens }] of results.entries()) {
    require(tokens.length >= 1 && tokens.length <= options.maxNewTokens, () => `${tokens.length} new tokens`);
    require(tokens.every((id) => Number.isInteger(id) && id >= 0 && id < vocabulary), () => `ids that are none: ${tokens}`);
    require(['stop', 'length'].includes(finishReason), () => `ended for ${finishReason}`);
    const full = tokens.length === options.maxNewTokens || promptTokens + tokens.length >= context || options.tokenizer === undefined;
    require(finishReason !== 'length' || full, () => `ended for its length after ${tokens.length} tokens`);
    require(!isStream || texts[i] === text, () => `the stream gave ${JSON.stringify(texts[i])}, the result has ${JSON.stringify(text)}`);
    const wantsLogprobs = options.logprobs !== undefined && options.logprobs !== null;
    require((logprobs !== null) === wantsLogprobs, () => `logprobs are ${logprobs}`);
    require(logprobs === null || (logprobs.length === tokens.length && logprobs.every((p) => p <= 1e-5)), () => `log-probabilities ${logprobs}`);
  }
  return results;
}

/** The text before the stop string that is complete first, and of several of those before the longest. */
function cutAt(text, stops) {
  for (let end = 1; end <= text.length; ++end) {
    const found = stops.filter((stop) => text.slice(0, end).endsWith(stop)).sort((a, b) => b.length - a.length)[0];
    if (found !== undefined) return text.slice(0, end - found.length);
  }
  return text;
}

async function useStops({ prompt, seed, cuts, texts }, { tuned, tokenizer, facts }) {
  const options = { ...prompt, tokenizer, maxNewTokens: kMostTokens, eosTokenIds: [], doSample: true, seed, temperature: 3 };
  const [{ text }] = await generated(tuned, options, facts);
  const found = cuts.map(([start, length]) => text.slice(start, start + length));
  const stops = [...found, ...texts].filter((stop) => stop !== '' && !kSpecial.includes(stop) && !/\p{Cs}/u.test(stop));
  const [cut] = await generated(tuned, { ...options, stopStrings: stops, stream: true }, facts);
  const expected = cutAt(text, stops);
  require(cut.text === expected, () => `with the stop strings ${JSON.stringify(stops)} ${JSON.stringify(text)} became ${JSON.stringify(cut.text)}`);
  require((cut.finishReason === 'stop') === (expected !== text || stops.some((stop) => text.endsWith(stop))), `ended for ${cut.finishReason}`);
}

async function useConfig({ origin, tokenizer, facts }, folder) {
  cpSync(origin, folder, { recursive: true });
  const model = await AutoModelForCausalLM.fromPretrained(folder);
  try {
    await generated(model, { prompt: 'Call me', tokenizer, maxNewTokens: 4 }, facts);
  } finally {
    model.dispose();
  }
}

/** A conversation; an error leaves it as it was, an answer adds two messages. */
async function useChat({ options, turns }, { tuned, withTemplate }) {
  const chat = openChat(tuned, { tokenizer: withTemplate, ...atMost(options) });
  let failure = null;
  try {
    for (const turn of turns) {
      const before = JSON.stringify(chat.messages);
      try {
        await take(chat, turn);
      } catch (error) {
        failure = error;
        require(JSON.stringify(chat.messages) === before, 'a refused turn changed the conversation');
      }
    }
  } finally {
    chat.dispose();
  }
  require(chat.cacheBytes === 0, 'a conversation that was disposed of has a cache');
  if (failure !== null) throw failure;
}

async function take(chat, turn) {
  const count = chat.messages.length;
  if ('adapter' in turn) chat.adapter = turn.adapter;
  else if ('system' in turn) chat.system = turn.system;
  else if ('reset' in turn) chat.reset();
  else if ('leave' in turn) {
    const answer = chat.send(turn.leave);
    for await (const _ of answer) break;
    await answer.result;
  } else if ('twice' in turn) {
    const answer = chat.send(turn.twice);
    let refused = null;
    try {
      chat.send('again');
    } catch (error) {
      refused = error;
    }
    await answer.result;
    require(refused?.code === 'ERR_ARGUMENT', () => `two answers at the same time: ${refused}`);
  } else {
    const { text } = await chat.send(turn.send).result;
    require(chat.messages.length === count + 2, 'an answer is no part of the conversation');
    require(chat.messages.at(-1).content === text, 'the conversation has another answer');
  }
}

async function run(given, state, folder) {
  const { kind, prompt, options } = given;
  if (kind === 'stops') return useStops(given, state);
  if (kind === 'config') return useConfig(state, folder);
  if (kind === 'chat') return useChat(given, state);
  const { family, ...prompts } = prompt;
  const { model, facts } = family === undefined ? { model: state.tuned, facts: state.facts } : state.families[family];
  const tokenizer = kind === 'template' ? Tokenizer.fromJson(kTokenizers[0].json, { ...kTokenizers[0].config, chat_template: given.template }) : state.withTemplate;
  const all = { ...prompts, ...(family === undefined && { tokenizer }), ...atMost(options ?? {}) };
  return generated(model, all, facts);
}

export default {
  what: 'generation: options, prompts, stop strings, generation_config.json, chat templates, conversations',
  share: 1.5,
  open: async ({ folder }) => {
    setMemoryLimit(2 ** 28);
    const origin = join(folder, 'origin');
    const made = await AutoModelForCausalLM.fromConfig(kConfig, { seed: 3 });
    await saveModel(made, origin);
    made.dispose();
    const tokenizer = Tokenizer.fromJson(kTokenizers[0].json, kTokenizers[0].config);
    const withTemplate = Tokenizer.fromJson(kTokenizers[0].json, { ...kTokenizers[0].config, chat_template: kTemplate });
    const model = await AutoModelForCausalLM.fromPretrained(origin);
    const tuned = await AdapterModel.create(model, { r: 2, loraAlpha: 2 });
    const all = modelFolders().filter(({ name }) => kFamilies.includes(name));
    const families = Object.fromEntries(
      await Promise.all(
        all.map(async ({ name, folder: path, loader, config }) => {
          const context = config.max_position_embeddings ?? Number.POSITIVE_INFINITY;
          return [name, { model: await loader.fromPretrained(path), facts: { vocabulary: config.vocab_size, context } }];
        }),
      ),
    );
    return { origin, tokenizer, withTemplate, tuned, families, facts: { vocabulary: kConfig.vocab_size, context: kConfig.max_position_embeddings } };
  },
  input,
  run,
  accepts: ['ERR_OUT_OF_MEMORY'],
  mentions: ({ kind }, { code }) => (kind === 'config' && code === 'ERR_FORMAT' ? [kFile] : []),
  quotes: /chat template/,
  peakMiB: 500,
};
