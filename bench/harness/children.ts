/** Runs jobs in processes of their own (worker.ts). */
import { fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { NativeError } from '../../lib/errors.ts';
import type { Answer, Job, JobInput, JobKind, JobResult } from './worker.ts';

const kWorker = fileURLToPath(new URL('./worker.js', import.meta.url));

interface ChildOptions {
  /** Kernel threads; left out: all. */
  readonly threads?: number | undefined;
  /** Where the job's models and tensors are made; left out: the CPU. */
  readonly device?: string | undefined;
}

/** @throws NativeError with the child's own message and stack when the job fails or the process dies */
export function runJob<K extends JobKind>(
  kind: K,
  input: JobInput<K>,
  { threads, device }: ChildOptions = {},
): Promise<JobResult<K>> {
  const job: Job = {
    ...{ kind, input },
    ...(threads === undefined ? {} : { threads }),
    ...(device === undefined ? {} : { device }),
  };
  return new Promise((resolve, reject) => {
    const child = fork(kWorker, [JSON.stringify(job)], {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
    });
    let answer: Answer | null = null;
    child.once('message', (message) => {
      answer = message as Answer;
    });
    child.once('error', reject);
    child.once('close', (code, signal) => {
      if (answer === null) {
        reject(new NativeError(`the benchmark ${kind} died (${signal ?? `status ${code}`})`));
      } else if ('error' in answer) {
        reject(new NativeError(`the benchmark ${kind} failed: ${answer.error}`));
      } else {
        resolve(answer.result as JobResult<K>);
      }
    });
  });
}
