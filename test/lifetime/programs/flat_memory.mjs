// Runs small training steps in an async loop, and prints the memory in use at intervals as one line of JSON: of the heap, of the
// engine, and what malloc has given out beside V8's (queues, the tape, tables). Each is counted by whoever gives it out. Resident
// memory would be no measure, since the number of empty pages that V8 and malloc keep depends on the load of the machine.
//
//   node --expose-gc flat_memory.mjs STEPS [LEAK]
//
// LEAK: number of bytes that each step leaks in a tensor, and once more in the addon's own memory.
import { getHeapStatistics } from 'node:v8';
import { memoryStats, setNumThreads, synchronize } from 'balora';
import { zeros } from 'balora/ops';
import { native } from '../../../dist/native.js';
import { makeStep } from './work.mjs';

const [steps, leak = 0] = process.argv.slice(2).map(Number);
setNumThreads(1);
const step = makeStep({ rows: 32, width: 64 });
const one = native.full([1], 1, 'f32');
const lost = [];

function lose(i) {
  lost.push(zeros([leak / 4]));
  // The addon never frees the name of an op.
  const name = `${i}`.padEnd(leak, '.');
  for (const handle of native.customNode(name, [one], [one], [], () => [0])) native.dispose(handle);
}

/** Bytes that malloc has given out, without V8's own and its buffers; null where the C library does not count them. */
function ownBytes() {
  const bytes = native.mallocBytes();
  if (!(bytes > 0)) return null;
  return bytes - getHeapStatistics().malloced_memory - process.memoryUsage().arrayBuffers;
}

const samples = [];
for (let i = 1; i <= steps; ++i) {
  const loss = step();
  if (i % 10 === 0) await loss.item();
  loss.dispose();
  if (leak > 0) lose(i);
  if (i % (steps / 10) === 0) {
    await synchronize();
    globalThis.gc();
    const { liveBytes, liveTensors } = memoryStats();
    const { heapUsed } = process.memoryUsage();
    samples.push({ step: i, heapUsed, liveBytes, liveTensors, ownBytes: ownBytes() });
  }
}
console.log(JSON.stringify(samples));
