// Trains a small encoder on unfair data, to see which of its faults the model inherits and what the regularizers change. LoRA,
// PiSSA, BA-LoRA (also with each of its terms left out) and full fine-tuning are trained on SST-2, on SST-2 with a rare class (5
// % and 20 %), with flipped labels, and on CoLA, from several seeds, all with the same settings and from the same trained head;
// the held-out rows are unchanged.
//
//   npm run build && node studies/inheritance/study.mjs --model PATH --data FOLDER
//     [--conditions clean,imbalanced,imbalanced20,noise20,noise40,cola
//     --methods lora,pissa,balora,full,no-consistency,no-diversity,no-svd --seeds 1,2,3 --train-rows 800 --eval-rows 450
//     --batch-size 16 --learning-rate 5e-4 --full-learning-rate 5e-5 --epochs 1 --rank 8 --warm-up-epochs 20
//     --output output/inheritance]
//
// FOLDER contains sst2/{train,dev}.tsv (label, sentence) and cola/{train,dev}.tsv (sentence, label), without headers.
// output/runs.jsonl has one run per line with its settings. A run in it is not repeated, so that a stopped study continues, and
// several processes may share one.
// node studies/inheritance/report.mjs makes the tables and plots.
import { appendFileSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import {
  AdapterModel,
  AutoModelForSequenceClassification,
  copyHead,
  FullModel,
  LabelledBatches,
  resolveMethod,
  Tokenizer,
  Trainer,
  warmUpHead,
} from 'balora';
import { requireOptions } from '../rows.mjs';
import { readLines } from '../statistics.mjs';
import { rowsOf } from './conditions.mjs';

const { values: options } = parseArgs({
  options: {
    model: { type: 'string' },
    data: { type: 'string' },
    conditions: { type: 'string', default: 'clean,imbalanced,imbalanced20,noise20,noise40,cola' },
    methods: {
      type: 'string',
      default: 'lora,pissa,balora,full,no-consistency,no-diversity,no-svd',
    },
    seeds: { type: 'string', default: '1,2,3' },
    'train-rows': { type: 'string', default: '800' },
    'eval-rows': { type: 'string', default: '450' },
    'batch-size': { type: 'string', default: '16' },
    'learning-rate': { type: 'string', default: '5e-4' },
    'full-learning-rate': { type: 'string', default: '5e-5' },
    epochs: { type: 'string', default: '1' },
    rank: { type: 'string', default: '8' },
    'warm-up-epochs': { type: 'string', default: '20' },
    output: { type: 'string', default: join('output', 'inheritance') },
  },
});
requireOptions(options, ['model', 'data']);

const kTask = 'sequence-classification';
/** Arms of the study: a method, and changes of its options. */
const kArms = {
  lora: ['lora', {}],
  pissa: ['pissa', {}],
  balora: ['balora', {}],
  full: ['full', {}],
  'no-consistency': ['balora', { consistencyWeight: 0 }],
  'no-diversity': ['balora', { diversityWeight: 0 }],
  'no-svd': ['balora', { svdWeight: 0 }],
};
const list = (text) => text.split(',').map((item) => item.trim());
const log = join(options.output, 'runs.jsonl');
mkdirSync(options.output, { recursive: true });
const done = readLines(log);
const tokenizer = await Tokenizer.fromPretrained(options.model);

for (const seed of list(options.seeds).map(Number)) {
  for (const condition of list(options.conditions)) {
    for (const arm of list(options.methods)) {
      const settings = settingsOf(arm);
      const asked = keyOf({ condition, arm, seed, settings });
      if (done.some((run) => keyOf(run) === asked)) continue;
      const run = {
        condition,
        arm,
        seed,
        settings,
        ...(await train(condition, arm, { seed, settings })),
      };
      appendFileSync(log, `${JSON.stringify(run)}\n`);
      console.log(`${condition} ${arm} ${seed}: accuracy ${run.accuracy.toFixed(4)}`);
    }
  }
}

/** The settings that determine a run, beside condition, arm and seed. */
function settingsOf(arm) {
  const numbers = (names) => names.map((name) => Number(options[name]));
  const [trainRows, evalRows, batchSize, epochs, rank, warmUpEpochs] = numbers([
    ...['train-rows', 'eval-rows', 'batch-size', 'epochs', 'rank', 'warm-up-epochs'],
  ]);
  const learningRate = Number(options[arm === 'full' ? 'full-learning-rate' : 'learning-rate']);
  return { trainRows, evalRows, batchSize, epochs, learningRate, rank, warmUpEpochs };
}

function keyOf({ condition, arm, seed, settings }) {
  return JSON.stringify([condition, arm, seed, settings]);
}

async function train(condition, arm, { seed, settings }) {
  const begun = performance.now();
  const { trainRows, evalRows, batchSize, epochs, learningRate, rank, warmUpEpochs } = settings;
  const rows = await rowsOf(condition, {
    data: options.data,
    seed,
    trainRows,
    evalRows,
  });
  const shared = { batchSize, numLabels: 2, maxLength: 128 };
  const data = await LabelledBatches.create(rows.train, tokenizer, { ...shared, seed });
  const evalData = await LabelledBatches.create(rows.heldOut, tokenizer, {
    ...shared,
    shuffle: false,
  });
  const [method, changes] = kArms[arm];
  const resolved = resolveMethod(method, {
    task: kTask,
    regularizers: changes,
    ...(method === 'full' ? {} : { adapter: { r: rank, loraAlpha: 16 } }),
  });
  const load = (trainable) =>
    AutoModelForSequenceClassification.fromPretrained(options.model, {
      numLabels: 2,
      trainable,
      seed,
    });
  const model = await load(method === 'full');
  // Every arm starts with the same head, trained alone on the same (unfair) rows, which shows what the pre-trained model knows of
  // the task.
  const probe =
    warmUpEpochs > 0 ? await warmUpHead(model, data, { seed, epochs: warmUpEpochs }) : null;
  const tuned = await tune(model, resolved, { load, seed });
  const trainer = new Trainer({
    tuned,
    data,
    evalData,
    regularizers: resolved.regularizers,
    learningRate,
    lrSchedulerType: 'linear',
    warmupSteps: 0,
    numTrainEpochs: epochs,
    seed,
  });
  const { evaluation, last } = await trainer.train();
  tuned.dispose();
  model.dispose();
  const { accuracy, matthews, recallPerClass, f1Macro } = evaluation.metrics;
  const { loss, taskLoss, terms } = last;
  const value = (key) => terms[key]?.value ?? null;
  return {
    accuracy,
    matthews,
    recallPerClass,
    f1Macro,
    evalLoss: evaluation.loss,
    last: {
      loss,
      taskLoss,
      consistency: value('consistency'),
      diversity: value('diversity'),
      svd: value('svd'),
    },
    probeLoss: probe?.loss ?? null,
    seconds: (performance.now() - begun) / 1000,
  };
}

async function tune(model, { adapter, regularizers }, { load, seed }) {
  if (adapter !== null) return AdapterModel.create(model, adapter, { seed });
  if (regularizers.consistencyWeight === 0) return new FullModel(model);
  const teacher = await load(false);
  copyHead(model, teacher);
  return new FullModel(model, { teacher });
}
