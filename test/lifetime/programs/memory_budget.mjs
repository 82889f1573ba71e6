// Trains a model under a budget, and prints what the planner predicts and the peak memory of the process during the training.
// Arguments: dtype, compute, form. The form `lengths` is a model whose memory is mostly activations on batches of several lengths, with a
// budget between the smallest and the largest predicted peak. In the others something else takes the memory, and the budget is a little
// above the smallest plan.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { AdapterModel, AutoModelForCausalLM, FullModel, Trainer } from 'balora';
import { resolveRun } from '../../../dist/train/resolve_run.js';
import { planMemory } from '../../../dist/train/plan.js';

const [dtype, compute, form = 'lengths'] = process.argv.slice(2);
const kShare = 0.33;
const kSlack = 1.04;
const kTerms = {
  ...{ consistencyWeight: 0.1, diversityWeight: 0.02, svdWeight: 0.02 },
  regularizerSchedule: 'constant',
};
const kNoTerms = { ...kTerms, consistencyWeight: 0, diversityWeight: 0, svdWeight: 0 };
/** The shape of a model with this vocabulary, hidden states, MLP and number of layers. */
const shaped = (vocab_size, hidden_size, intermediate_size, num_hidden_layers) => ({
  ...{ model_type: 'llama', vocab_size, hidden_size, intermediate_size, num_hidden_layers },
  ...{ num_attention_heads: 4, num_key_value_heads: 2 },
});

/**
 * The forms. `config` is the model's configuration, `adapter` that of its adapter, or null for full fine-tuning; `options` are those of the run
 * that differ from the others'.
 */
const kForms = {
  lengths: {
    config: shaped(4096, 256, 768, 20),
    // Lengths of the texts of each batch.
    batches: [[300, 200], [1024, 1024, 1024, 1024], [700, 400, 650], [4096]],
  },
  // The term of singular values.
  wide: { config: shaped(512, 3072, 256, 1) },
  // The logits and matrices of evaluations between two steps.
  evaluation: { config: shaped(65536, 64, 64, 2), evalBatches: [[256, 256, 256]] },
  // An adapter with first values that is written.
  result: {
    config: shaped(64, 512, 512, 6),
    ...{ adapter: { r: 256, loraAlpha: 256, initLoraWeights: 'olora' }, hasOutput: true },
  },
  // The copies of a large head's f32 weights.
  packed: { config: shaped(32768, 512, 512, 1) },
  // The gradients of a large head.
  full: {
    config: { ...shaped(65536, 256, 256, 1), tie_word_embeddings: true },
    ...{ adapter: null, batches: [[64], [100], [64, 36], [9]] },
    options: { gradientAccumulationSteps: 2, regularizers: { ...kTerms, consistencyWeight: 0 } },
  },
  // The packed copies of a second model.
  teacher: { config: shaped(1024, 512, 2048, 8), adapter: null, hasTeacher: true },
  // All singular values, by the head's Gram matrix.
  nuclear: {
    ...{ config: shaped(512, 1536, 64, 1), batches: [[64], [1800]] },
    options: { regularizers: { ...kTerms, svdNorm: 'nuclear' } },
  },
  // Few of them, by tiles of logits.
  softcap: {
    config: {
      ...{ ...shaped(8192, 128, 64, 2), model_type: 'gemma2', head_dim: 32 },
      ...{ query_pre_attn_scalar: 32, sliding_window: 4096, attn_logit_softcapping: 50 },
      ...{ hidden_activation: 'gelu_pytorch_tanh', final_logit_softcapping: 30 },
    },
    batches: [[64], [3000]],
  },
  // A teacher's states of all micro-batches of a step.
  adaptive: {
    ...{ config: shaped(64, 4096, 64, 1), batches: Array(12).fill([1024]) },
    adapter: { r: 2, targetModules: ['gate_proj'] },
    options: {
      gradientAccumulationSteps: 12,
      regularizers: { ...kNoTerms, consistencyWeight: 0.1, consistencySchedule: 'adaptive' },
    },
  },
  // A teacher's states on their way to a file and back.
  cached: {
    ...{ config: shaped(64, 4096, 64, 1), batches: [[64], [2048], [2048], [64], [2048], [2048]] },
    adapter: { r: 2, targetModules: ['gate_proj'] },
    options: { cacheTeacher: true, regularizers: { ...kNoTerms, consistencyWeight: 0.1 } },
    hasOutput: true,
  },
  // A checkpoint of a whole model.
  resumed: {
    ...{ config: shaped(64, 1024, 1024, 4), adapter: null, hasOutput: true, isResumed: true },
    options: { regularizers: kNoTerms },
  },
};
const { config, batches = [[64], [256], [128, 100]], evalBatches, ...given } = kForms[form];
const { adapter = { r: 8 }, hasTeacher = false, hasOutput = false, isResumed = false } = given;
const kLongest = Math.max(...batches.map((lengths) => lengths.reduce((a, b) => a + b)));
const kVocabulary = config.vocab_size;

const load = () => AutoModelForCausalLM.fromConfig(config, { dtype, seed: 1 });
const model = await load();
const tuned =
  adapter === null
    ? new FullModel(model, hasTeacher ? { teacher: await load() } : {})
    : await AdapterModel.create(model, adapter);

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
  largestBatch: () => Math.max(...all.map((lengths) => lengths.reduce((a, b) => a + b))),
  *batches(_, start) {
    for (const lengths of all.slice(start)) yield batchOf(lengths);
  },
});

/** Peak memory of this process since its start, or since 5 was written to clear_refs (man 5 proc). */
function peakBytes() {
  const status = readFileSync('/proc/self/status', 'utf8');
  return 1024 * Number(/^VmHWM:\s*(\d+) kB$/m.exec(status)[1]);
}

const output = hasOutput ? mkdtempSync(join(tmpdir(), 'balora-budget-')) : null;
const { gradientAccumulationSteps = 1 } = given.options ?? {};
const own = {
  ...{ compute, maxSteps: batches.length / gradientAccumulationSteps },
  ...(output !== null && { output, overwrite: !isResumed }),
  regularizers: kTerms,
  ...given.options,
};
const options = {
  ...{ tuned, data: dataOf(batches), ...own },
  ...(evalBatches && { evalData: dataOf(evalBatches), evalSteps: 1 }),
};
if (isResumed) {
  const stop = new AbortController();
  const first = new Trainer({ ...options, memoryBudget: 2 ** 33, signal: stop.signal });
  for await (const { type } of first.run()) if (type === 'step') stop.abort();
  own.resume = options.resume = true;
}
const plan = await new Trainer(options).plan();

/** The predicted peak for the longest batch under a budget. */
async function foretold(memoryBudget) {
  const planner = await planMemory(options, resolveRun({ ...own, memoryBudget }), { plan });
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
