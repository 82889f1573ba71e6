// Measures steps of BA-LoRA on a base that is in memory, and on the same base read from the disk within a smaller budget, each in a new
// process: seconds of a step, peak of the process, bytes read and time waited for them.
//
//   node bench/random_checkpoint.mjs /tmp/llama-7b-nf4 --shape llama-2-7b --form nf4
//   node bench/low_memory.mjs --model /tmp/llama-7b-nf4 --base-format nf4 --rows 512 --r 16 --budget 7GiB --offload-budget 4GiB
//
//   node bench/random_checkpoint.mjs /tmp/deep --shape tinyllama-1.1b --layers 34 --form bf16
//   node bench/low_memory.mjs --model /tmp/deep --rows 2048 --r 4 --budget min --offload-budget 0.97GiB --limited
//
// --limited runs the second process in a memory control group with its budget and --limit-extra (default 10%) as the limit, pages of
// files in the system's cache included, so that the base does come from the disk. It needs root.
import { execFileSync, spawn } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmdirSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { AdapterModel, AutoModelForCausalLM, setNumThreads, Trainer } from 'balora';

const { values: given } = parseArgs({
  options: {
    model: { type: 'string' },
    'base-format': { type: 'string' },
    dtype: { type: 'string', default: 'bf16' },
    rows: { type: 'string', default: '512' },
    r: { type: 'string', default: '16' },
    steps: { type: 'string', default: '3' },
    threads: { type: 'string' },
    budget: { type: 'string', default: 'max' },
    'offload-budget': { type: 'string', default: '4GiB' },
    'offload-folder': { type: 'string' },
    only: { type: 'string' },
    limited: { type: 'boolean', default: false },
    'limit-extra': { type: 'string', default: '0.1' },
    run: { type: 'string' },
  },
});
const kRegularizers = { consistencyWeight: 0.1, diversityWeight: 0.02, svdWeight: 0.02 };

/** "4GiB" -> bytes; max and min as they are. */
function bytesOf(text) {
  const [, number, unit] = /^([\d.]+)(GiB|MiB)$/.exec(text) ?? [];
  return number === undefined ? text : Number(number) * 2 ** (unit === 'GiB' ? 30 : 20);
}

/** The parent's side: one process after the other. */
async function compare() {
  const kinds = given.only === undefined ? ['memory', 'offload'] : [given.only];
  const found = {};
  console.log(JSON.stringify({ kind: 'disk', gbPerSecond: readSpeed(given.model) }));
  for (const kind of kinds) {
    found[kind] = await inProcess(kind);
    console.log(JSON.stringify({ kind, ...found[kind] }));
  }
  if (found.memory && found.offload) {
    const ratio = found.offload.secondsPerStep / found.memory.secondsPerStep;
    // Later ones may differ by rounding, where the budgets checkpoint other layers.
    const sameFirstLoss = found.offload.losses[0] === found.memory.losses[0];
    console.log(JSON.stringify({ kind: 'ratio', time: Number(ratio.toFixed(3)), sameFirstLoss }));
  }
}

/** GB/s at which the disk gives the largest file of a model, past the system's cache; null where it cannot be read so. */
function readSpeed(model) {
  const file = join(model, readdirSync(model).find((name) => name.endsWith('.safetensors')) ?? '');
  const start = performance.now();
  try {
    execFileSync('dd', [`if=${file}`, 'of=/dev/null', 'bs=16M', 'count=96', 'iflag=direct'], {
      stdio: 'ignore',
    });
  } catch {
    return null;
  }
  return Number(((96 * 2 ** 24) / 1e6 / (performance.now() - start)).toFixed(2));
}

async function inProcess(kind) {
  const group =
    kind === 'offload' && given.limited ? makeGroup(bytesOf(given['offload-budget'])) : null;
  try {
    const script = [fileURLToPath(import.meta.url), ...process.argv.slice(2), '--run', kind];
    // The shell joins the group, so that all of the process counts.
    const child =
      group === null
        ? spawn(process.execPath, script, { stdio: ['ignore', 'pipe', 'inherit'] })
        : spawn(
            'sh',
            [
              '-c',
              `echo $$ > '${group}/cgroup.procs' && exec "$@"`,
              'sh',
              process.execPath,
              ...script,
            ],
            {
              stdio: ['ignore', 'pipe', 'inherit'],
            },
          );
    let text = '';
    child.stdout.on('data', (part) => (text += part));
    const code = await new Promise((done) => child.once('close', done));
    if (code !== 0) throw new Error(`the process ended with ${code}: ${text}`);
    return JSON.parse(text);
  } finally {
    if (group !== null) rmdirSync(group);
  }
}

/** A memory control group of version 2 or 1. */
function makeGroup(budget) {
  const isVersion2 = existsSync('/sys/fs/cgroup/cgroup.controllers');
  const group = join(
    isVersion2 ? '/sys/fs/cgroup' : '/sys/fs/cgroup/memory',
    `balora-bench-${process.pid}`,
  );
  mkdirSync(group);
  const limit = Math.round(budget * (1 + Number(given['limit-extra'])));
  writeFileSync(join(group, isVersion2 ? 'memory.max' : 'memory.limit_in_bytes'), String(limit));
  return group;
}

/** The child's side: a run of some steps. */
async function run(kind) {
  const isOffloaded = kind === 'offload';
  if (given.threads !== undefined) setNumThreads(Number(given.threads));
  const model = await AutoModelForCausalLM.fromPretrained(given.model, {
    ...{ dtype: given.dtype, baseOffload: isOffloaded },
    ...(given['base-format'] !== undefined && { baseFormat: given['base-format'] }),
    ...(given['offload-folder'] !== undefined && { offloadFolder: given['offload-folder'] }),
  });
  const afterLoading = peakBytes();
  // The start of LoRA: the time of a step does not depend on it, and singular values of large matrices take long.
  const tuned = await AdapterModel.create(model, { r: Number(given.r), initLoraWeights: true });
  const steps = Number(given.steps);
  const trainer = new Trainer({
    ...{ tuned, data: batchesOf(Number(given.rows), steps, model.vocabSize), maxSteps: steps },
    regularizers: { ...kRegularizers, regularizerSchedule: 'constant' },
    memoryBudget: bytesOf(isOffloaded ? given['offload-budget'] : given.budget),
  });
  const seconds = [];
  const losses = [];
  let start = 0;
  let before;
  for await (const event of trainer.run()) {
    if (event.type === 'start') {
      start = performance.now();
      before = model.offload?.stats(); // what the memory plan has read by then is not a step's
    }
    if (event.type !== 'step') continue;
    seconds.push((performance.now() - start) / 1000);
    losses.push(event.record.loss);
    start = performance.now();
  }
  const stats = model.offload?.stats();
  const processor = process.cpuUsage();
  const shown = {
    // The first step brings the share into memory.
    secondsPerStep: median(seconds.length > 1 ? seconds.slice(1) : seconds),
    ...{ seconds, losses },
    peakGiB: peakBytes() / 2 ** 30,
    peakAfterLoadingGiB: afterLoading / 2 ** 30,
    processorSeconds: (processor.user + processor.system) / 1e6,
    ...(stats && {
      baseGiB: stats.totalBytes / 2 ** 30,
      residentGiB: stats.residentBytes / 2 ** 30,
      readGiBPerStep: (stats.readBytes - before.readBytes) / 2 ** 30 / steps,
      waitedSecondsPerStep: (stats.waitedSeconds - before.waitedSeconds) / steps,
    }),
  };
  console.log(
    JSON.stringify(shown, (_, value) =>
      typeof value === 'number' ? Number(value.toPrecision(6)) : value,
    ),
  );
}

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

/** Peak memory of this process since its start (man 5 proc). */
function peakBytes() {
  return 1024 * Number(/^VmHWM:\s*(\d+) kB$/m.exec(readFileSync('/proc/self/status', 'utf8'))[1]);
}

/** A batch of one sequence for each step, whose second half is supervised. */
function batchesOf(rows, count, vocabulary) {
  const batch = (i) => ({
    inputIds: Int32Array.from({ length: rows }, (_, t) => (7919 * (t + rows * i)) % vocabulary),
    targets: Int32Array.from({ length: rows }, (_, t) =>
      2 * t < rows ? -100 : (104729 * t) % vocabulary,
    ),
    positions: Int32Array.from({ length: rows }, (_, t) => t),
    cuSeqlens: Int32Array.of(0, rows),
  });
  return {
    fingerprint: 'arithmetic',
    batchCount: () => count,
    *batches(_, start) {
      for (let i = start; i < count; i++) yield batch(i);
    },
  };
}

if (given.model === undefined) {
  console.error(
    'usage: node bench/low_memory.mjs --model FOLDER [--base-format nf4] [--rows N] [--budget SIZE] [--offload-budget SIZE] [--limited]',
  );
  process.exit(2);
}
await (given.run === undefined ? compare() : run(given.run));
