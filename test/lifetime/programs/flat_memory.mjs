// Small training steps in an async loop, with what memory is in use at intervals, as one JSON line: in the heap, in the
// engine, and of the process's own beside these two (the C library's: queues, the tape, tables). The resident memory as a
// whole would not do: how many empty pages V8 keeps depends on how busy the machine is.
//
//   node --expose-gc flat_memory.mjs STEPS [LEAK]
//
// LEAK: as many bytes are lost in each step, in a tensor and once more in the addon's own memory.
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
  // The addon keeps every name of an op for good.
  const name = `${i}`.padEnd(leak, '.');
  for (const handle of native.customNode(name, [one], [one], [], () => [0])) native.dispose(handle);
}

/** Anonymous pages of the process that hold neither V8's heap nor the engine's blocks; null where nobody tells. */
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
