// Uses a model, runs a shell command once the model is in use, and prints what became of it as JSON: the steps or batches that were
// seen, the error, and a digest of what was computed.
//
//   node changed_weights.mjs ACTIVITY MODEL OUTPUT COMMAND [DTYPE]
//
// Activities: load (the command runs while the weights are read), train, evaluate, merge; worker-train and so on do it in a worker.
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

const [activity, path, output, command, dtype = 'bf16'] = isMainThread
  ? process.argv.slice(2)
  : workerData;
const kSteps = 6;
/** The step or batch after which the command runs. */
const kWhen = 3;
let seen = 0;

const change = () => execFileSync('sh', ['-c', command]);
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

const load = (options) => AutoModelForCausalLM.fromPretrained(path, { dtype, ...options });
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

async function run(name) {
  setNumThreads(2);
  try {
    return { seen, result: await kActivities[name](), code: null, message: '' };
  } catch (error) {
    return { seen, result: null, code: error.code ?? null, message: String(error.message) };
  }
}

async function runInWorker(name) {
  const worker = new Worker(new URL(import.meta.url), {
    workerData: [name, path, output, command, dtype],
  });
  return new Promise((resolve, reject) => {
    worker.once('message', resolve).once('error', reject);
  });
}

if (isMainThread) {
  const inWorker = /^worker-(.*)$/.exec(activity)?.[1];
  const outcome = inWorker === undefined ? await run(activity) : await runInWorker(inWorker);
  console.log(JSON.stringify({ ...outcome, seen: outcome.seen || seen }));
} else {
  const outcome = await run(activity);
  parentPort.postMessage({ ...outcome, seen });
}
