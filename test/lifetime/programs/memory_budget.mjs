// Trains a model whose memory is mostly activations on batches of several lengths, with a budget between the smallest and the
// largest peak that the planner predicts. Prints the predictions and the peak memory of the process during the training.
// Arguments: dtype, compute.
import { readFileSync, writeFileSync } from 'node:fs';
import { AdapterModel, AutoModelForCausalLM, Trainer } from 'balora';
import { resolveOptions } from '../../../dist/train/options.js';
import { planMemory } from '../../../dist/train/plan.js';

const [dtype, compute] = process.argv.slice(2);
const kVocabulary = 4096;
const kShare = 0.33;
/** Lengths of the texts of each batch. */
const kBatches = [
  [300, 200],
  [512, 512, 512, 512],
  [700, 400, 650],
  [2048],
];
const kLongest = 2048;

const model = await AutoModelForCausalLM.fromConfig(
  {
    model_type: 'llama',
    ...{ vocab_size: kVocabulary, hidden_size: 256, intermediate_size: 768 },
    ...{ num_hidden_layers: 20, num_attention_heads: 4, num_key_value_heads: 2 },
  },
  { dtype, seed: 1 },
);
const tuned = await AdapterModel.create(model, { r: 8, initLoraWeights: true });

function batchOf(lengths) {
  const each = (value) =>
    Int32Array.from(lengths.flatMap((n) => Array.from({ length: n }, (_, t) => value(t))));
  const starts = [0];
  for (const length of lengths) starts.push(starts.at(-1) + length);
  return {
    inputIds: each((t) => (7919 * t) % kVocabulary),
    targets: each((t) => (104729 * t) % kVocabulary),
    positions: each((t) => t),
    cuSeqlens: Int32Array.from(starts),
  };
}
const data = {
  fingerprint: 'arithmetic',
  batchCount: () => kBatches.length,
  *batches(_, start) {
    for (const lengths of kBatches.slice(start)) yield batchOf(lengths);
  },
};

/** Peak memory of this process since its start, or since 5 was written to clear_refs (man 5 proc). */
function peakBytes() {
  const status = readFileSync('/proc/self/status', 'utf8');
  return 1024 * Number(/^VmHWM:\s*(\d+) kB$/m.exec(status)[1]);
}

const options = {
  ...{ tuned, data, compute, maxSteps: kBatches.length },
  regularizers: {
    ...{ consistencyWeight: 0.1, diversityWeight: 0.02, svdWeight: 0.02 },
    regularizerSchedule: 'constant',
  },
};
const plan = await new Trainer(options).plan();

/** The predicted peak for the longest batch under a budget. */
async function foretold(memoryBudget) {
  const planner = await planMemory(options, resolveOptions({ compute, memoryBudget }), { plan });
  return planner.plan(kLongest).bytes;
}

const [least, most] = [await foretold('min'), await foretold('max')];
const budget = Math.round(least + kShare * (most - least));
writeFileSync('/proc/self/clear_refs', '5');
await new Trainer({ ...options, memoryBudget: budget }).train();
console.log(JSON.stringify({ least, budget, most, peak: peakBytes() }));
