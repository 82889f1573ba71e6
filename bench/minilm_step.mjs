// The step of an encoder's LoRA run: forward, backward, AdamW of MiniLM on SST-2, batch 16 in the order of the data.
//
//   npm run build && node bench/minilm_step.mjs --model PATH --data sst2/train.tsv [--dtype f32 --threads 2 --steps 25
//     --skip 5 --batch-size 16 --method lora --batches FILE]
//
// Prints one line of JSON: median and least seconds a step, tokens, peak resident memory. --batches writes the ids of the
// same micro-batches for bench/torch/minilm_step.py, and stops.
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import {
  AdapterModel,
  AutoModelForSequenceClassification,
  getNumThreads,
  LabelledBatches,
  openRows,
  resolveMethod,
  setNumThreads,
  Tokenizer,
  Trainer,
} from 'balora';

const { values: options } = parseArgs({
  options: {
    model: { type: 'string' },
    data: { type: 'string' },
    dtype: { type: 'string', default: 'f32' },
    threads: { type: 'string' },
    steps: { type: 'string', default: '25' },
    skip: { type: 'string', default: '5' },
    'batch-size': { type: 'string', default: '16' },
    method: { type: 'string', default: 'lora' },
    batches: { type: 'string' },
  },
});
if (options.threads) setNumThreads(Number(options.threads));
const [steps, skip] = [Number(options.steps), Number(options.skip)];
const tokenizer = await Tokenizer.fromPretrained(options.model);
const rows = await openRows(options.data, { columns: ['label', 'sentence'] });
const data = await LabelledBatches.create(rows, tokenizer, {
  batchSize: Number(options['batch-size']),
  numLabels: 2,
  shuffle: false,
});
if (options.batches) {
  const batches = [];
  for (const { inputIds, cuSeqlens, labels } of data.batches()) {
    if (batches.length === steps) break;
    const ids = Array.from(labels, (_, b) =>
      Array.from(inputIds.subarray(cuSeqlens[b], cuSeqlens[b + 1])),
    );
    batches.push({ ids, labels: Array.from(labels) });
  }
  writeFileSync(options.batches, JSON.stringify(batches));
  process.exit(0);
}
const model = await AutoModelForSequenceClassification.fromPretrained(options.model, {
  numLabels: 2,
  dtype: options.dtype,
});
const { adapter, regularizers } = resolveMethod(options.method, {
  task: 'sequence-classification',
  adapter: { r: 8, loraAlpha: 16, targetModules: ['query', 'key', 'value', 'dense'] },
});
const tuned = await AdapterModel.create(model, adapter);
const trainer = new Trainer({
  tuned,
  data,
  regularizers,
  learningRate: 5e-4,
  maxSteps: steps,
  maxGradNorm: 0,
});
const seconds = [];
let tokens = 0;
for await (const event of trainer.run()) {
  if (event.type !== 'step' || event.record.step <= skip) continue;
  seconds.push(event.record.tokens / event.record.tokensPerSecond);
  tokens += event.record.tokens;
}
seconds.sort((a, b) => a - b);
console.log(
  JSON.stringify({
    what: `balora ${options.method} ${options.dtype}`,
    threads: getNumThreads(),
    medianSeconds: seconds[Math.floor(seconds.length / 2)],
    minSeconds: seconds[0],
    meanTokens: tokens / seconds.length,
    peakRssMiB: process.resourceUsage().maxRSS / 1024,
  }),
);
