// Uses models, runs a shell command once each is in use, and prints what became of them as JSON: for each the steps or batches that were
// seen, the error, and a digest of what was computed.
//
//   node changed_weights.mjs '[{"activity": "train", "path": MODEL, "output": FOLDER, "command": COMMAND, "dtype": "bf16"}, ...]'
//
// Activities: load (the command runs while the weights are read), train, evaluate, merge. With "worker": true they run in a worker, with
// "baseOffload": true on a base that is read as it is used.
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { isMainThread, parentPort, Worker, workerData } from 'node:worker_threads';
import {
  AdapterModel,
  arrayRows,
  AutoModelForCausalLM,
  Batches,
  demoCheckpoint,
  evaluate,
  saveMerged,
  setNumThreads,
  tensor,
  Tokenizer,
  Trainer,
} from 'balora';

const kSteps = 6;
/** The step or batch after which the command runs. */
const kWhen = 3;
/** The case that runs. */
let [path, output, command, dtype, baseOffload, seen] = ['', '', '', 'bf16', false, 0];

const change = () => execFileSync('sh', ['-c', command], { stdio: 'ignore' });
const digest = (bytes) => createHash('sha256').update(bytes).digest('hex');
const digestOf = (name) => digest(readFileSync(join(output, name)));

async function batches(shuffle) {
  const rows = Array.from({ length: kSteps }, (_, i) => ({
    prompt: `Number ${i}:`,
    response: ` the ${'great '.repeat(1 + (i % 3))}state of the union.`,
  }));
  const tokenizer = await Tokenizer.fromPretrained(demoCheckpoint);
  return Batches.create(arrayRows(rows), tokenizer, { batchSize: 1, shuffle });
}

const load = (options) => AutoModelForCausalLM.fromPretrained(path, { dtype, baseOffload, ...options });
const tune = async () => AdapterModel.create(await load(), { method: 'balora', r: 2, loraAlpha: 2 });

const kActivities = {
  async load() {
    const model = await load({
      onProgress: () => {
        if (seen++ > 0) return;
        tensor([0]).dataSync(); // the first tensor has been read
        change();
      },
    });
    const inputIds = Int32Array.of(1, 2, 3);
    const batch = { inputIds, positions: Int32Array.of(0, 1, 2), cuSeqlens: Int32Array.of(0, 3) };
    return digest(new Uint8Array((await model.forward(batch).to('f32').data()).buffer));
  },

  async train() {
    const data = await batches(true);
    const tuned = await tune();
    const trainer = new Trainer({
      ...{ tuned, data, output, maxSteps: kSteps, saveSteps: 1, saveTotalLimit: kSteps },
      learningRate: 0.01,
    });
    for await (const { type, record } of trainer.run()) {
      if (type !== 'step') continue;
      seen = record.step;
      if (seen === kWhen) change();
    }
    return digestOf('adapter_model.safetensors');
  },

  async evaluate() {
    const data = await batches(false);
    const { loss, kl } = await evaluate(await tune(), data.batches(0), {
      onProgress: (examples) => {
        seen = examples;
        if (seen === kWhen) change();
      },
    });
    return `${loss} ${kl}`;
  },

  async merge() {
    const tuned = await tune();
    change();
    await saveMerged(tuned, output);
    return digestOf('model.safetensors');
  },
};

async function run({ activity, ...given }) {
  ({ path, output, command, dtype, baseOffload = false } = given);
  seen = 0;
  try {
    const result = await kActivities[activity]();
    return { seen, result, code: null, message: '' };
  } catch (error) {
    return { seen, result: null, code: error.code ?? null, message: String(error.message) };
  }
}

const runInWorker = (given) =>
  new Promise((resolve, reject) => {
    const worker = new Worker(new URL(import.meta.url), { workerData: given });
    worker.once('message', resolve).once('error', reject);
  });

setNumThreads(2);
if (isMainThread) {
  const outcomes = [];
  for (const given of JSON.parse(process.argv[2])) {
    outcomes.push(await (given.worker ? runInWorker : run)(given));
    console.error(`${outcomes.length} done`);
  }
  console.log(JSON.stringify(outcomes));
} else {
  parentPort.postMessage(await run(workerData));
}
