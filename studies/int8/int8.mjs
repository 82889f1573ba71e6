// Measures what products in int8 change, in two parts:
//
// 1. The gradient of a BA-LoRA step, of A and B in all linears, in every mode of the option compute, against that of f32. All modes
//    have the same base, rows and moved student (PiSSA, some steps in f32).
//
//   npm run build && node studies/int8/int8.mjs --model PATH --data train.jsonl --prompt-field question
//     --response-field answer [--batch-size 4 --rank 16 --moved 4 --modes dtype/teacher/dx/teacher,dx/int8]
//
// 2. With --steps: runs from several seeds, whose held-out loss and KL to the base, both computed without int8, are compared with
//    those without int8.
//
//   node studies/int8/int8.mjs --steps 100 --eval-data test.jsonl --seeds 0,1,2 --modes dtype/teacher,dx/int8
//     --output output/int8 and the options above [--eval-rows 48 --learning-rate 1e-4]
//
// output/runs.jsonl has a line for each complete run, with its settings: a run with the same ones is not repeated. --table prints the
// tables of the runs so far, one for each settings.
import { appendFileSync, mkdirSync } from 'node:fs';
import { basename, join } from 'node:path';
import { parseArgs } from 'node:util';
import {
  AdapterModel,
  AutoModelForCausalLM,
  Batches,
  evaluate,
  resolveMethod,
  Tokenizer,
  Trainer,
  tensor,
} from 'balora';
import { firstRows, formatOf, kTrainingOptions, requireOptions } from '../rows.mjs';
import { line, readLines, shown, statistics } from '../statistics.mjs';

const { values: options } = parseArgs({
  options: {
    ...kTrainingOptions,
    moved: { type: 'string', default: '4' },
    'moved-rate': { type: 'string', default: '5e-4' },
    modes: { type: 'string', default: 'dtype/teacher/dx/teacher,dx/int8' },
    steps: { type: 'string' },
    output: { type: 'string', default: join('output', 'int8') },
  },
});
const kModes = options.modes.split('/');
const kRank = Number(options.rank);
const log = join(options.output, 'runs.jsonl');

/** A model in a dtype with a new BA-LoRA adapter, and the weights of its regularizers. */
async function adapted(dtype, seed) {
  const model = await AutoModelForCausalLM.fromPretrained(options.model, { dtype });
  const { adapter, regularizers } = resolveMethod('balora', {
    adapter: { r: kRank, loraAlpha: kRank, targetModules: 'all-linear' },
  });
  return { model, tuned: await AdapterModel.create(model, adapter, { seed }), regularizers };
}

/** The rows of the gradients: `count` micro-batches of the first rows of the data. */
async function firstBatches(tokenizer, count) {
  const rows = await firstRows(options.data, count * Number(options['batch-size']));
  return Batches.create(rows, tokenizer, { ...formatOf(options), shuffle: false });
}

/** The values of a student that has been trained for some steps in f32. */
async function movedStudent(tokenizer) {
  const { model, tuned, regularizers } = await adapted('f32', 0);
  const data = await firstBatches(tokenizer, Number(options.moved));
  const learningRate = Number(options['moved-rate']);
  const maxSteps = Number(options.moved);
  await new Trainer({
    ...{ tuned, data, regularizers, learningRate, maxSteps },
    ...{ lrSchedulerType: 'constant', warmupSteps: 0 },
  }).train();
  const state = {};
  for (const [name, tensor] of Object.entries(tuned.state())) {
    state[name] = { shape: tensor.shape, dtype: tensor.dtype, values: await tensor.data() };
  }
  tuned.dispose();
  model.dispose();
  return state;
}

/** The gradients of a step in a mode, by name, and the values of its terms. */
async function gradients(tokenizer, state, { dtype, compute }) {
  const { model, tuned, regularizers } = await adapted(dtype, 0);
  const restored = Object.fromEntries(
    Object.entries(state).map(([name, { shape, dtype: type, values }]) => [
      name,
      tensor(values, { shape, dtype: type }),
    ]),
  );
  tuned.restore(restored, 'the moved student');
  const data = await firstBatches(tokenizer, Number(options.moved) + 1);
  const batches = [];
  for await (const batch of data.batches(0)) batches.push(batch);
  const last = {
    ...{ fingerprint: 'last', batchCount: () => 1 },
    batches: () => batches.slice(-1),
  };
  const found = new Map();
  const trainer = new Trainer({
    ...{ tuned, regularizers, compute, data: last, learningRate: 0, maxSteps: 1 },
    afterBackward: async ({ parameters }) => {
      for (const { name, tensor: parameter } of parameters) {
        found.set(name, Float64Array.from(await parameter.grad.data()));
      }
    },
  });
  let record;
  for await (const event of trainer.run()) if (event.type === 'step') record = event.record;
  tuned.dispose();
  model.dispose();
  return { found, record };
}

/** Error, cosine and share of equal signs of all gradients, and the error of the worst tensor. */
function compared(found, wanted) {
  let [error, norm, product, own, same, count, worst] = [0, 0, 0, 0, 0, 0, 0];
  for (const [name, expected] of wanted) {
    const actual = found.get(name);
    let [here, size] = [0, 0];
    for (let i = 0; i < expected.length; i++) {
      here += (actual[i] - expected[i]) ** 2;
      size += expected[i] ** 2;
      product += actual[i] * expected[i];
      own += actual[i] ** 2;
      same += Math.sign(actual[i]) === Math.sign(expected[i]) ? 1 : 0;
    }
    error += here;
    norm += size;
    count += expected.length;
    if (size > 0) worst = Math.max(worst, Math.sqrt(here / size));
  }
  return {
    error: Math.sqrt(error / norm),
    cosine: product / Math.sqrt(norm * own),
    signs: same / count,
    worst,
  };
}

async function compareGradients() {
  requireOptions(options, ['model', 'data']);
  const tokenizer = await Tokenizer.fromPretrained(options.model);
  const state = await movedStudent(tokenizer);
  const exact = await gradients(tokenizer, state, { dtype: 'f32', compute: 'dtype' });
  const { terms, supervisedTokens, tokens } = exact.record;
  const consistency = terms.consistency.value;
  console.log(
    `${tokens} tokens, ${supervisedTokens} of them supervised; consistency ${consistency.toFixed(3)}`,
  );
  console.log('| dtype | compute | error | cosine | same signs | worst tensor |');
  console.log('| --- | --- | --- | --- | --- | --- |');
  for (const dtype of ['f32', 'bf16']) {
    for (const compute of kModes) {
      if (dtype === 'f32' && compute === 'dtype') continue;
      const { found } = await gradients(tokenizer, state, { dtype, compute });
      const { error, cosine, signs, worst } = compared(found, exact.found);
      const share = `${(100 * signs).toFixed(1)} %`;
      console.log(
        line([dtype, compute, error.toFixed(4), cosine.toFixed(4), share, worst.toFixed(2)]),
      );
    }
  }
}

/** Everything besides seed and mode that the numbers of a run depend on, as its line has it; files by their names. */
function settingsOf() {
  return {
    model: basename(options.model),
    rows: basename(options.data),
    heldOut: basename(options['eval-data']),
    evalRows: Number(options['eval-rows']),
    steps: Number(options.steps),
    rank: kRank,
    batchSize: Number(options['batch-size']),
    learningRate: Number(options['learning-rate']),
  };
}

/** The settings of a line as a text, by which runs are compared. */
const textOf = ({ settings }) =>
  Object.entries(settings)
    .map(([name, value]) => `${name} ${value}`)
    .sort()
    .join(', ');

async function train() {
  requireOptions(options, ['model', 'data', 'eval-data']);
  mkdirSync(options.output, { recursive: true });
  const tokenizer = await Tokenizer.fromPretrained(options.model);
  const settings = settingsOf();
  const { steps, learningRate } = settings;
  const rows = await firstRows(options.data, steps * settings.batchSize);
  const held = await firstRows(options['eval-data'], settings.evalRows);
  const format = formatOf(options);
  const heldOut = await Batches.create(held, tokenizer, { ...format, shuffle: false });
  for (const seed of options.seeds.split(',').map(Number)) {
    const data = await Batches.create(rows, tokenizer, { ...format, shuffle: true, seed });
    for (const compute of kModes) {
      const known = readLines(log).filter((row) => textOf(row) === textOf({ settings }));
      if (known.some((row) => row.seed === seed && row.compute === compute)) continue;
      const { model, tuned, regularizers } = await adapted('bf16', seed);
      const started = performance.now();
      await new Trainer({
        ...{ tuned, data, regularizers, compute, learningRate, maxSteps: steps, seed },
      }).train();
      const seconds = (performance.now() - started) / 1000;
      const { loss, kl } = await evaluate(tuned, heldOut.batches(0));
      appendFileSync(log, `${JSON.stringify({ compute, seed, settings, loss, kl, seconds })}\n`);
      tuned.dispose();
      model.dispose();
    }
  }
}

/** Prints the end of all runs, and their differences to the run of the same settings and seed without int8. */
function printTables() {
  const runs = readLines(log);
  for (const settings of new Set(runs.map(textOf))) {
    console.log(`\n${settings}:\n`);
    printTable(runs.filter((row) => textOf(row) === settings));
  }
}

function printTable(runs) {
  const of = (compute) => runs.filter((row) => row.compute === compute);
  const exact = new Map(of('dtype').map((row) => [row.seed, row]));
  console.log(
    '| compute | seeds | loss | KL to the base | difference of the loss | KL over that of dtype |',
  );
  console.log('| --- | --- | --- | --- | --- | --- |');
  for (const compute of kModes) {
    const own = of(compute).filter(({ seed }) => exact.has(seed));
    if (own.length === 0) continue;
    const column = (value, digits) => shown(statistics(own.map(value)), digits);
    console.log(
      line([
        ...[compute, own.length, column(({ loss }) => loss, 4), column(({ kl }) => kl, 4)],
        column(({ loss, seed }) => loss - exact.get(seed).loss, 4),
        column(({ kl, seed }) => kl / exact.get(seed).kl, 3),
      ]),
    );
  }
}

if (options.steps !== undefined || options.table) {
  if (!options.table) await train();
  printTables();
} else {
  await compareGradients();
}
