// Fine-tunes a language model with BA-LoRA, evaluates it on held-out rows, and writes the adapter as a PEFT folder.
//
//   node examples/train.mjs [ADAPTER] [MODEL]
//
// ADAPTER is the output folder. MODEL is a folder, a GGUF file or a name on the Hugging Face hub; by default it is the small model
// that comes with the package.
import {
  AdapterModel,
  AutoModelForCausalLM,
  arrayRows,
  Batches,
  demoCheckpoint,
  Tokenizer,
  Trainer,
} from 'balora';

const [output = 'output/adapter', path = demoCheckpoint] = process.argv.slice(2);
// `await openRows('train.jsonl')` reads the rows from a file instead; CSV, TSV and Parquet are supported, too.
const rows = [
  { prompt: 'Call me', response: 'Ishmael.' },
  { prompt: 'There she', response: 'blows!' },
  { prompt: 'From hell’s heart', response: 'I stab at thee.' },
  { prompt: 'Better sleep with', response: 'a sober cannibal than a drunken Christian.' },
];
const heldOut = [{ prompt: 'Towards thee', response: 'I roll, thou all-destroying whale.' }];

const model = await AutoModelForCausalLM.fromPretrained(path);
const tokenizer = await Tokenizer.fromPretrained(path);
const data = await Batches.create(arrayRows(rows), tokenizer, { batchSize: 2 });
const evalData = await Batches.create(arrayRows(heldOut), tokenizer, { shuffle: false });
const tuned = await AdapterModel.create(model, { method: 'balora', r: 8, loraAlpha: 8 });
const trainer = new Trainer({
  tuned,
  data,
  evalData,
  learningRate: 1e-2, // for this tiny model; 2e-4 is a good beginning for larger ones
  maxSteps: 20,
  evalSteps: 10,
  output,
  overwrite: true,
});
for await (const event of trainer.run()) {
  if (event.type === 'step') console.log(`step ${event.record.step}: loss ${event.record.loss}`);
  if (event.type === 'evaluation') console.log(`held-out loss ${event.result.loss}`);
}
console.log(`the adapter is in ${output}`);
