/**
 * The environment in which a run computes its steps: versions, processor, threads, device. run/environment.jsonl has a line for
 * each start of the run, since a resumed run may be on another machine, and its numbers depend on that (docs/repeatability.md).
 */
import { availableParallelism, cpus } from 'node:os';
import { deviceInfo } from '../device.ts';
import { packageVersion } from '../io/package_version.ts';
import type { Model } from '../models/index.ts';
import { getNumThreads } from '../runtime.ts';
import { LineLog } from './line_log.ts';

/** A line of run/environment.jsonl. */
export interface Environment {
  /** The time of the start, in ISO 8601. */
  readonly time: string;
  /** Number of steps that the run had done at this start, and of those that it is to do. */
  readonly startStep: number;
  readonly totalSteps: number;
  /** Version of balora. */
  readonly balora: string;
  /** Version of Node. */
  readonly node: string;
  /** Operating system and architecture: `linux-x64`. */
  readonly platform: string;
  readonly cpu: {
    /** The processor's name; null where the system does not say. */
    readonly model: string | null;
    /** Number of cores that the process may use. */
    readonly cores: number;
    /** Instruction set of the matrix products; see {@link DeviceInfo}. */
    readonly instructions: string;
  };
  /** Number of threads of the engine. */
  readonly threads: number;
  readonly dtype: string;
  /** Name of the model's device, and its driver's description; '' for the CPU. */
  readonly device: string;
  readonly deviceDescription: string;
  /** The arguments of `balora` on the command line; null where a program made the run. */
  readonly commandLine: readonly string[] | null;
}

/** Describes the environment of a run that begins now. */
export function describeEnvironment(
  { dtype, device }: Pick<Model, 'dtype' | 'device'>,
  start: Pick<Environment, 'startStep' | 'totalSteps' | 'commandLine'>,
): Environment {
  const { startStep, totalSteps, commandLine } = start;
  return {
    time: new Date().toISOString(),
    ...{ startStep, totalSteps },
    balora: packageVersion(),
    node: process.version,
    platform: `${process.platform}-${process.arch}`,
    cpu: {
      model: cpus()[0]?.model ?? null,
      cores: availableParallelism(),
      instructions: deviceInfo('cpu').instructions,
    },
    threads: getNumThreads(),
    ...{ dtype, device },
    deviceDescription: deviceInfo(device).description,
    commandLine,
  };
}

/** Adds a line to a log of starts. */
export async function logEnvironment(path: string, environment: Environment): Promise<void> {
  const log = await LineLog.open<Environment>(path);
  try {
    await log.append(environment, { sync: true });
  } finally {
    await log.close();
  }
}
