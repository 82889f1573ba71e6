// Starts workers that end in the middle of typical work with balora, each in a way and at a moment drawn from its seed: an
// uncaught throw, a rejection, process.exit(), terminate(), or a return with work pending. Several workers run at a time, and the
// main thread computes beside them. Each must end in its way and leave this process unaffected.
//
//   node worker_endings.mjs FIRST LAST
//
// It prints a line for each seed when its worker starts, so that the last ones are known where the process dies, and finally the
// line "N of N survived" with counts.
import { once } from 'node:events';
import { constants, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, writeSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { setNumThreads } from 'balora';
import { choices } from './random.mjs';
import { makeStep } from './work.mjs';

const [first, last] = process.argv.slice(2).map(Number);
const kAtOnce = 3;
const kAccessMode = 3; // O_ACCMODE
const kWays = ['throw', 'reject', 'exit', 'terminate', 'terminate', 'return'];
/** The longest delay after the beginning of each phase in milliseconds, about the duration of the phase. */
const kPhases = {
  ...{ import: 300, load: 30, start: 60, step: 60, evaluation: 20, save: 40 },
  ...{ callback: 20, backward: 5, calls: 30, kernel: 60, fetch: 60 },
};
/** The expected exit status, and the beginning of the message of the error event, for each way to end. */
const kExpected = {
  throw: [1, 'thrown on purpose'],
  reject: [1, 'rejected on purpose'],
  exit: [7, null],
  terminate: [1, null],
  return: [0, null],
};
const kNoEnd = ['import', 'fetch']; // phases from which a worker does not return

const folder = mkdtempSync(join(tmpdir(), 'balora-endings-'));
const server = createServer(() => {}).listen(0, '127.0.0.1'); // never answers
await once(server, 'listening');
const hubUrl = `http://127.0.0.1:${server.address().port}`;

function planOf(seed) {
  const { below, pick, chance } = choices(seed);
  const phase = pick(Object.keys(kPhases));
  const way = pick(kWays.filter((name) => name !== 'return' || !kNoEnd.includes(phase)));
  const delayMs = chance(0.15) ? 0 : below(10 * kPhases[phase]) / 10;
  return { way, phase, delayMs };
}

async function end(seed) {
  const plan = planOf(seed);
  const { way, phase, delayMs } = plan;
  writeSync(1, `seed ${seed}: ${way}, ${delayMs} ms after ${phase}\n`);
  const workerData = { ...plan, folder: join(folder, `${seed}`), hubUrl };
  const worker = new Worker(new URL('./ending_worker.mjs', import.meta.url), { workerData });
  let message = null;
  worker.on('error', (error) => {
    message = error.message;
  });
  worker.on('message', () => setTimeout(() => worker.terminate(), delayMs));
  const code = await new Promise((resolve) => worker.on('exit', resolve));
  const [expectedCode, expectedMessage] = kExpected[way];
  // An error that passes through a trainer says in addition where the last checkpoint is.
  const begins = expectedMessage === null ? message === null : message?.startsWith(expectedMessage);
  if (code !== expectedCode || !begins) {
    throw new Error(`seed ${seed} (${way}, ${phase}): the worker ended with ${code}, ${message}`);
  }
  ++counts[way];
}

/** The losses of a training on the main thread. */
async function losses() {
  const step = makeStep({ rows: 32, width: 33 });
  const values = [];
  for (let i = 0; i < 20; ++i) {
    const loss = step();
    values.push(await loss.item());
    loss.dispose();
  }
  return values.join();
}

const counts = Object.fromEntries(kWays.map((way) => [way, 0]));
let next = first;
async function endMany() {
  while (next <= last) await end(next++);
}

let trained = 0;
async function computeBeside(expected) {
  while (next <= last) {
    if ((await losses()) !== expected) throw new Error('the main thread computed something else');
    ++trained;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
}

/**
 * The weight files that this process has mapped, or open to write; it opens none itself. The addon maps each one that it reads. Others
 * that are open to be read are Node's: it leaves the file of a FileHandle open whose open() is under way when a worker is terminated
 * (Node 20.20.2: 152 of 400 workers that do nothing but open and close one).
 */
function weightFilesHeld() {
  const maps = readFileSync('/proc/self/maps', 'utf8').split('\n');
  const open = readdirSync('/proc/self/fd').map((name) => {
    try {
      const [, flags] = /^flags:\s*([0-7]+)/m.exec(readFileSync(`/proc/self/fdinfo/${name}`, 'utf8'));
      return (parseInt(flags, 8) & kAccessMode) === constants.O_RDONLY ? '' : readlinkSync(`/proc/self/fd/${name}`);
    } catch {
      return ''; // the descriptor of the folder itself, closed by now
    }
  });
  return [...maps, ...open].filter((line) => line.includes('.safetensors'));
}

setNumThreads(1);
const expected = await losses();
await Promise.all([computeBeside(expected), ...Array.from({ length: kAtOnce }, endMany)]);
if ((await losses()) !== expected) throw new Error('the main thread computes something else afterwards');
server.closeAllConnections();
server.close();
rmSync(folder, { recursive: true, force: true });
const held = process.platform === 'linux' ? weightFilesHeld() : [];
if (held.length > 0) throw new Error(`left open: ${held.join('; ')}`);
const ended = Object.values(counts).reduce((sum, count) => sum + count, 0);
const report = JSON.stringify({ ...counts, trainedBeside: trained });
writeSync(1, `${ended} of ${last - first + 1} survived ${report}\n`);
