/** Runs each job in a child process of its own (worker.ts). */
import { fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { NativeError } from '../../lib/errors.ts';
import type { Answer, Job, JobInput, JobKind, JobResult } from './worker.ts';

const kWorker = fileURLToPath(new URL('./worker.js', import.meta.url));

interface ChildOptions {
  /** Number of kernel threads; default: all. */
  readonly threads?: number | undefined;
  /** Device on which the job creates its models and tensors; default: the CPU. */
  readonly device?: string | undefined;
}

/** Runs a job. @throws NativeError with the child's own message and stack where the job fails or the process dies */
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
