// Ends in the way that its argument names, while the engine has queued work.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { runInThisContext } from 'node:vm';
import { Worker } from 'node:worker_threads';
import { native } from '../../../dist/native.js';
import { callBack } from './failing_calls.mjs';
import { enqueueLong, makeStep } from './work.mjs';

const endings = {
  // The process ends without waiting for the queued work.
  natural: () => {},
  'process.exit': () => process.exit(7),
  'exit-in-await': async () => {
    setTimeout(() => process.exit(7), 50);
    const loss = makeStep({ rows: 1024, width: 1024 })();
    await loss.data();
    await new Promise(() => setInterval(() => {}, 1000));
  },
  throw: () => {
    throw new Error('thrown on purpose');
  },
  'throw-in-timer': () => {
    setTimeout(() => {
      throw new Error('thrown on purpose');
    }, 20);
  },
  rejection: () => {
    void Promise.reject(new Error('rejected on purpose'));
  },
  'exit-in-callback': () => callBack(() => process.exit(7)),
  'throw-in-callback': () => {
    callBack(() => {
      throw new Error('thrown on purpose');
    });
  },
  // Enqueues more work in beforeExit, three times.
  'before-exit': () => {
    let times = 0;
    process.on('beforeExit', async () => {
      if (++times > 3) return;
      const loss = makeStep({ rows: 64, width: 64 })();
      console.log(Number.isFinite(await loss.item()));
    });
  },
  // Scripts that exceed their time limit in JS that the addon has called. Ctrl-C in the REPL ends them in the same way.
  'script-timeout': () => {
    const x = native.full([1], 1, 'f32');
    native.setRequiresGrad(x, true);
    const clock = performance; // Node loads it at its first use, which the time limit could interrupt
    const spin = () => {
      for (const end = clock.now() + 2; clock.now() < end; );
      return [0]; // no gradient
    };
    globalThis.step = () => native.backward(native.customNode('spin', [x], [native.full([1], 1, 'f32')], [], spin), [null], false);
    for (let round = 0; round < 20; ++round) {
      try {
        runInThisContext('for (;;) step()', { timeout: 5 });
      } catch (error) {
        if (error.code !== 'ERR_SCRIPT_EXECUTION_TIMEOUT') throw error;
      }
    }
    console.log('timed out');
  },
  abort: () => process.abort(),
  // The parent sends the signal when it reads this line.
  signal: () => {
    setInterval(() => enqueueLong(), 100);
    console.log('busy');
  },
  'worker-terminate': async () => {
    for (let round = 0; round < 5; ++round) {
      const worker = new Worker(new URL('./busy_worker.mjs', import.meta.url));
      await new Promise((resolve) => worker.once('message', resolve));
      await worker.terminate();
      console.log(`terminated ${round}`);
    }
  },
  // Termination at an arbitrary place of a call: one that finds JS forbidden must return without a crash.
  'worker-terminate-calling': async () => {
    for (let round = 0; round < 30; ++round) {
      const worker = new Worker(new URL('./calling_worker.mjs', import.meta.url));
      worker.on('error', (error) => console.error(error));
      await new Promise((resolve) => worker.once('message', resolve));
      await new Promise((resolve) => setTimeout(resolve, round % 7));
      await worker.terminate();
    }
    console.log('terminated');
  },
  // Termination during the call that opens a file with a header that takes a while to read: the file is not returned, and must
  // not stay open.
  'worker-terminate-opening': async () => {
    const folder = mkdtempSync(join(tmpdir(), 'balora-opening-'));
    const path = join(folder, 'many.safetensors');
    writeManyTensors(path);
    const code = `import(${JSON.stringify(import.meta.resolve('../../../dist/native.js'))}).then(({ native }) => {
      require('node:worker_threads').parentPort.postMessage('opening');
      for (;;) native.openSafetensors(${JSON.stringify(path)});
    })`;
    for (let round = 0; round < 5; ++round) {
      const worker = new Worker(code, { eval: true });
      await new Promise((resolve) => worker.once('message', resolve));
      await new Promise((resolve) => setTimeout(resolve, 20));
      await worker.terminate();
    }
    rmSync(folder, { recursive: true });
    const maps = readFileSync('/proc/self/maps', 'utf8').split('\n');
    console.log(`still mapped: ${maps.filter((line) => line.includes(folder)).length}`);
  },
  // V8 terminates a worker beyond its memory limit, here in a call of the addon or in JS that the addon called.
  'worker-out-of-memory': async () => {
    const code = `import(${JSON.stringify(import.meta.resolve('./failing_calls.mjs'))}).then(({ callBack, failAtOnce }) => {
      const kept = [];
      for (;;) {
        callBack(() => { for (let i = 0; i < 2000; ++i) kept.push({ i, list: [i] }); });
        failAtOnce();
      }
    })`;
    for (let round = 0; round < 3; ++round) {
      const worker = new Worker(code, { eval: true, resourceLimits: { maxOldGenerationSizeMb: 24 } });
      const error = await new Promise((resolve) => worker.once('error', resolve));
      console.log(error.code);
    }
  },
  'worker-exit': async () => {
    const worker = new Worker(new URL('./busy_worker.mjs', import.meta.url), {
      workerData: { exit: 5 },
    });
    const code = await new Promise((resolve) => worker.once('exit', resolve));
    console.log(`worker exited with ${code}`);
  },
  'worker-throw': async () => {
    const worker = new Worker(new URL('./busy_worker.mjs', import.meta.url), {
      workerData: { fail: true },
    });
    const error = await new Promise((resolve) => worker.once('error', resolve));
    console.log(`worker failed: ${error.message}`);
  },
  'exit-with-busy-worker': async () => {
    const worker = new Worker(new URL('./busy_worker.mjs', import.meta.url));
    await new Promise((resolve) => worker.once('message', resolve));
    process.exit(7);
  },
};

/** Writes a safetensors file of ten thousand empty tensors. */
function writeManyTensors(path) {
  const empty = { dtype: 'F32', shape: [0], data_offsets: [0, 0] };
  const entries = Array.from({ length: 10_000 }, (_, i) => [`tensor.${i}`, empty]);
  const header = Buffer.from(JSON.stringify(Object.fromEntries(entries)));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  writeFileSync(path, Buffer.concat([length, header]));
}

const name = process.argv[2];
// Endings without queued work, since they wait for the engine or need it to be fast.
const kUnburdened = ['before-exit', 'worker-terminate-opening', 'script-timeout', 'worker-out-of-memory'];
if (!kUnburdened.includes(name)) enqueueLong();
await endings[name]();
