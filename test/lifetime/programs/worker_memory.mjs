// Terminates workers that use much memory, one after the other, and prints the address space and private memory of this process
// in MiB, and its threads, during and after each.
import { readFileSync } from 'node:fs';
import { isMainThread, parentPort, Worker } from 'node:worker_threads';
import { setNumThreads, synchronize } from 'balora';
import { matmul, randn } from 'balora/ops';

const kWorkers = 8;

/** Allocates 64 MiB of tensors, and enqueues matrix products on two threads. */
async function work() {
  setNumThreads(2);
  const tensors = Array.from({ length: 8 }, (_, seed) => randn([1024, 2048], { seed }));
  const multiply = () => tensors.push(matmul(tensors[0], tensors[1], { transposeB: true }));
  multiply();
  await synchronize();
  parentPort.postMessage('busy');
  for (let i = 0; i < 20; ++i) multiply();
  setInterval(() => tensors, 1000);
}

function held() {
  const status = readFileSync('/proc/self/status', 'utf8');
  const field = (name) => Number(new RegExp(`^${name}:\\s*(\\d+)`, 'm').exec(status)[1]);
  return { spaceMiB: field('VmSize') / 1024, ownMiB: field('RssAnon') / 1024, threads: field('Threads') };
}

if (isMainThread) {
  const samples = [];
  for (let i = 0; i < kWorkers; ++i) {
    const worker = new Worker(new URL(import.meta.url));
    await new Promise((resolve) => worker.once('message', resolve));
    const during = held();
    await worker.terminate();
    samples.push({ during, after: held() });
  }
  console.log(JSON.stringify(samples));
} else {
  await work();
}
