// Makes examples/demo/checkpoint: a tiny model of the LLaMA architecture with a byte-level BPE vocabulary of its own, trained by
// this library from random weights on the State of the Union addresses. The same command gives the same files with the same CPU
// model and number of threads.
//
//   node examples/demo/make_checkpoint.mjs [--epochs 1] [--steps N] [--threads N] [--out examples/demo/checkpoint]
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import {
  AutoModelForCausalLM,
  arrayRows,
  Batches,
  FullModel,
  saveModel,
  setNumThreads,
  Tokenizer,
  Trainer,
} from 'balora';
import { saveSafetensors } from 'balora/io';
import { mul, ones, randn } from 'balora/ops';
import { tokenizerJson, trainBpe } from './bpe.mjs';
import { kPassageFormat, passages, split, stateOfTheUnion } from './corpus.mjs';

const { values: options } = parseArgs({
  options: {
    epochs: { type: 'string', default: '1' },
    steps: { type: 'string' }, // overrides the epochs, and leaves out the evaluations
    threads: { type: 'string' }, // default: the number of cores
    out: {
      type: 'string',
      default: join(dirname(fileURLToPath(import.meta.url)), 'checkpoint'),
    },
  },
});

if (options.threads !== undefined) setNumThreads(Number(options.threads));

const kSpecial = ['<|endoftext|>'];
const kVocabulary = 4096;
const kConfig = {
  architectures: ['LlamaForCausalLM'],
  model_type: 'llama',
  attention_bias: false,
  bos_token_id: 0,
  eos_token_id: 0,
  head_dim: 32,
  hidden_act: 'silu',
  hidden_size: 192,
  intermediate_size: 448,
  max_position_embeddings: 512,
  mlp_bias: false,
  num_attention_heads: 6,
  num_hidden_layers: 5,
  num_key_value_heads: 2,
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  tie_word_embeddings: true,
  vocab_size: kVocabulary,
};

/** Normal weights with deviation .02, divided by sqrt(2 L) for the layers that add to the residual stream (as in GPT-2). */
function randomWeights() {
  const { hidden_size: c, intermediate_size: f, head_dim: d, num_hidden_layers: layers } = kConfig;
  const queries = kConfig.num_attention_heads * d;
  const keys = kConfig.num_key_value_heads * d;
  const narrow = 0.02 / Math.sqrt(2 * layers);
  let seed = 1;
  const normal = (shape, deviation = 0.02) => mul(randn(shape, { seed: seed++ }), deviation);
  const weights = {
    'model.embed_tokens.weight': normal([kVocabulary, c]),
    'model.norm.weight': ones([c]),
  };
  for (let l = 0; l < layers; ++l) {
    Object.assign(weights, {
      [`model.layers.${l}.input_layernorm.weight`]: ones([c]),
      [`model.layers.${l}.self_attn.q_proj.weight`]: normal([queries, c]),
      [`model.layers.${l}.self_attn.k_proj.weight`]: normal([keys, c]),
      [`model.layers.${l}.self_attn.v_proj.weight`]: normal([keys, c]),
      [`model.layers.${l}.self_attn.o_proj.weight`]: normal([c, queries], narrow),
      [`model.layers.${l}.post_attention_layernorm.weight`]: ones([c]),
      [`model.layers.${l}.mlp.gate_proj.weight`]: normal([f, c]),
      [`model.layers.${l}.mlp.up_proj.weight`]: normal([f, c]),
      [`model.layers.${l}.mlp.down_proj.weight`]: normal([c, f], narrow),
    });
  }
  return weights;
}

function writeDescription(folder, dtype, vocabulary) {
  const write = (name, value) =>
    writeFileSync(join(folder, name), `${JSON.stringify(value, null, 1)}\n`);
  write('config.json', { ...kConfig, dtype });
  write('tokenizer.json', tokenizerJson(vocabulary, kSpecial));
  write('tokenizer_config.json', {
    bos_token: kSpecial[0],
    eos_token: kSpecial[0],
    pad_token: kSpecial[0],
    model_max_length: kConfig.max_position_embeddings,
    tokenizer_class: 'PreTrainedTokenizerFast',
  });
}

const documents = split(stateOfTheUnion());
console.log(`${documents.train.length} addresses; training a vocabulary of ${kVocabulary}`);
const vocabulary = trainBpe(
  documents.train.map(({ text }) => text),
  { vocabSize: kVocabulary, special: kSpecial },
);

const work = mkdtempSync(join(tmpdir(), 'balora-tiny-'));
const start = join(work, 'start');
const trained = join(work, 'trained');
mkdirSync(start);
writeDescription(start, 'float32', vocabulary);
await saveSafetensors(join(start, 'model.safetensors'), randomWeights());
const tokenizer = await Tokenizer.fromPretrained(start);
const model = await AutoModelForCausalLM.fromPretrained(start, { dtype: 'f32' });

const open = (list) =>
  Batches.create(arrayRows(passages(list)), tokenizer, {
    ...kPassageFormat,
    batchSize: 16,
    maxLength: 320,
    seed: 1,
  });
const data = await open(documents.train);
console.log(`${data.statistics.tokens} tokens an epoch`);
const trainer = new Trainer({
  tuned: new FullModel(model),
  data,
  learningRate: 2e-3,
  lrSchedulerType: 'cosine',
  warmupSteps: 0.02,
  weightDecay: 0.01,
  numTrainEpochs: Number(options.epochs),
  ...(options.steps === undefined
    ? { evalData: await open(documents.heldOut), evalSteps: 500 }
    : { maxSteps: Number(options.steps) }),
  loggingSteps: 25,
  output: trained,
});
for await (const event of trainer.run()) {
  if (event.type === 'log') {
    const { step, loss, tokensPerSecond } = event.record;
    console.log(
      `step ${step} of ${event.totalSteps}  loss ${loss.toFixed(4)}  ${tokensPerSecond.toFixed(0)} tokens/s  ` +
        `${Math.round(event.secondsLeft)} s left`,
    );
  } else if (event.type === 'evaluation') {
    console.log(`step ${event.step}  held-out loss ${event.result.loss.toFixed(4)}`);
  }
}
writeDescription(trained, 'float32', vocabulary);
const rounded = await AutoModelForCausalLM.fromPretrained(trained, { dtype: 'bf16' });
await saveModel(rounded, options.out);
writeDescription(options.out, 'bfloat16', vocabulary);
rmSync(work, { recursive: true });
