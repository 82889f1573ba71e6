// Runs small training steps in an async loop, and prints the memory in use at intervals as one line of JSON: of the heap, of the
// engine, and the rest of the process's own (the C library's: queues, the tape, tables). The total resident memory would be no
// measure, since the number of empty pages that V8 keeps depends on the load of the machine.
//
//   node --expose-gc flat_memory.mjs STEPS [LEAK]
//
// LEAK: number of bytes that each step leaks in a tensor, and once more in the addon's own memory.
import { readFileSync } from 'node:fs';
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

/** Bytes of anonymous pages that belong neither to V8's heap nor to the engine's blocks; null without /proc. */
function ownBytes({ liveBytes, cachedBytes }) {
  if (process.platform !== 'linux') return null;
  const kibibytes = Number(/^RssAnon:\s*(\d+)/m.exec(readFileSync('/proc/self/status', 'utf8'))[1]);
  return 1024 * kibibytes - getHeapStatistics().total_physical_size - liveBytes - cachedBytes;
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
    const stats = memoryStats();
    const { liveBytes, liveTensors } = stats;
    const { heapUsed } = process.memoryUsage();
    samples.push({ step: i, heapUsed, liveBytes, liveTensors, ownBytes: ownBytes(stats) });
  }
}
console.log(JSON.stringify(samples));
