// A worker that keeps its engine busy and always has a read pending, until it is terminated.
import { parentPort, workerData } from 'node:worker_threads';
import { enqueueLong, makeStep } from './work.mjs';

const step = makeStep({ rows: 256, width: 256 });
enqueueLong();
parentPort.postMessage('busy');
if (workerData?.exit !== undefined) process.exit(workerData.exit);
if (workerData?.fail) throw new Error('thrown on purpose');
for (;;) {
  const loss = step();
  await loss.data();
  loss.dispose();
}
