// Runs inputs of one target in this process, one after the other, and appends a line of JSON for each finding to a file. The number
// of the current input is always in another file, so that the parent knows it where this process crashes or hangs.
//
//   node --expose-gc child.mjs '{"target":"gguf","seed":1,"first":0,"count":100,"seconds":10,"folder":"...","report":"..."}'
import { appendFileSync, mkdirSync, openSync, readdirSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as wait } from 'node:timers/promises';
import { BaloraError, setNumThreads, synchronize, trimMemory } from 'balora';
import { oneLine } from '../../dist/shown.js';
import { Finding } from './finding.mjs';
import { saveInput, textOf, writeFiles } from './inputs.mjs';
import { randomOf } from './random.mjs';
import { loadTarget } from './targets.mjs';

const kMiB = 1 << 20;
const kPollMs = 10;
/** How much the highest memory of the process may rise during one input, and how much memory may be left after all of them. */
const kPeakMiB = 384;
const kGrowthMiB = 160;
/** Seconds in which everything is closed on a busy machine, too; an idle one takes some milliseconds. */
const kClosingSeconds = 5;
/** Processor seconds that one input may take. */
const kSlowSeconds = 8;
/** Every code of an error but those that say that balora itself, not the input, is at fault. */
const kAccepted = ['ERR_ARGUMENT', 'ERR_UNSUPPORTED', 'ERR_FORMAT'];

/** Characters that no message has, since they would forge lines of a log or control a terminal. */
const kInvisible = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u;

const { target: name, seed, first, count, seconds, folder, report, save } = JSON.parse(process.argv[2]);
const place = openSync(join(report, 'at'), 'w');
const counts = { inputs: 0, accepted: 0, refused: 0 };
let current = first;

function tell(index, kind, message, stack = '') {
  const line = { index, kind, message: String(message).slice(0, 2000), stack: String(stack).slice(0, 3000) };
  appendFileSync(join(report, 'findings.jsonl'), `${JSON.stringify(line)}\n`);
}

process.on('unhandledRejection', (error) => tell(current, 'unhandled rejection', error?.message ?? error, error?.stack));
process.on('uncaughtException', (error) => tell(current, 'uncaught exception', error?.message ?? error, error?.stack));
process.on('warning', (warning) => tell(current, 'warning', warning.message, warning.stack));

const descriptors = () => (process.platform === 'linux' ? readdirSync('/proc/self/fd').length : 0);

/** Lets the garbage collector and the callbacks of finished work run, and gives back what the engine keeps for reuse. */
async function settle() {
  for (let i = 0; i < 3; ++i) {
    globalThis.gc();
    await wait(1);
  }
  trimMemory();
}

/** Why an error is not one that a caller should see; null: it is fine. */
function fault(target, input, error) {
  if (error instanceof Finding) return { kind: error.kind, message: error.message };
  if (!(error instanceof BaloraError)) {
    return { kind: 'not a BaloraError', message: `${error?.name}: ${error?.message ?? error}` };
  }
  const { message } = error;
  if (kInvisible.test(message.replaceAll('\n  enqueued ', ''))) {
    return { kind: 'unprintable message', message: JSON.stringify(message) };
  }
  const codes = [...kAccepted, ...(target.accepts ?? [])];
  if (!codes.includes(error.code)) return { kind: error.code, message: error.message };
  const names = target.mentions?.(input, error) ?? [];
  if (names.length > 0 && !names.some((part) => message.includes(oneLine(part)))) {
    return { kind: 'does not name its subject', message: `${error.message} (none of ${names.join(', ')})` };
  }
  const [unclear] = /(?<!received )\bundefined\b|\[object Object\]/.exec(error.message) ?? [];
  if (unclear && !target.quotes?.test(error.message) && !textOf(input).includes(unclear)) {
    return { kind: 'unclear message', message: error.message };
  }
  return null;
}

/** Runs one input; counts it, or reports why it is a finding. */
async function runOne(target, state, index) {
  current = index;
  writeSync(place, String(index).padStart(16), 0);
  const input = target.input(randomOf(seed, name, index), state, index);
  if (save) {
    saveInput(save, input);
    return;
  }
  const here = join(folder, 'input');
  mkdirSync(here, { recursive: true });
  writeFiles(here, input);
  const before = { files: descriptors(), peak: process.resourceUsage().maxRSS, cpu: process.cpuUsage() };
  try {
    await target.run(input, state, here);
    await synchronize();
    ++counts.accepted;
  } catch (error) {
    const found = fault(target, input, error);
    if (found === null) ++counts.refused;
    else tell(index, found.kind, found.message, error?.stack);
    await synchronize().catch(() => {});
  }
  ++counts.inputs;
  const used = process.cpuUsage(before.cpu);
  const spent = (used.user + used.system) / 1e6;
  if (spent > (target.slowSeconds ?? kSlowSeconds)) tell(index, 'slow', `${spent.toFixed(1)} s of processor time`);
  const risen = (process.resourceUsage().maxRSS - before.peak) / 1024;
  if (risen > (target.peakMiB ?? kPeakMiB)) tell(index, 'memory', `the process grew by ${Math.round(risen)} MiB`);
  rmSync(here, { recursive: true, force: true });
  if (target.elsewhere) return;
  // A call that has failed may still be reading another file, which it closes on a busy machine some seconds later.
  if (descriptors() > before.files) await settle();
  for (let left = kClosingSeconds * 1000; left > 0 && descriptors() > before.files; left -= kPollMs) await wait(kPollMs);
  if (descriptors() > before.files) tell(index, 'open files', `${descriptors() - before.files} more than before`);
}

setNumThreads(1);
const target = await loadTarget(name);
const state = (await target.open?.({ folder, seed })) ?? {};
const until = performance.now() + 1000 * seconds;
let settled = null;
for (let index = first; index < first + count && performance.now() < until; ++index) {
  await runOne(target, state, index);
  if (index - first === Math.min(200, count >> 1)) {
    await settle();
    settled = process.memoryUsage.rss();
  }
}
await settle();
const grown = settled === null ? 0 : (process.memoryUsage.rss() - settled) / kMiB;
if (grown > (target.growthMiB ?? kGrowthMiB)) {
  tell(first, 'memory', `the process kept ${Math.round(grown)} MiB after the inputs ${first} to ${current}`);
}
await target.close?.(state);
appendFileSync(join(report, 'counts.json'), JSON.stringify(counts));
process.exit(0);
