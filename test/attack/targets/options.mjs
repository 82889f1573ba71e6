// Options of the library's functions: a value that an option's declaration refuses is an error that names the option; any other runs.
import {
  AdapterModel,
  arrayRows,
  AutoModelForCausalLM,
  Batches,
  demoCheckpoint,
  evaluate,
  setDefaultDevice,
  setMemoryLimit,
  setNumThreads,
  Tokenizer,
  Trainer,
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
const kBatchOptions = ['batchSize', 'maxLength', 'packing', 'padding', 'onUnsupervised', 'shuffle', 'seed', 'promptTemplate', 'promptField', 'responseField'];
const kLoaderOptions = ['dtype', 'device', 'trainable', 'checkFinite', 'revision', 'timeoutMs', 'cacheDir'];

/** A value of any type, more often a small number or a word that some option knows. */
const anyValue = (random, words) =>
  random.pick([
    () => random.pick([0, 1, 2, 3, 4, 8, 0.1, 0.5]),
    () => random.number(),
    () => random.pick([true, false, null]),
    () => random.pick([...words, 'min', 'max', 'cpu', 'f32', 'bf16', 'none', '1GiB', 'pissa', 'balora', 'all-linear']),
    () => random.text(),
    () => random.pick([Number.NaN, Number.POSITIVE_INFINITY, -0, 5n, undefined]),
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
  regularizers: { table: REGULARIZER_OPTIONS, use: ({ tuned, data }, regularizers) => train({ tuned, data, regularizers }) },
  adapter: {
    table: loraOptions,
    use: async ({ other }, options) => (await AdapterModel.create(other, options)).dispose(),
  },
  batches: {
    names: kBatchOptions,
    use: async ({ rows, tokenizer }, options) => {
      const data = await Batches.create(rows, tokenizer, options);
      for await (const batch of data.batches(0)) require(batch.inputIds.length > 0, 'a batch without tokens');
    },
  },
  evaluation: { names: ['kl'], use: ({ tuned, data }, options) => evaluate(tuned, data.batches(0), options) },
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
  open: async () => {
    setMemoryLimit(kMemory);
    const load = () => AutoModelForCausalLM.fromPretrained(demoCheckpoint);
    const tokenizer = await Tokenizer.fromPretrained(demoCheckpoint);
    const rows = arrayRows([{ prompt: 'Call me', response: ' Ishmael.' }, { prompt: 'There she', response: ' blows!' }]);
    const data = await Batches.create(rows, tokenizer, { maxLength: 24, promptTemplate: 'none' });
    return { rows, tokenizer, data, other: await load(), tuned: await AdapterModel.create(await load(), { r: 2, loraAlpha: 2 }) };
  },
  input,
  run,
  accepts: ['ERR_NOT_FINITE', 'ERR_OUT_OF_MEMORY', 'ERR_NETWORK', 'ERR_IO', 'ERR_NATIVE'],
  // A field of a row may be called so.
  quotes: /no field '/,
  perProcess: 400,
  peakMiB: 800,
};
