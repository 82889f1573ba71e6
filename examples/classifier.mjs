// Trains a classifier on labelled sentences with BA-LoRA, and evaluates it.
//
//   node examples/classifier.mjs [ADAPTER] [MODEL]
//
// MODEL is an encoder, such as all-MiniLM-L6-v2, or a decoder. By default it is the small decoder that comes with the package.
import {
  AdapterModel,
  AutoModelForSequenceClassification,
  arrayRows,
  demoCheckpoint,
  evaluateClassifier,
  LabelledBatches,
  Tokenizer,
  Trainer,
  warmUpHead,
} from 'balora';

const [output = 'output/classifier', path = demoCheckpoint] = process.argv.slice(2);
const rows = [
  { text: 'The peace and prosperity of our country', label: 'state' },
  { text: 'The Congress has made provision for the army', label: 'state' },
  { text: 'Our revenue exceeds the public expenditure', label: 'state' },
  { text: 'The white whale was seen from the mast', label: 'sea' },
  { text: 'All hands lowered the boats into the waves', label: 'sea' },
  { text: 'The harpoon flew over the stormy sea', label: 'sea' },
];

const tokenizer = await Tokenizer.fromPretrained(path);
const data = await LabelledBatches.create(arrayRows(rows), tokenizer, { batchSize: 3 });
const { numLabels, problemType, names } = data.scheme;
const labels = { numLabels, problemType, labelNames: names };
const model = await AutoModelForSequenceClassification.fromPretrained(path, labels);
await warmUpHead(model, data); // trains the head alone first, since a randomly initialised one is no useful teacher
const tuned = await AdapterModel.create(model, { method: 'balora', r: 8, loraAlpha: 8 });
const trainer = new Trainer({
  tuned,
  data,
  learningRate: 1e-3,
  maxSteps: 20,
  output,
  overwrite: true,
});
await trainer.train();
const { metrics, loss } = await evaluateClassifier(tuned.model, data.batches(0));
console.log(
  `accuracy ${metrics.accuracy}, loss ${loss} on the ${rows.length} rows it was trained on`,
);
console.log(`the adapter and its head are in ${output}`);
