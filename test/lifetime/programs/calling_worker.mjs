// A worker that is nearly always inside the addon, until it is terminated.
import { parentPort } from 'node:worker_threads';
import { callAndFail } from './failing_calls.mjs';

parentPort.postMessage('busy');
for (;;) await callAndFail();
