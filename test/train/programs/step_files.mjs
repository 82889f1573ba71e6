// Trains a small model on dist/ for three steps, with two reports of V8's coverage: one right before the third step, and one right after it,
// which has that step alone. Arguments: method, 'live' or 'cached' teacher, task.
import { takeCoverage } from 'node:v8';
import {
  AdapterModel,
  AutoModelForCausalLM,
  AutoModelForSequenceClassification,
  Trainer,
} from 'balora';
import { Run } from '../../../dist/train/run.js';

const [method, teacher, task] = process.argv.slice(2);
const kLength = 12;
const kVocabulary = 64;
const config = {
  ...{ model_type: 'llama', vocab_size: kVocabulary, hidden_size: 32, intermediate_size: 64 },
  ...{ num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, num_labels: 3 },
};
const classifies = task === 'sequence-classification';
const Auto = classifies ? AutoModelForSequenceClassification : AutoModelForCausalLM;
const model = await Auto.fromConfig({ ...config, pad_token_id: 0 }, { seed: 1 });
const rank = method === 'adalora' ? {} : { r: 4 };
const tuned = await AdapterModel.create(model, { method, ...rank, targetModules: ['q_proj'] });

const rows = (value) => Int32Array.from({ length: 2 * kLength }, (_, t) => value(t));
const batch = {
  inputIds: rows((t) => (7 * t) % kVocabulary),
  positions: rows((t) => t % kLength),
  cuSeqlens: Int32Array.of(0, kLength, 2 * kLength),
  ...(classifies
    ? { labels: Int32Array.of(0, 2), indices: Int32Array.of(0, 1) }
    : { targets: rows((t) => (11 * t) % kVocabulary) }),
};
const data = {
  fingerprint: 'arithmetic',
  batchCount: () => 8,
  *batches(_, start) {
    for (let i = start; i < 8; i++) yield batch;
  },
};

const { takeStep } = Run.prototype;
Run.prototype.takeStep = async function () {
  if (this.step !== 2) return takeStep.call(this);
  takeCoverage();
  const record = await takeStep.call(this);
  takeCoverage();
  return record;
};
const cacheTeacher = teacher === 'cached';
await new Trainer({ tuned, data, maxSteps: 3, gradientAccumulationSteps: 2, cacheTeacher }).train();
