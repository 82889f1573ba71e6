// How far does each method change a model to learn the same thing? LoRA, PiSSA and BA-LoRA are trained on the same rows with the
// same settings, from several seeds; the held-out loss and the KL to the model before tuning are measured during the runs. The
// runs are then compared at the same held-out loss.
//
//   npm run build && node studies/drift/drift.mjs --model PATH --data train.jsonl --eval-data test.jsonl
//     --prompt-field question --response-field answer [--seeds 0,1,2 --steps 100 --eval-every 5 --eval-rows 48
//     --batch-size 4 --rank 16 --learning-rate 1e-4 --dtype bf16 --output output/drift]
//
// output/runs.jsonl has one measurement per line. A run that is complete there is not repeated, so that a stopped study continues.
// --table prints the table of the measurements so far.
import { appendFileSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import {
  AdapterModel,
  AutoModelForCausalLM,
  Batches,
  evaluate,
  resolveMethod,
  Tokenizer,
  Trainer,
} from 'balora';
import { JsonlFile } from 'balora/data';
import { firstRows, formatOf, kTrainingOptions, requireOptions } from '../rows.mjs';
import { line, readLines, shown, statistics } from '../statistics.mjs';

const { values: options } = parseArgs({
  options: {
    ...kTrainingOptions,
    methods: { type: 'string', default: 'lora,pissa,balora' },
    steps: { type: 'string', default: '100' },
    'eval-every': { type: 'string', default: '5' },
    dtype: { type: 'string', default: 'bf16' },
    output: { type: 'string', default: join('output', 'drift') },
  },
});
const kSteps = Number(options.steps);
const kLabels = { lora: 'LoRA', pissa: 'PiSSA', balora: 'BA-LoRA' };
const log = join(options.output, 'runs.jsonl');

async function study() {
  requireOptions(options, ['model', 'data', 'eval-data']);
  mkdirSync(options.output, { recursive: true });
  const tokenizer = await Tokenizer.fromPretrained(options.model);
  const format = formatOf(options);
  const training = await JsonlFile.open(options.data);
  const heldOut = await Batches.create(
    await firstRows(options['eval-data'], Number(options['eval-rows'])),
    tokenizer,
    { ...format, shuffle: false },
  );
  for (const seed of options.seeds.split(',').map(Number)) {
    const data = await Batches.create(training, tokenizer, { ...format, shuffle: true, seed });
    for (const method of options.methods.split(',')) {
      const done = readLines(log).filter((row) => row.method === method && row.seed === seed);
      if (done.some(({ step }) => step === kSteps)) continue;
      for (const row of await run({ method, seed, data, heldOut })) {
        appendFileSync(log, `${JSON.stringify(row)}\n`);
      }
    }
  }
}

/** Runs one training, and returns its measurements. */
async function run({ method, seed, data, heldOut }) {
  const model = await AutoModelForCausalLM.fromPretrained(options.model, { dtype: options.dtype });
  const r = Number(options.rank);
  const { adapter, regularizers } = resolveMethod(method, {
    adapter: { r, loraAlpha: r, targetModules: 'all-linear' },
  });
  const tuned = await AdapterModel.create(model, adapter, { seed });
  const trainer = new Trainer({
    tuned,
    data,
    regularizers,
    learningRate: Number(options['learning-rate']),
    maxSteps: kSteps,
    seed,
  });
  const measurements = [];
  const measure = async (step) => {
    const { loss, kl, entropy } = await evaluate(tuned, heldOut.batches(0));
    measurements.push({ method, seed, step, loss, kl, entropy });
    console.log(
      `${method} seed ${seed} step ${step}: loss ${loss.toFixed(4)}, KL ${kl.toFixed(4)}, entropy ${entropy.toFixed(3)}`,
    );
  };
  await measure(0);
  for await (const event of trainer.run()) {
    if (event.type !== 'step') continue;
    const { step } = event.record;
    if (step % Number(options['eval-every']) === 0 || step === kSteps) await measure(step);
  }
  tuned.dispose();
  model.dispose();
  return measurements;
}

/** The place where a run first reaches the loss `level`, by linear interpolation between two measurements. */
function firstReached(run, level) {
  const i = run.findIndex(({ loss }) => loss <= level);
  if (i <= 0) return run[0];
  const [before, after] = [run[i - 1], run[i]];
  const share = (before.loss - level) / (before.loss - after.loss);
  const between = (key) => before[key] + share * (after[key] - before[key]);
  return { step: between('step'), loss: level, kl: between('kl'), entropy: between('entropy') };
}

/** Prints one table for each method: at the lowest loss that all of its runs reach, for all methods that reach it. */
function printTables() {
  const runs = new Map();
  for (const row of readLines(log)) {
    const key = `${row.method} ${row.seed}`;
    runs.set(key, [...(runs.get(key) ?? []), row]);
  }
  const lowest = (run) => Math.min(...run.map(({ loss }) => loss));
  const all = [...runs.values()];
  for (const method of options.methods.split(',')) {
    const own = all.filter(([row]) => row.method === method);
    if (own.length > 0) printTable(all, { method, level: Math.max(...own.map(lowest)), lowest });
  }
}

function printTable(all, { method, level, lowest }) {
  console.log(
    `\nAt held-out loss ${level.toFixed(4)}, which every ${kLabels[method]} run reaches:\n`,
  );
  console.log('| method | seeds | step | KL to the base | entropy | loss and KL at the end |');
  console.log('| --- | --- | --- | --- | --- | --- |');
  for (const other of options.methods.split(',')) {
    const own = all.filter(([row]) => row.method === other);
    if (own.length === 0 || own.some((run) => lowest(run) > level)) continue;
    const at = own.map((run) => firstReached(run, level));
    const last = own.map((run) => run.at(-1));
    const column = (list, key, digits) => shown(statistics(list.map((row) => row[key])), digits);
    console.log(
      line([
        ...[kLabels[other], own.length, column(at, 'step', 1), column(at, 'kl', 4)],
        column(at, 'entropy', 3),
        `${column(last, 'loss', 4)}, ${column(last, 'kl', 4)}`,
      ]),
    );
  }
}

if (!options.table) await study();
printTables();
