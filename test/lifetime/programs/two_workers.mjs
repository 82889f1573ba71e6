// Trains the same small problem on the main thread and in two workers at once; prints whether all three agree.
import { isMainThread, parentPort, Worker } from 'node:worker_threads';
import { setNumThreads } from 'balora';
import { makeStep } from './work.mjs';

async function losses() {
  setNumThreads(1);
  const { step } = makeStep({ rows: 64, columns: 257 });
  const values = [];
  for (let i = 0; i < 200; ++i) {
    const loss = step();
    values.push(await loss.item());
    loss.dispose();
  }
  return values;
}

if (isMainThread) {
  const workers = [0, 1].map(() => new Worker(new URL(import.meta.url)));
  const results = await Promise.all([
    losses(),
    ...workers.map((worker) => new Promise((resolve) => worker.once('message', resolve))),
  ]);
  const codes = await Promise.all(
    workers.map((worker) => new Promise((resolve) => worker.once('exit', resolve))),
  );
  const [first, ...others] = results.map((values) => JSON.stringify(values));
  console.log(JSON.stringify({ codes, equal: others.every((other) => other === first) }));
} else {
  parentPort.postMessage(await losses());
}
