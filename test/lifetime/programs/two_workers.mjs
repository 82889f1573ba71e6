// Runs the same small training on the main thread and in two workers at once, and prints whether all three agree.
import { isMainThread, parentPort, Worker } from 'node:worker_threads';
import { setNumThreads } from 'balora';
import { makeStep } from './work.mjs';

async function losses() {
  setNumThreads(1);
  const step = makeStep({ rows: 64, width: 65 });
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
  const once = (event) =>
    Promise.all(workers.map((worker) => new Promise((resolve) => worker.once(event, resolve))));
  const exits = once('exit'); // registered at once, since a worker may end first
  const others = once('message');
  const results = [await losses(), ...(await others)];
  const codes = await exits;
  const [first, ...rest] = results.map((values) => JSON.stringify(values));
  console.log(JSON.stringify({ codes, equal: rest.every((other) => other === first) }));
} else {
  parentPort.postMessage(await losses());
}
