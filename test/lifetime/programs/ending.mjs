// Ends in the way its argument names while the engine is in the middle of queued work.
import { Worker } from 'node:worker_threads';
import { enqueueLong, makeStep } from './work.mjs';

const endings = {
  // Nobody waits for the queued work: the process just ends.
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
  // Wherever its calls happen to be: one that finds JS forbidden must end without a crash.
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

enqueueLong();
await endings[process.argv[2]]();
