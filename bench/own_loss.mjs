// Compares three forms of BA-LoRA's loss, built in, written with the fused functions, and written on logits
// (docs/how-to-add-a-loss.md), by the processor seconds of each step and the peak memory of the process.
//
//   node bench/own_loss.mjs --model PATH --data gsm8k/train.jsonl --loss fused|plain|built-in [--steps 4] [--dtype bf16]
import { parseArgs } from 'node:util';
import {
  AdapterModel,
  AutoModelForCausalLM,
  Batches,
  kIgnoredTarget,
  openRows,
  Tokenizer,
  Trainer,
  tensor,
} from 'balora';
import {
  consistencyLoss,
  diversityLoss,
  fusedSvdLoss,
  HeadGram,
  headLogits,
  svdLoss,
} from 'balora/losses';
import { add, crossEntropy, headLosses, indexSelect, mul } from 'balora/ops';

const { values: options } = parseArgs({
  options: {
    model: { type: 'string' },
    data: { type: 'string' },
    loss: { type: 'string', default: 'fused' },
    steps: { type: 'string', default: '4' },
    dtype: { type: 'string', default: 'bf16' },
  },
});
for (const name of ['model', 'data']) {
  if (!options[name]) throw new Error(`--${name} is missing; the file's head shows the command`);
}

const kWeights = { consistencyWeight: 0.025, diversityWeight: 0.005, svdWeight: 0.005 };
const kConstant = { consistencySchedule: 'constant', regularizerSchedule: 'constant' };

const model = await AutoModelForCausalLM.fromPretrained(options.model, { dtype: options.dtype });
const tokenizer = await Tokenizer.fromPretrained(options.model);
const rows = await openRows(options.data);
const data = await Batches.create(rows, tokenizer, { batchSize: 4, shuffle: false });
const tuned = await AdapterModel.create(model, { r: 16, loraAlpha: 16, initLoraWeights: 'pissa' });
const gram = new HeadGram(model.head.weight);

function supervisedRows({ targets }) {
  const supervised = [...targets.keys()].filter((i) => targets[i] !== kIgnoredTarget);
  return {
    indices: tensor(Int32Array.from(supervised)),
    targets: tensor(Int32Array.from(supervised, (i) => targets[i])),
  };
}

function fused({ hidden, headWeight, teacherHidden, logitSoftcap, batch, supervisedRows: count }) {
  const { indices, targets } = supervisedRows(batch);
  const student = indexSelect(hidden, indices);
  const softcap = logitSoftcap ?? 0;
  const { loss } = headLosses({
    ...{ hidden: student, head: headWeight, teacher: indexSelect(teacherHidden(), indices) },
    ...{ targets, softcap, temperature: 2, entropyTopK: 20, taskScale: 1 / count },
    consistencyScale: kWeights.consistencyWeight / count,
    diversityScale: kWeights.diversityWeight / count,
  });
  const svd = fusedSvdLoss(student, { weight: headWeight, softcap }, gram);
  return { loss: add(loss, mul(svd, kWeights.svdWeight)) };
}

function plain({ hidden, headWeight, teacherHidden, logitSoftcap, batch }) {
  const { indices, targets } = supervisedRows(batch);
  const head = { softcap: logitSoftcap };
  const logits = headLogits(indexSelect(hidden, indices), headWeight, head);
  const teacher = headLogits(indexSelect(teacherHidden(), indices), headWeight, head);
  const terms = [
    mul(consistencyLoss(logits, teacher, { temperature: 2 }), kWeights.consistencyWeight),
    mul(diversityLoss(logits), kWeights.diversityWeight),
    mul(svdLoss(logits), kWeights.svdWeight),
  ];
  return { loss: terms.reduce((sum, term) => add(sum, term), crossEntropy(logits, targets)) };
}

const kLosses = {
  'built-in': { regularizers: { ...kWeights, ...kConstant } },
  fused: { loss: fused },
  plain: { loss: plain },
};
if (!kLosses[options.loss]) throw new Error(`--loss is one of ${Object.keys(kLosses).join(', ')}`);
const trainer = new Trainer({
  ...{ tuned, data, learningRate: 1e-4, lrSchedulerType: 'constant' },
  ...{ maxSteps: Number(options.steps), ...kLosses[options.loss] },
});
let before = process.cpuUsage();
for await (const event of trainer.run()) {
  if (event.type !== 'step') continue;
  const { user, system } = process.cpuUsage(before);
  before = process.cpuUsage();
  const { step, loss, supervisedTokens, peakRssBytes } = event.record;
  const seconds = ((user + system) / 1e6).toFixed(2);
  const memory = (peakRssBytes / 2 ** 30).toFixed(2);
  console.log(
    `${options.loss} step ${step}: loss ${loss.toFixed(4)}, ${supervisedTokens} supervised tokens, ${seconds} s, peak ${memory} GiB`,
  );
}
await rows.close();
