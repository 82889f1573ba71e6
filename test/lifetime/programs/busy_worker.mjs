// A worker that keeps its engine busy and always has a read pending, until someone ends it.
import { parentPort, workerData } from 'node:worker_threads';
import { enqueueLong, makeStep } from './work.mjs';

const { step } = makeStep({ rows: 512, columns: 1024 });
enqueueLong(4);
parentPort.postMessage('busy');
if (workerData?.exit !== undefined) process.exit(workerData.exit);
if (workerData?.fail) throw new Error('thrown on purpose');
for (;;) {
  const loss = step();
  await loss.data();
  loss.dispose();
}
