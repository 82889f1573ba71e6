// A worker that repeatedly loads a model, trains an adapter on it, evaluates and saves. It ends in the way and at the moment that
// its workerData names; worker_endings.mjs starts it.
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { parentPort, workerData } from 'node:worker_threads';

const { way, phase, delayMs, folder, hubUrl } = workerData;
let returning = false;

const ways = {
  throw: () => {
    throw new Error('thrown on purpose');
  },
  reject: () => void Promise.reject(new Error('rejected on purpose')),
  exit: () => process.exit(7),
  // The parent terminates the worker and measures the delay, since a timer of the worker would not run while it computes.
  terminate: () => parentPort.postMessage('terminate me'),
  return: () => {
    returning = true;
  },
};

let begun = false;
/** Called at the beginning of each phase; the worker ends some time after the chosen phase has begun for the first time. */
function begin(name) {
  if (name !== phase || begun) return;
  begun = true;
  if (delayMs === 0 || way === 'terminate') ways[way]();
  else setTimeout(ways[way], delayMs);
}

begin('import');
const balora = await import('balora');
const ops = await import('balora/ops');
const { callAndFail, callBack } = await import('./failing_calls.mjs');
balora.setNumThreads(1);

const kRows = [{ prompt: 'Call me', response: 'Ishmael.' }, { prompt: 'There she', response: 'blows!' }];
/** The phase that the trainer enters after each event. */
const kNext = { start: 'step', step: 'evaluation', evaluation: 'save', checkpoint: 'step' };

async function train(round) {
  begin('load');
  const model = await balora.AutoModelForCausalLM.fromPretrained(balora.demoCheckpoint);
  const tokenizer = await balora.Tokenizer.fromPretrained(model.folder);
  begin('start');
  const data = await balora.Batches.create(balora.arrayRows(kRows), tokenizer, { batchSize: 2 });
  const tuned = await balora.AdapterModel.create(model, { method: 'balora', r: 4, loraAlpha: 4 });
  const output = join(folder, `${round}`);
  const schedule = { maxSteps: 3, evalSteps: 1, saveSteps: 1, learningRate: 1e-3 };
  const callbacks = [({ type }) => type === 'step' && begin('callback')];
  const trainer = new balora.Trainer({ tuned, data, evalData: data, ...schedule, callbacks, output });
  for await (const { type } of trainer.run()) begin(kNext[type]);
  tuned.dispose();
  model.dispose();
  rmSync(output, { recursive: true });
}

/** Called by the addon, so that the worker ends with frames of C++ on its stack. */
function inBackward() {
  if (phase !== 'backward') return;
  begin('backward');
  for (const end = performance.now() + 2 * delayMs; performance.now() < end; );
}

/** Enqueues long kernels, and waits for a promise of their result. */
async function compute() {
  const x = ops.randn([1024, 1024], { seed: 1 });
  const products = Array.from({ length: 4 }, () => ops.matmul(x, x));
  const promise = products[0].data();
  begin('kernel');
  await promise;
  for (const tensor of [x, ...products]) tensor.dispose();
}

/** A download that never ends. */
async function fetch() {
  const promise = balora.AutoModelForCausalLM.fromPretrained('nobody/nothing', { hubUrl, cacheDir: folder });
  begin('fetch');
  await promise;
}

for (let round = 0; !returning; ++round) {
  // The order of the phases reaches the chosen one soon.
  if (phase === 'kernel') await compute();
  else if (phase === 'fetch') await fetch();
  else if (phase === 'backward') callBack(inBackward);
  else if (phase === 'calls') {
    begin('calls');
    await callAndFail();
  } else await train(round);
  await new Promise((resolve) => setImmediate(resolve)); // lets timers run where nothing else does
}
// Nothing waits for this read: the environment ends while its promise is pending or just settled.
void ops.matmul(...[0, 1].map((seed) => ops.randn([256, 256], { seed }))).data();
