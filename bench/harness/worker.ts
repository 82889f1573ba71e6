/**
 * The child's side of a row: it runs one job in a fresh process, so that memory and caches are the row's own. children.ts starts it
 * with the job as its argument; it answers once and ends.
 */
import { setDefaultDevice } from '../../lib/device.ts';
import { setNumThreads } from '../../lib/runtime.ts';
import { type MicroInput, microRows } from './kernels/row.ts';
import { describeMachine } from './machine.ts';
import { type DecodeInput, decodeRow } from './rows/decode.ts';
import { type MethodRowInput, methodRow } from './rows/method.ts';
import { type OverheadInput, overheadRow } from './rows/overhead.ts';
import { type PissaRowInput, pissaRow } from './rows/pissa.ts';
import { type StartRowInput, startSeconds } from './rows/start.ts';
import { stepRow } from './rows/step.ts';
import type { StepRowInput } from './step_setup.ts';
import { type TorchInputs, writeTorchInputs } from './torch_inputs.ts';

const kJobs = {
  machine: (input: { trial: boolean }) => describeMachine(input),
  step: (input: StepRowInput) => stepRow(input),
  micro: (input: MicroInput) => microRows(input),
  decode: (input: DecodeInput) => decodeRow(input),
  method: (input: MethodRowInput) => methodRow(input),
  overhead: (input: OverheadInput) => overheadRow(input),
  pissa: (input: PissaRowInput) => pissaRow(input),
  start: (input: StartRowInput) => startSeconds(input),
  torchInputs: (input: TorchInputs) => writeTorchInputs(input),
};

export type JobKind = keyof typeof kJobs;
export type JobInput<K extends JobKind> = Parameters<(typeof kJobs)[K]>[0];
export type JobResult<K extends JobKind> = Awaited<ReturnType<(typeof kJobs)[K]>>;

/** The message that a child sends back. */
export type Answer = { readonly result: unknown } | { readonly error: string };

export interface Job {
  readonly kind: JobKind;
  readonly input: unknown;
  readonly threads?: number;
  /** Device on which the job creates its models and tensors. Default: the CPU. */
  readonly device?: string;
}

async function answer(text: string): Promise<Answer> {
  try {
    const { kind, input, threads, device } = JSON.parse(text) as Job;
    if (device !== undefined) setDefaultDevice(device);
    if (threads !== undefined) setNumThreads(threads);
    const job = kJobs[kind] as (input: unknown) => Promise<unknown>;
    return { result: await job(input) };
  } catch (error) {
    return { error: (error as Error).stack ?? String(error) };
  }
}

if (process.send !== undefined && process.argv[2] !== undefined) {
  // The job ends with its parent; otherwise it would disturb the next benchmark.
  const stop = (): void => process.exit(1);
  process.once('disconnect', stop);
  process.send(await answer(process.argv[2]));
  process.off('disconnect', stop);
  process.disconnect();
}
