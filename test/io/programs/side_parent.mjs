// Starts a side process, prints its number (or posts it, in a worker), and then, by the argument: "kill" ends without a word to it while
// it spins, "wait" waits while it spins, and "idle" has nothing left to do.
import { parentPort } from 'node:worker_threads';
import { SideProcess } from '../../../dist/io/side_process.js';

const side = new SideProcess({
  ...{ module: '../test/io/programs/side_process.mjs', setup: null, heapMiB: 64 },
});
const options = { onEnd: () => new Error('ended') };
const { pid } = await side.ask({ do: 'echo' }, options);
if (parentPort === null) console.log(pid);
else parentPort.postMessage(pid);
const [what] = process.argv.slice(2);
if (what !== 'idle') side.ask({ do: 'spin' }, options).catch(() => {});
if (what === 'kill') setTimeout(() => process.kill(process.pid, 'SIGKILL'), 200);
