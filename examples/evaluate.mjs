// Evaluates an adapter on held-out rows: loss and perplexity, and the distance (KL) to the model without it.
//
//   node examples/evaluate.mjs [ADAPTER] [MODEL]         after node examples/train.mjs [ADAPTER] [MODEL]
import {
  AdapterModel,
  AutoModelForCausalLM,
  arrayRows,
  Batches,
  demoCheckpoint,
  evaluate,
  Tokenizer,
} from 'balora';

const [adapter = 'output/adapter', path = demoCheckpoint] = process.argv.slice(2);
const rows = [
  { prompt: 'Call me', response: 'Ishmael.' },
  { prompt: 'Towards thee', response: 'I roll, thou all-destroying whale.' },
];

const model = await AutoModelForCausalLM.fromPretrained(path);
const tuned = await AdapterModel.fromPretrained(model, adapter);
const tokenizer = await Tokenizer.fromPretrained(path);
const data = await Batches.create(arrayRows(rows), tokenizer, { shuffle: false });
const result = await evaluate(tuned, data.batches(0));
console.log(`loss ${result.loss}, perplexity ${result.perplexity}`);
console.log(`KL to the model before tuning ${result.kl}, entropy ${result.entropy}`);
for (const { loss, supervisedTokens } of result.examples) {
  console.log(`  an example of ${supervisedTokens} supervised tokens: loss ${loss}`);
}
