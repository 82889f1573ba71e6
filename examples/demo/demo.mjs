// The demo: fine-tunes a small model, pre-trained on the State of the Union addresses, on Moby Dick with LoRA, PiSSA and BA-LoRA
// from the same seed, and prints how much each learned and forgot, and how each goes on with a beginning. The adapters are written to
// --output as PEFT folders. --model replaces the small model by any decoder of the README's table.
//
//   npm run demo [-- --model PATH --steps N --batch-size N --rank N --dtype f32|bf16 --held-out N --output DIR]
import { existsSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import {
  AdapterModel,
  AutoModelForCausalLM,
  arrayRows,
  Batches,
  evaluate,
  generate,
  memoryStats,
  resetPeakMemory,
  synchronize,
  Tokenizer,
  Trainer,
} from 'balora';
import { textTable } from '../../dist/cli/text_table.js';
import { kPassageFormat, mobyDick, passages, split, stateOfTheUnion } from './corpus.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const options = parsed({
  model: { type: 'string', default: join(here, 'checkpoint') },
  steps: { type: 'string', default: '60' },
  'batch-size': { type: 'string', default: '8' },
  rank: { type: 'string', default: '8' },
  'learning-rate': { type: 'string', default: '1e-3' },
  dtype: { type: 'string', default: 'f32' },
  seed: { type: 'string', default: '1' },
  // Number of held-out passages of each text that are evaluated: enough for a stable result, few enough to be quick.
  'held-out': { type: 'string', default: '64' },
  output: { type: 'string', default: join('output', 'demo') },
});

/** The options of the command line; an unknown one ends the program with the usage. */
function parsed(known) {
  try {
    return parseArgs({ options: known }).values;
  } catch ({ message }) {
    const usage = Object.keys(known).map((name) => `[--${name} ...]`);
    console.error(`error: ${message}\nusage: npm run demo -- ${usage.join(' ')}`);
    process.exit(2);
  }
}

const kMethods = ['lora', 'pissa', 'balora'];
const kBeginning = 'The whale';
const kLabels = { lora: 'LoRA', pissa: 'PiSSA', balora: 'BA-LoRA' };

const tokenizer = await Tokenizer.fromPretrained(options.model);

/** Passages as micro-batches; with `limit` they are chosen evenly from the entire text. */
function open(documents, { limit = Infinity, shuffle = false } = {}) {
  const all = passages(documents);
  const every = Math.max(1, Math.ceil(all.length / limit));
  return Batches.create(arrayRows(all.filter((_, i) => i % every === 0)), tokenizer, {
    ...kPassageFormat,
    batchSize: Number(options['batch-size']),
    maxLength: 320,
    shuffle,
    seed: Number(options.seed),
  });
}

const novel = split(mobyDick());
const train = await open(novel.train, { shuffle: true });
const heldOutNovel = await open(novel.heldOut, { limit: Number(options['held-out']) });
const heldOutAddresses = await open(split(stateOfTheUnion()).heldOut, {
  limit: Number(options['held-out']),
});

console.log(`Model         ${options.model} (${options.dtype})`);
console.log(`Learns        Moby Dick, ${options.steps} steps of ${options['batch-size']} passages`);
console.log('Should keep   the State of the Union addresses that it was pre-trained on\n');

async function run(method) {
  await synchronize();
  resetPeakMemory();
  const model = await AutoModelForCausalLM.fromPretrained(options.model, { dtype: options.dtype });
  const [r, seed] = [Number(options.rank), Number(options.seed)];
  const config = { method, r, loraAlpha: r, baseModelNameOrPath: options.model };
  const tuned = await AdapterModel.create(model, config, { seed, name: method });
  const output = join(options.output, method);
  if (existsSync(output)) rmSync(output, { recursive: true });
  const before = await evaluate(tuned, heldOutNovel.batches(0));
  const trainer = new Trainer({
    tuned,
    data: train,
    learningRate: Number(options['learning-rate']),
    maxSteps: Number(options.steps),
    seed,
    output,
  });
  let seconds = 0;
  for await (const event of trainer.run()) {
    if (event.type !== 'step') continue;
    const { step, loss, tokensPerSecond } = event.record;
    seconds = event.record.elapsedSeconds;
    if (process.stdout.isTTY) {
      process.stdout.write(
        `\r${kLabels[method]}: step ${step}/${event.totalSteps}  loss ${loss.toFixed(3)}  ` +
          `${tokensPerSecond.toFixed(0)} tokens/s   `,
      );
    }
  }
  if (process.stdout.isTTY) process.stdout.write('\r\x1b[K');
  const task = await evaluate(tuned, heldOutNovel.batches(0));
  const drift = await evaluate(tuned, heldOutAddresses.batches(0));
  const { peakBytes, derivedBytes } = memoryStats();
  const texts = { before: await continued(tuned, null), after: await continued(tuned, method) };
  tuned.dispose();
  model.dispose();
  return { method, before, task, drift, seconds, bytes: peakBytes + derivedBytes, output, texts };
}

/** The beginning with what the model writes after it, with an adapter or, for null, as it was before tuning. */
async function continued(tuned, adapter) {
  const [{ text }] = await generate(tuned, {
    ...{ tokenizer, prompt: kBeginning, adapter, maxNewTokens: 40 },
    repetitionPenalty: 1.3, // a small model says the same again and again without it
  }).result;
  return (kBeginning + text).replaceAll(/\s+/g, ' ').trim();
}

const rows = [];
for (const method of kMethods) rows.push(await run(method));

const base = rows[0];
const table = [
  ['', 'task loss', 'drift (KL)', 'entropy', 'eff. rank', 'time', 'memory'],
  ['before', base.before.loss.toFixed(4), '0', '', '', '', ''],
  ...rows.map(({ method, task, drift, seconds, bytes }) => [
    kLabels[method],
    task.loss.toFixed(4),
    drift.kl.toFixed(4),
    drift.entropy.toFixed(3),
    drift.effectiveRank.toFixed(1),
    `${seconds.toFixed(0)} s`,
    `${(bytes / 2 ** 20).toFixed(0)} MiB`,
  ]),
];
console.log(textTable(table, 'lr'));
console.log(`
task loss   cross-entropy on held-out chapters of Moby Dick, nats per token: lower has learned more
drift       KL(model before || after) on held-out addresses, nats per token: lower has changed less
entropy     of the predictions on those addresses, nats; eff. rank: of their logits
memory      peak of the engine's tensors and packed weights, without Node itself
One seed and one learning rate: the numbers show how the methods behave, not which is best.

Adapters (PEFT folders, rank 2r for PiSSA and BA-LoRA):`);
for (const { output } of rows) console.log(`  ${output}`);

console.log(`
"${kBeginning}", continued with the most likely tokens:`);
const samples = [
  ['before', base.texts.before],
  ...rows.map(({ method, texts }) => [kLabels[method], texts.after]),
];
console.log(textTable(samples));
