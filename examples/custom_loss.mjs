// Trains with a custom loss: cross-entropy with smoothed labels, written in tensor ops.
//
//   node examples/custom_loss.mjs [ADAPTER] [MODEL]
import {
  AdapterModel,
  AutoModelForCausalLM,
  arrayRows,
  Batches,
  demoCheckpoint,
  Tokenizer,
  Trainer,
  tensor,
} from 'balora';
import { headLogits } from 'balora/losses';
import { add, crossEntropy, indexSelect, logSoftmax, mean, mul } from 'balora/ops';

const [output = 'output/smoothed', path = demoCheckpoint] = process.argv.slice(2);
const kSmoothing = 0.1;
const rows = [
  { prompt: 'Call me', response: 'Ishmael.' },
  { prompt: 'There she', response: 'blows!' },
];

/** The loss of a micro-batch: the mean over its supervised rows, whose target is not -100. */
function smoothedLoss({ hidden, headWeight, logitSoftcap, batch }) {
  const supervised = [...batch.targets.keys()].filter((i) => batch.targets[i] >= 0);
  const used = indexSelect(hidden, tensor(Int32Array.from(supervised)));
  const targets = tensor(Int32Array.from(supervised, (i) => batch.targets[i]));
  const logits = headLogits(used, headWeight, { softcap: logitSoftcap });
  const task = crossEntropy(logits, targets);
  const uniform = mul(mean(logSoftmax(logits)), -1);
  const loss = add(mul(task, 1 - kSmoothing), mul(uniform, kSmoothing));
  return { loss, metrics: { task: task.detach(), uniform: uniform.detach() } };
}

const model = await AutoModelForCausalLM.fromPretrained(path);
const data = await Batches.create(arrayRows(rows), await Tokenizer.fromPretrained(path));
const tuned = await AdapterModel.create(model, { r: 8, loraAlpha: 8 });
const trainer = new Trainer({
  tuned,
  data,
  loss: smoothedLoss,
  learningRate: 1e-3,
  maxSteps: 20,
  output,
  overwrite: true,
});
for await (const event of trainer.run()) {
  if (event.type !== 'step') continue;
  const { step, loss, custom } = event.record;
  console.log(`step ${step}: loss ${loss}, task ${custom.task}, uniform ${custom.uniform}`);
}
