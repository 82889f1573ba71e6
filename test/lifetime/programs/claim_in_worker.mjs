// Claims the output folder in its workerData and stays, until it is terminated.
import { parentPort, workerData } from 'node:worker_threads';
import { claimOutput } from '../../../dist/train/output.js';

await claimOutput(workerData, { overwrite: false, resume: true });
parentPort.postMessage('claimed');
setInterval(() => {}, 1000);
