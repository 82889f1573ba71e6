// Does a causal language model prefer the stereotypical sentence of a pair, and does tuning change that? Every pair of
// CrowS-Pairs (Nangia et al. 2020) differs in the group it speaks of; a model's score is the share of pairs whose first
// sentence (`sent_more`) gets the higher log-likelihood: 50 % is no preference. Measured before tuning, and after LoRA,
// PiSSA or BA-LoRA on the same rows with the same settings.
//
//   npm run build && node studies/crows_pairs/crows_pairs.mjs --model PATH --pairs crows_pairs.csv --method none|lora|pissa|balora
//     [--data train.jsonl --prompt-field question --response-field answer --steps 40 --batch-size 4 --rank 16
//     --learning-rate 1e-4 --every 1 --seed 1 --dtype bf16 --output output/crows_pairs]
//
// output/scores.jsonl gets one line per measurement with its settings; a measurement that it contains is not repeated. --table
// prints the means over seeds as a table and writes output/crows_pairs.svg.
import { appendFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import {
  AdapterModel,
  AutoModelForCausalLM,
  Batches,
  evaluate,
  FullModel,
  openRows,
  resolveMethod,
  Tokenizer,
  Trainer,
} from 'balora';
import { collate, JsonlFile } from 'balora/data';
import { barChart } from '../bar_chart.mjs';
import { formatOf, requireOptions } from '../rows.mjs';
import { line, readLines, shown, statistics } from '../statistics.mjs';

const { values: options } = parseArgs({
  options: {
    model: { type: 'string' },
    pairs: { type: 'string' },
    method: { type: 'string', default: 'none' },
    data: { type: 'string' },
    'prompt-field': { type: 'string' },
    'response-field': { type: 'string' },
    steps: { type: 'string', default: '40' },
    'batch-size': { type: 'string', default: '4' },
    rank: { type: 'string', default: '16' },
    'learning-rate': { type: 'string', default: '1e-4' },
    every: { type: 'string', default: '1' },
    seed: { type: 'string', default: '1' },
    dtype: { type: 'string', default: 'bf16' },
    output: { type: 'string', default: join('output', 'crows_pairs') },
    table: { type: 'boolean', default: false },
  },
});
const log = join(options.output, 'scores.jsonl');
/** Sentences per forward pass. */
const kBatch = 32;

const kMethods = { none: 'before', lora: 'LoRA', pissa: 'PiSSA', balora: 'BA-LoRA' };

if (options.table) {
  const runs = readLines(log);
  console.log(table(runs));
  writeFileSync(join(options.output, 'crows_pairs.svg'), chart(runs));
} else {
  await measure();
}

async function measure() {
  requireOptions(options, ['model', 'pairs']);
  mkdirSync(options.output, { recursive: true });
  const settings = settingsOf();
  const keyOf = (run) => JSON.stringify([run.method, run.seed, run.settings]);
  const asked = { method: options.method, seed: Number(options.seed), settings };
  if (readLines(log).some((run) => keyOf(run) === keyOf(asked))) return;
  const tokenizer = await Tokenizer.fromPretrained(options.model);
  const model = await AutoModelForCausalLM.fromPretrained(options.model, { dtype: options.dtype });
  const tuned = options.method === 'none' ? null : await tune(model, tokenizer);
  const pairs = await readPairs(options.pairs, Number(options.every));
  const likelihoods = await logLikelihoods(
    tuned ?? new FullModel(model),
    pairs.flatMap(({ sent_more, sent_less }) => [sent_more, sent_less]),
    tokenizer,
  );
  const judged = pairs.map((pair, i) => ({
    ...pair,
    difference: likelihoods[2 * i] - likelihoods[2 * i + 1],
  }));
  const result = {
    ...asked,
    pairs: pairs.length,
    all: score(judged),
    stereo: score(judged.filter(({ stereo_antistereo: kind }) => kind === 'stereo')),
    antistereo: score(judged.filter(({ stereo_antistereo: kind }) => kind === 'antistereo')),
    meanDifference:
      judged.reduce((sum, { difference }) => sum + Math.abs(difference), 0) / judged.length,
    byType: Object.fromEntries(
      [...new Set(judged.map(({ bias_type }) => bias_type))]
        .sort()
        .map((type) => [type, score(judged.filter(({ bias_type }) => bias_type === type))]),
    ),
  };
  appendFileSync(log, `${JSON.stringify(result)}\n`);
  console.log(JSON.stringify(result));
}

/** The settings that determine a measurement, beside method and seed. */
function settingsOf() {
  const every = Number(options.every);
  const { dtype } = options;
  if (options.method === 'none') return { dtype, every, steps: 0 };
  const [steps, batchSize, rank, learningRate] = [
    ...[options.steps, options['batch-size'], options.rank, options['learning-rate']],
  ].map(Number);
  return { dtype, every, steps, batchSize, rank, learningRate };
}

async function tune(model, tokenizer) {
  const { adapter, regularizers } = resolveMethod(options.method, {
    adapter: {
      r: Number(options.rank),
      loraAlpha: Number(options.rank),
      targetModules: 'all-linear',
    },
  });
  const seed = Number(options.seed);
  const tuned = await AdapterModel.create(model, adapter, { seed });
  const rows = await JsonlFile.open(options.data);
  const data = await Batches.create(rows, tokenizer, {
    ...formatOf(options),
    seed,
  });
  const trainer = new Trainer({
    ...{ tuned, data, regularizers, seed },
    learningRate: Number(options['learning-rate']),
    maxSteps: Number(options.steps),
  });
  await trainer.train();
  await rows.close();
  return tuned;
}

async function readPairs(path, every) {
  const rows = await openRows(path);
  const pairs = [];
  for (let i = 0; i < rows.length; i += every) pairs.push(await rows.row(i));
  return pairs;
}

/** The log-likelihood of every sentence, given its first token. */
async function logLikelihoods(tuned, sentences, tokenizer) {
  const found = [];
  for (let at = 0; at < sentences.length; at += kBatch) {
    const examples = sentences.slice(at, at + kBatch).map((sentence) => {
      const ids = Int32Array.from(tokenizer.encode(sentence));
      return { ids, supervised: new Uint8Array(ids.length).fill(1) };
    });
    const result = await evaluate(tuned, [collate(examples)], { kl: false });
    found.push(...result.examples.map(({ loss, supervisedTokens }) => -loss * supervisedTokens));
  }
  return found;
}

/** Percentage of the pairs whose first sentence has the higher likelihood; a tie counts half. */
function score(pairs) {
  const preferred = pairs.reduce(
    (sum, { difference: d }) => sum + (d > 0 ? 1 : d === 0 ? 0.5 : 0),
    0,
  );
  return pairs.length === 0 ? null : (100 * preferred) / pairs.length;
}

/** Means over seeds by method; all runs of a method must have the same settings. */
function byMethod(runs) {
  return Object.entries(kMethods).flatMap(([method, title]) => {
    const here = runs.filter((run) => run.method === method);
    if (here.length === 0) return [];
    if (new Set(here.map(({ settings }) => JSON.stringify(settings))).size > 1) {
      throw new Error(`${method}: runs of different settings in one log`);
    }
    const [{ settings, pairs }] = here;
    const of = (pick) => statistics(here.map(pick).filter((value) => value !== null));
    return [{ title, steps: settings.steps, pairs, seeds: here.length, of }];
  });
}

function table(runs) {
  const types = [...new Set(runs.flatMap(({ byType }) => Object.keys(byType)))].sort();
  const columns = ['', 'seeds', 'steps', 'pairs', 'all', 'stereo', 'antistereo', ...types];
  const percent = (s) => shown(s, 1);
  return [
    line(columns),
    line(columns.map(() => '---')),
    ...byMethod(runs).map(({ title, seeds, steps, pairs, of }) =>
      line([
        ...[title, seeds, steps, pairs],
        ...['all', 'stereo', 'antistereo'].map((kind) => percent(of((run) => run[kind]))),
        ...types.map((type) => percent(of((run) => run.byType[type] ?? null))),
      ]),
    ),
  ].join('\n');
}

/** The chart of the scores, as shares because its axis goes from 0 to 1. */
function chart(runs) {
  const bars = byMethod(runs).flatMap(({ title, of }) =>
    ['all', 'stereo', 'antistereo'].flatMap((kind) => {
      const share = of((run) => (run[kind] === null ? null : run[kind] / 100));
      return share === null ? [] : [{ label: `${title}, ${kind}`, ...share }];
    }),
  );
  return barChart({
    title: 'CrowS-Pairs',
    axis: 'pairs whose first sentence is the likelier (0.5: no preference)',
    bars,
  });
}
