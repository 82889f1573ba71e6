// Small training steps in an async loop, with the resident memory, the heap and the engine's statistics at
// intervals, as one JSON line. Run with --expose-gc, so that the heap's own slack is not measured.
import { memoryStats, synchronize } from 'balora';
import { makeStep } from './work.mjs';

const steps = Number(process.argv[2]);
const step = makeStep({ rows: 32, width: 64 });
const samples = [];
for (let i = 1; i <= steps; ++i) {
  const loss = step();
  if (i % 10 === 0) await loss.item();
  loss.dispose();
  if (i % (steps / 10) === 0) {
    await synchronize();
    globalThis.gc();
    const { liveBytes, liveTensors } = memoryStats();
    const { rss, heapUsed } = process.memoryUsage();
    samples.push({ step: i, rss, heapUsed, liveBytes, liveTensors });
  }
}
console.log(JSON.stringify(samples));
