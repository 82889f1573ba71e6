// Options of the library's functions: a value that an option's declaration refuses is an error that names the option; any other runs.
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  AdapterModel,
  arrayRows,
  AutoModelForCausalLM,
  AutoModelForSequenceClassification,
  Batches,
  demoCheckpoint,
  evaluate,
  evaluateClassifier,
  generate,
  LabelledBatches,
  openRows,
  resolveMethod,
  saveMerged,
  saveModel,
  Seq2SeqBatches,
  setDefaultDevice,
  setMemoryLimit,
  setNumThreads,
  Tokenizer,
  Trainer,
  warmUpHead,
} from 'balora';
import { ones, randn, zeros } from 'balora/ops';
import { loraOptions } from '../../../dist/adapters/lora_options.js';
import { REGULARIZER_OPTIONS } from '../../../dist/train/regularizers.js';
import { trainerOptions } from '../../../dist/train/schema.js';
import { ArgumentError } from '../../../dist/errors.js';
import { snake } from '../../../dist/options/option.js';
import { Finding, require } from '../finding.mjs';
import { anyJson } from '../mutations.mjs';

/** Options that name a place on the disk, which is never a random one. */
const kPlaces = ['output', 'overwrite', 'resume'];
/** The limit of memory in bytes, beyond which an allocation is an error. */
const kMemory = 2 ** 29;
const kDataOptions = ['batchSize', 'shuffle', 'seed', 'onProgress', 'onWarning', 'signal'];
const kBatchOptions = ['maxLength', 'packing', 'padding', 'onUnsupervised', 'cacheBytes', 'promptTemplate', 'promptField', 'responseField'];
const kLabelledOptions = ['maxLength', 'groupByLength', 'glue', 'textField', 'textPairField', 'labelField', 'problemType', 'numLabels', 'labelNames'];
const kLoaderOptions = ['dtype', 'device', 'trainable', 'checkFinite', 'ignoreKeys', 'onProgress', 'revision', 'timeoutMs', 'signal', 'onDownload'];
const kGenerateOptions = ['maxNewTokens', 'minNewTokens', 'doSample', 'temperature', 'topK', 'topP', 'minP', 'repetitionPenalty', 'seed', 'stopStrings', 'eosTokenIds', 'numReturnSequences', 'batchSize', 'logprobs', 'skipSpecialTokens', 'adapter', 'signal', 'tokenizer', 'prompt', 'messages', 'ids'];
const kObjects = ['tuned', 'data', 'evalData', 'loss', 'terms', 'afterBackward', 'callbacks', 'signal'];
/** A configuration of a classifier that is made in a millisecond. */
const kTiny = {
  ...{ model_type: 'bert', vocab_size: 512, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1 },
  ...{ num_attention_heads: 1, max_position_embeddings: 64, type_vocab_size: 2 },
};

/** A value of any type, more often a small number or a word that some option knows. */
const anyValue = (random, words) =>
  random.pick([
    () => random.pick([0, 1, 2, 3, 4, 8, 0.1, 0.5]),
    () => random.number(),
    () => random.pick([true, false, null]),
    () => random.pick([...words, 'min', 'max', 'cpu', 'f32', 'bf16', 'none', '1GiB', 'pissa', 'balora', 'all-linear']),
    () => random.text(),
    () => random.pick([Number.NaN, Number.POSITIVE_INFINITY, -0, 5n, undefined]),
    () => random.pick([() => {}, () => 1, Symbol('x'), new Map(), new AbortController(), AbortSignal.timeout(1e6), Object.create(null)]),
    () => [random.number()],
    () => anyJson(random),
    () => ({ [random.pick(['q_proj', 'down_proj', '(', 'a'])]: random.number() }),
  ])();

const wordsOf = (table) => [...new Set(Object.values(table).flatMap(({ choices = [] }) => choices))];

/** Where options go: the table that declares them, or their names, and what is done with them. */
const kPlacesOfOptions = {
  trainer: {
    table: Object.fromEntries(Object.entries(trainerOptions).filter(([key]) => !kPlaces.includes(key))),
    use: ({ tuned, data }, options) => train({ tuned, data, ...options }),
  },
  objects: { names: kObjects, use: ({ tuned, data }, options) => train({ tuned, data, ...options }) },
  methods: {
    names: ['adapter', 'regularizers', 'task'],
    use: async (_state, options) => {
      resolveMethod('balora', options);
    },
  },
  regularizers: { table: REGULARIZER_OPTIONS, use: ({ tuned, data }, regularizers) => train({ tuned, data, regularizers }) },
  adapter: {
    table: loraOptions,
    use: async ({ other }, options) => (await AdapterModel.create(other, options)).dispose(),
  },
  creation: {
    names: ['seed', 'name', 'onProgress'],
    use: async ({ other }, options) => (await AdapterModel.create(other, { r: 2 }, options)).dispose(),
  },
  saving: {
    names: ['dtype', 'replace', 'form', 'folder'],
    use: async ({ tuned, other, folder }, { folder: given = folder, ...options }, choice) => {
      const to = typeof given === 'string' ? folder : given;
      if (choice === 0) await saveModel(other, to, options);
      else if (choice === 1) await saveMerged(tuned, to, options);
      else await tuned.savePretrained(to, options);
    },
  },
  batches: {
    names: [...kDataOptions, ...kBatchOptions],
    use: async ({ rows, tokenizer }, options) => useBatches(await Batches.create(rows, tokenizer, options)),
  },
  pairs: {
    names: [...kDataOptions, 'decoderStartTokenId', 'maxSourceLength', 'maxTargetLength', 'promptTemplate', 'promptField'],
    use: async ({ rows, tokenizer }, options) => useBatches(await Seq2SeqBatches.create(rows, tokenizer, { decoderStartTokenId: 0, ...options })),
  },
  labels: {
    names: [...kDataOptions, ...kLabelledOptions],
    use: async ({ labelledRows, tokenizer }, options) => useBatches(await LabelledBatches.create(labelledRows, tokenizer, options)),
  },
  rows: {
    names: ['columns', 'signal', 'separator'],
    use: async ({ file }, options) => (await openRows(file, options)).close(),
  },
  tokens: {
    names: ['addSpecialTokens', 'parseSpecial', 'maxLength', 'skipSpecialTokens', 'text', 'ids'],
    use: async ({ tokenizer }, { text = 'a', ids = [1, 2], ...options }, choice) => {
      if (choice === 0) tokenizer.encode(text, options);
      else if (choice === 1) tokenizer.encodePair(text, text, options);
      else tokenizer.decode(ids, options);
    },
  },
  evaluation: { names: ['kl', 'signal', 'onProgress'], use: ({ tuned, data }, options) => evaluate(tuned, data.batches(0), options) },
  classifier: {
    names: ['signal', 'onProgress'],
    use: ({ classifier, labelled }, options) => evaluateClassifier(classifier, labelled.batches(), options),
  },
  probe: {
    names: ['epochs', 'learningRate', 'weightDecay', 'batchSize', 'seed', 'signal'],
    use: ({ classifier, labelled }, options) => warmUpHead(classifier, labelled, { epochs: 1, ...atMost(options, { epochs: 20 }) }),
  },
  generation: {
    names: kGenerateOptions,
    use: ({ tuned }, options) => {
      const prompt = ['prompt', 'messages', 'ids'].some((key) => Object.hasOwn(options, key)) ? {} : { ids: [1, 2] };
      return generate(tuned, { maxNewTokens: 2, ...prompt, ...atMost(options, { maxNewTokens: 8, numReturnSequences: 8 }) }).result;
    },
  },
  loader: {
    names: kLoaderOptions,
    use: async (_state, options) => (await AutoModelForCausalLM.fromPretrained(demoCheckpoint, options)).dispose(),
  },
  tensors: {
    names: ['shape', 'dtype', 'device', 'seed', 'deviation', 'requiresGrad'],
    use: async (_state, { shape = [2], ...options }, random) => {
      const made = [zeros, ones, randn][random](shape, { seed: 1, ...options });
      if (made.size < 1e6) await made.data();
      made.dispose();
    },
  },
  runtime: {
    names: ['threads', 'limit', 'device'],
    use: async (_state, { threads, limit, device }) => {
      try {
        if (threads !== undefined) setNumThreads(threads);
        if (limit !== undefined) setMemoryLimit(limit);
        if (device !== undefined) setDefaultDevice(device);
      } finally {
        setNumThreads(1);
        setMemoryLimit(kMemory);
        setDefaultDevice('cpu');
      }
    },
  },
};

/** Options with numbers that are larger than these made smaller, so that an input takes no longer than it must. */
function atMost(options, limits) {
  const large = Object.entries(limits).filter(([key, most]) => typeof options[key] === 'number' && options[key] > most);
  return { ...options, ...Object.fromEntries(large) };
}

async function useBatches(data) {
  for await (const batch of data.batches(0)) require(batch.inputIds.length > 0, 'a batch without tokens');
}

/** Runs at most two steps. */
async function train(options) {
  let steps = 0;
  for await (const event of new Trainer({ maxSteps: 2, ...options }).run()) if (event.type === 'step' && ++steps === 2) break;
}

/** Whether an option's declaration allows a value; PEFT's null stands for an option of an adapter that is not set. */
function allows(option, value, table) {
  if (value === undefined || (value === null && (option.default === null || table === loraOptions))) return true;
  return option.schema.safeParse(value).success;
}

function input(random) {
  const where = random.pick(Object.keys(kPlacesOfOptions));
  const { table, names = Object.keys(table) } = kPlacesOfOptions[where];
  const words = table ? wordsOf(table) : [];
  const options = Object.fromEntries(
    random.several(1, random.pick([1, 1, 3]), () => [random.chance(0.97) ? random.pick(names) : random.text(), anyValue(random, words)]),
  );
  return { where, options, choice: random.below(3) };
}

async function run({ where, options, choice }, state) {
  const { table, use } = kPlacesOfOptions[where];
  const bad = table ? Object.keys(options).filter((key) => Object.hasOwn(table, key) && !allows(table[key], options[key], table)) : [];
  try {
    await use(state, options, choice);
  } catch (error) {
    if (bad.length === 0 || !(error instanceof ArgumentError)) throw error;
    const named = Object.keys(options).some((key) => error.message.includes(key) || error.message.includes(snake(key)));
    require(named, () => `the message names no option of ${Object.keys(options)}: ${error.message}`);
    throw error;
  }
  if (bad.length > 0) throw new Finding(`accepted although the declaration refuses it: ${bad.map((key) => `${key} = ${String(options[key])}`)}`);
}

export default {
  what: 'options of every function of the library, of any type and size',
  share: 2,
  open: async ({ folder }) => {
    setMemoryLimit(kMemory);
    const load = () => AutoModelForCausalLM.fromPretrained(demoCheckpoint);
    const tokenizer = await Tokenizer.fromPretrained(demoCheckpoint);
    const rows = arrayRows([{ prompt: 'Call me', response: ' Ishmael.' }, { prompt: 'There she', response: ' blows!' }]);
    const data = await Batches.create(rows, tokenizer, { maxLength: 24, promptTemplate: 'none' });
    const file = join(folder, 'rows.tsv');
    writeFileSync(file, 'text\tlabel\na\t0\nb\t1\n');
    const labelledRows = await openRows(file);
    const labelled = await LabelledBatches.create(labelledRows, tokenizer);
    const classifier = await AutoModelForSequenceClassification.fromConfig(kTiny, { numLabels: 2 });
    const more = { folder: join(folder, 'saved'), file, labelledRows, labelled, classifier };
    return { ...more, rows, tokenizer, data, other: await load(), tuned: await AdapterModel.create(await load(), { r: 2, loraAlpha: 2 }) };
  },
  input,
  run,
  accepts: ['ERR_NOT_FINITE', 'ERR_OUT_OF_MEMORY', 'ERR_NETWORK', 'ERR_IO'],
  // A field of a row may be called so.
  quotes: /no field '/,
  perProcess: 400,
  peakMiB: 800,
};
