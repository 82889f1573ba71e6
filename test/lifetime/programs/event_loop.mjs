// Delay of the event loop while it idles and while the engine trains, in milliseconds, as one JSON line.
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { makeStep } from './work.mjs';

const [idleMs, busyMs] = process.argv.slice(2).map(Number);

async function delays(work) {
  const monitor = monitorEventLoopDelay({ resolution: 5 });
  monitor.enable();
  await work();
  monitor.disable();
  const ms = (value) => Math.round(value / 1e4) / 100;
  // The histogram counts from the timer's own period.
  return { p50: ms(monitor.percentile(50)) - 5, p99: ms(monitor.percentile(99)) - 5, max: ms(monitor.max) - 5 };
}

const step = makeStep({ rows: 1024, width: 1024 });
const warmUp = step();
await warmUp.data();
const idle = await delays(() => sleep(idleMs));
let steps = 0;
const busy = await delays(async () => {
  for (const end = performance.now() + busyMs; performance.now() < end; ++steps) {
    const loss = step();
    await loss.item();
    loss.dispose();
  }
});
console.log(JSON.stringify({ idle, busy, steps }));
