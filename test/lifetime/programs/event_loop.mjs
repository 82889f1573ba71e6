// Prints the delay of the event loop in milliseconds, while it is idle and while the trainer runs BA-LoRA on the packaged demo
// model, and the niceness of the busy threads, as one line of JSON.
import { readdirSync, readFileSync } from 'node:fs';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import {
  AdapterModel,
  AutoModelForCausalLM,
  arrayRows,
  Batches,
  Tokenizer,
  Trainer,
} from 'balora';
import { kPassageFormat, mobyDick, passages, split } from '../../../examples/demo/corpus.mjs';

const kModel = fileURLToPath(new URL('../../../examples/demo/checkpoint', import.meta.url));
const [idleMs, busyMs] = process.argv.slice(2).map(Number);

async function delays(work) {
  const monitor = monitorEventLoopDelay({ resolution: 5 });
  monitor.enable();
  await work();
  monitor.disable();
  const ms = (value) => Math.round(value / 1e4) / 100;
  // The histogram includes the timer's period of 5 ms.
  return { p50: ms(monitor.percentile(50)) - 5, p99: ms(monitor.percentile(99)) - 5, max: ms(monitor.max) - 5 };
}

/** Niceness and processor time (in ticks) of every thread of this process; empty where there is no /proc. */
function threads() {
  if (process.platform !== 'linux') return [];
  return readdirSync('/proc/self/task').flatMap((id) => {
    try {
      const stat = readFileSync(`/proc/self/task/${id}/stat`, 'utf8');
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ').map(Number);
      return [{ id: Number(id), main: Number(id) === process.pid, ticks: fields[11] + fields[12], nice: fields[16] }];
    } catch {
      return []; // the thread ended meanwhile
    }
  });
}

async function demoTrainer() {
  const tokenizer = await Tokenizer.fromPretrained(kModel);
  const data = await Batches.create(arrayRows(passages(split(mobyDick()).train)), tokenizer, {
    ...kPassageFormat,
    batchSize: 8,
    maxLength: 320,
  });
  const model = await AutoModelForCausalLM.fromPretrained(kModel);
  const tuned = await AdapterModel.create(model, { method: 'balora', r: 8 });
  return new Trainer({ tuned, data, learningRate: 1e-3, maxSteps: 100_000 });
}

async function nextStep(events) {
  for (;;) {
    const { value } = await events.next();
    if (value.type === 'step') return value.record;
  }
}

const events = (await demoTrainer()).run();
const warmUp = await nextStep(events);
const idle = await delays(() => sleep(idleMs));
const before = new Map(threads().map(({ id, ticks }) => [id, ticks]));
let steps = 0;
let last = warmUp;
const busy = await delays(async () => {
  for (const end = performance.now() + busyMs; performance.now() < end; ++steps) last = await nextStep(events);
});
const used = threads().map(({ id, main, nice, ticks }) => ({ main, nice, ticks: ticks - (before.get(id) ?? 0) }));
await events.return();
console.log(JSON.stringify({ idle, busy, steps, consistency: last.terms.consistency.value, threads: used }));
