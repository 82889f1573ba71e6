// Trains a model under a budget, and prints what the planner predicts and the peak memory of the process during the training.
// Arguments: dtype, compute, form. The form `lengths` is a model whose memory is mostly activations on batches of several lengths, with a
// budget between the smallest and the largest predicted peak. In the others something else takes the memory, and the budget is a little
// above the smallest plan: `wide`, the term of singular values; `evaluation`, the logits and matrices of evaluations between two steps;
// `result`, an adapter with first values that is written; `packed`, the copies of a large head's f32 weights.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AdapterModel, AutoModelForCausalLM, Trainer } from 'balora';
import { resolveOptions } from '../../../dist/train/options.js';
import { planMemory } from '../../../dist/train/plan.js';

const [dtype, compute, form = 'lengths'] = process.argv.slice(2);
const kShare = 0.33;
const kSlack = 1.04;
const kForms = {
  lengths: {
    ...{ vocab_size: 4096, hidden_size: 256, intermediate_size: 768, num_hidden_layers: 20 },
    // Lengths of the texts of each batch.
    batches: [[300, 200], [1024, 1024, 1024, 1024], [700, 400, 650], [4096]],
  },
  wide: { vocab_size: 512, hidden_size: 3072, intermediate_size: 256, num_hidden_layers: 1 },
  evaluation: { vocab_size: 65536, hidden_size: 64, intermediate_size: 64, num_hidden_layers: 2 },
  result: {
    ...{ vocab_size: 64, hidden_size: 512, intermediate_size: 512, num_hidden_layers: 6, r: 256 },
    init: 'olora',
  },
  packed: { vocab_size: 32768, hidden_size: 512, intermediate_size: 512, num_hidden_layers: 1 },
};
const { batches = [[64], [256], [128, 100]], r = 8, init = true, ...shape } = kForms[form];
const kLongest = Math.max(...batches.map((lengths) => lengths.reduce((a, b) => a + b)));
const kVocabulary = shape.vocab_size;

const model = await AutoModelForCausalLM.fromConfig(
  { model_type: 'llama', ...shape, num_attention_heads: 4, num_key_value_heads: 2 },
  { dtype, seed: 1 },
);
const tuned = await AdapterModel.create(model, { r, loraAlpha: r, initLoraWeights: init });

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
const dataOf = (all) => ({
  fingerprint: 'arithmetic',
  batchCount: () => all.length,
  largestBatch: () => kLongest,
  *batches(_, start) {
    for (const lengths of all.slice(start)) yield batchOf(lengths);
  },
});

/** Peak memory of this process since its start, or since 5 was written to clear_refs (man 5 proc). */
function peakBytes() {
  const status = readFileSync('/proc/self/status', 'utf8');
  return 1024 * Number(/^VmHWM:\s*(\d+) kB$/m.exec(status)[1]);
}

const output = form === 'result' ? mkdtempSync(join(tmpdir(), 'balora-budget-')) : null;
const options = {
  ...{ tuned, data: dataOf(batches), compute, maxSteps: batches.length },
  ...(form === 'evaluation' && { evalData: dataOf([[256, 256, 256]]), evalSteps: 1 }),
  ...(output !== null && { output, overwrite: true }),
  regularizers: {
    ...{ consistencyWeight: 0.1, diversityWeight: 0.02, svdWeight: 0.02 },
    regularizerSchedule: 'constant',
  },
};
const plan = await new Trainer(options).plan();

/** The predicted peak for the longest batch under a budget. */
async function foretold(memoryBudget) {
  const { regularizers } = options;
  const resolved = resolveOptions({ compute, memoryBudget, regularizers });
  const planner = await planMemory(options, resolved, { plan });
  return planner.plan(kLongest).bytes;
}

const [least, most] = [await foretold('min'), await foretold('max')];
const budget = Math.round(
  form === 'lengths' ? least + kShare * (most - least) : kSlack * (await foretold('min')),
);
writeFileSync('/proc/self/clear_refs', '5');
await new Trainer({ ...options, memoryBudget: budget }).train();
const peak = peakBytes();
if (output !== null) rmSync(output, { recursive: true });
console.log(JSON.stringify({ least, budget, most, peak }));
