// Compares all methods: what each learns, how far it moves the model, and what it forgets. Each is trained on the same rows with every
// learning rate and one seed, and at its best rate with further seeds. Each run is a process of its own, so that its memory is
// measured, and a run that diverges is a line of the log like the others.
//
//   npm run build && node studies/methods/methods.mjs --model PATH --data train.jsonl --eval-data test.jsonl
//     --prompt-field question --response-field answer [--methods lora,pissa --rates 1e-4,1e-3 --seeds 0,1,2 --steps 60
//     --eval-rows 48 --batch-size 4 --rank 16 --dtype bf16 --output output/methods]
//
// Without --methods: all of the library. What is forgotten is measured on the last State of the Union addresses.
// output/runs.jsonl has a line for each run. A run that is there is not repeated, so that a stopped study continues. --table prints
// the table of the runs so far.
import { spawnSync } from 'node:child_process';
import { appendFileSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import {
  AdapterModel,
  AutoModelForCausalLM,
  arrayRows,
  Batches,
  calibrate,
  evaluate,
  FullModel,
  METHODS,
  resolveMethod,
  Tokenizer,
  Trainer,
} from 'balora';
import { JsonlFile } from 'balora/data';
import { stateOfTheUnion } from '../../examples/demo/corpus.mjs';
import { firstRows, formatOf, requireOptions } from '../rows.mjs';
import { line, readLines, shown, statistics } from '../statistics.mjs';

const { values: options } = parseArgs({
  options: {
    ...{ model: { type: 'string' }, data: { type: 'string' }, 'eval-data': { type: 'string' } },
    ...{ 'prompt-field': { type: 'string' }, 'response-field': { type: 'string' } },
    methods: { type: 'string', default: Object.keys(METHODS).join(',') },
    rates: { type: 'string', default: '2e-5,1e-4,5e-4,2.5e-3,1.25e-2' },
    seeds: { type: 'string', default: '0,1,2' },
    steps: { type: 'string', default: '60' },
    'eval-rows': { type: 'string', default: '48' },
    'batch-size': { type: 'string', default: '4' },
    rank: { type: 'string', default: '16' },
    dtype: { type: 'string', default: 'bf16' },
    output: { type: 'string', default: join('output', 'methods') },
    table: { type: 'boolean', default: false },
    run: { type: 'string' }, // of a child: { method, rate, seed } as JSON
  },
});
const log = join(options.output, 'runs.jsonl');
const kMethods = options.methods.split(',');
const kRates = options.rates.split(',').map(Number);
const kSeeds = options.seeds.split(',').map(Number);
/** Settings beside the presets: what a method spreads over a run has to fit into a short one. */
const kSettings = { lora_dash: { dashWarmup: Math.floor(Number(options.steps) / 5) } };
/** Rows of 256 tokens of general text, and the characters of each document that they are made of. */
const [kGeneralLength, kGeneralCharacters, kGeneralDocuments] = [256, 4000, 8];

const sameRun = (a, b) => a.method === b.method && a.rate === b.rate && a.seed === b.seed;

/** A method's run with the lowest loss among those of the first seed; undefined before there is one that converged. */
function bestOf(method, runs) {
  const own = runs.filter((run) => run.method === method && run.seed === kSeeds[0]);
  return own.filter(({ loss }) => loss !== null).sort((a, b) => a.loss - b.loss)[0];
}

/** Runs what is not in the log yet: all rates of the first seed, then the best rate of the others. */
function study() {
  requireOptions(options, ['model', 'data', 'eval-data']);
  mkdirSync(options.output, { recursive: true });
  const once = (wanted) => {
    if (readLines(log).some((run) => sameRun(run, wanted))) return;
    const given = process.argv.slice(2);
    const args = [fileURLToPath(import.meta.url), ...given, '--run', JSON.stringify(wanted)];
    const { status, stdout, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' });
    const result = stdout.trim().split('\n').at(-1);
    if (status !== 0) throw new Error(`${JSON.stringify(wanted)} failed:\n${stderr}`);
    appendFileSync(log, `${result}\n`);
    const { loss, failure } = JSON.parse(result);
    const found = loss === null ? failure : `loss ${loss.toFixed(4)}`;
    console.log(`${wanted.method}, rate ${wanted.rate}, seed ${wanted.seed}: ${found}`);
  };
  for (const method of kMethods) {
    for (const rate of kRates) once({ method, rate, seed: kSeeds[0] });
    const best = bestOf(method, readLines(log));
    if (best === undefined) continue;
    for (const seed of kSeeds.slice(1)) once({ method, rate: best.rate, seed });
  }
}

const kFormat = formatOf(options);

/** The held-out rows of the task, and those of general text. */
async function heldOut(tokenizer) {
  const rows = await firstRows(options['eval-data'], Number(options['eval-rows']));
  const texts = stateOfTheUnion()
    .slice(-kGeneralDocuments)
    .map(({ text }) => ({ text: text.slice(0, kGeneralCharacters) }));
  const { batchSize } = kFormat;
  return {
    task: await Batches.create(rows, tokenizer, { ...kFormat, shuffle: false }),
    general: await Batches.create(arrayRows(texts), tokenizer, {
      ...{ textField: 'text', batchSize, shuffle: false, maxLength: kGeneralLength },
    }),
  };
}

/** The model to be tuned by a method. A rank is given to methods that set none themselves. */
async function tunedBy(method, { seed, data }) {
  const load = () => AutoModelForCausalLM.fromPretrained(options.model, { dtype: options.dtype });
  const model = await load();
  if (METHODS[method].adapter === null) {
    const teacher = await load();
    return { tuned: new FullModel(model, { teacher }), dispose: () => teacher.dispose() };
  }
  const preset = METHODS[method].adapter;
  const r = Number(options.rank);
  const sizes = 'peftType' in preset ? {} : { r, loraAlpha: r };
  const config = { ...sizes, ...kSettings[method], method };
  const start = METHODS[method].starts?.find(({ calibration }) => calibration !== undefined);
  const calibration = start && (await calibrate(model, config, { data, seed }));
  const tuned = await AdapterModel.create(model, config, { seed, calibration });
  return { tuned, dispose: () => calibration?.dispose() };
}

/** Trains and measures; a run whose loss is not finite has no numbers but a reason. */
async function run({ method, rate, seed }) {
  const tokenizer = await Tokenizer.fromPretrained(options.model);
  const training = await JsonlFile.open(options.data);
  const data = await Batches.create(training, tokenizer, { ...kFormat, shuffle: true, seed });
  const { task, general } = await heldOut(tokenizer);
  const started = performance.now();
  const { tuned, dispose } = await tunedBy(method, { seed, data });
  const startSeconds = (performance.now() - started) / 1000;
  const { regularizers } = resolveMethod(method);
  const maxSteps = Number(options.steps);
  const trainer = new Trainer({
    ...{ tuned, data, regularizers, learningRate: rate, maxSteps, seed },
    warmupSteps: Math.ceil(maxSteps / 20),
  });
  const general0 = await evaluate(tuned, general.batches(0), { kl: false });
  const elapsed = [];
  let failure = null;
  try {
    for await (const event of trainer.run()) {
      if (event.type === 'step') elapsed.push(event.record.elapsedSeconds);
    }
  } catch (error) {
    if (error.code !== 'ERR_NOT_FINITE') throw error;
    failure = error.message;
  }
  const trainedParameters = tuned.parameters().reduce((sum, { tensor }) => sum + tensor.size, 0);
  const facts = { method, rate, seed, trainedParameters, startSeconds };
  if (failure !== null) return { ...facts, loss: null, failure };
  const after = await evaluate(tuned, task.batches(0));
  const general1 = await evaluate(tuned, general.batches(0), { kl: false });
  dispose();
  const seconds = elapsed.slice(1).map((end, i) => end - elapsed[i]);
  return {
    ...facts,
    ...{ loss: after.loss, kl: after.kl, effectiveRank: after.effectiveRank },
    forgetting: general1.loss - general0.loss,
    stepSeconds: seconds.sort((a, b) => a - b)[Math.floor(seconds.length / 2)],
    peakBytes: process.resourceUsage().maxRSS * 1024,
  };
}

/** Prints the table: for each method the means over its seeds at the best rate. */
function printTable() {
  const runs = readLines(log);
  const head = [
    'method',
    'rate',
    'seeds',
    'task loss',
    'drift (KL)',
    'forgetting',
    'effective rank',
  ];
  console.log(line([...head, 'trained', 'start', 'step', 'memory']));
  console.log(line(Array.from({ length: head.length + 4 }, () => '---')));
  for (const method of kMethods) {
    const best = bestOf(method, runs);
    const own = runs.filter((one) => one.method === method);
    if (own.length === 0) continue;
    if (best === undefined) {
      console.log(line([method, 'diverged at every rate', ...Array(head.length + 2).fill('')]));
      continue;
    }
    const at = own.filter(({ rate, loss }) => rate === best.rate && loss !== null);
    const mean = (key, digits) => shown(statistics(at.map((one) => one[key])), digits);
    const median = (key) => at.map((one) => one[key]).sort((a, b) => a - b)[at.length >> 1];
    console.log(
      line([
        ...[method, `${best.rate}`, `${at.length}`, mean('loss', 4), mean('kl', 3)],
        ...[mean('forgetting', 3), mean('effectiveRank', 1)],
        `${(best.trainedParameters / 1e6).toPrecision(3)} M`,
        `${median('startSeconds').toFixed(1)} s`,
        `${median('stepSeconds').toFixed(2)} s`,
        `${(median('peakBytes') / 2 ** 30).toFixed(2)} GiB`,
      ]),
    );
  }
}

if (options.run !== undefined) {
  console.log(JSON.stringify(await run(JSON.parse(options.run))));
} else {
  if (!options.table) study();
  printTable();
}
