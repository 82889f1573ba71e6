/** The content of a checkpoint other than its tensors, and the check of what a file holds of it. */
import { z } from 'zod';
import { RUN_STATE } from '../adapters/checkpoint_folder.ts';
import { FormatError } from '../errors.ts';
import type { CHECKPOINT_FORMAT } from '../io/run_folder.ts';
import type { Identity } from './identity.ts';
import type { StepRecord } from './types.ts';
import type { Position } from './window.ts';

/** The content of a checkpoint other than its tensors. */
export interface CheckpointState {
  readonly format: typeof CHECKPOINT_FORMAT;
  /** The number of completed optimiser steps. */
  readonly step: number;
  /** The total number of steps S. Where schedules depend on it, a resumed run must use the same number; see extension.ts. */
  readonly totalSteps: number;
  /** The position of the next micro-batch. */
  readonly position: Position;
  readonly elapsedSeconds: number;
  readonly last: StepRecord | null;
  readonly identity: Identity;
  /** PEFT's name for the model's task, for loading the adapter from the checkpoint. */
  readonly taskType?: string;
  /** The number of steps that updated each parameter, by its name. */
  readonly optimizerSteps: Readonly<Record<string, number>>;
  /** Whether an evaluation was due at this step and may not have been completed; a resumed run then begins with it. */
  readonly owesEvaluation?: boolean;
}

const count = z.int().nonnegative();

const kState = z
  .strictObject({
    ...RUN_STATE,
    position: z.strictObject({ epoch: count, microBatch: count }),
    elapsedSeconds: z.number().nonnegative(),
    last: z
      .looseObject({ step: count, epoch: z.number(), loss: z.number() })
      .transform(withTerms)
      .nullable(),
    identity: z.record(z.string(), z.unknown()),
    optimizerSteps: z.record(z.string(), count),
    owesEvaluation: z.boolean().optional(),
  })
  .refine(({ step, totalSteps }) => step <= totalSteps, {
    path: ['step'],
    error: 'is more than totalSteps',
  })
  .refine(({ step, last }) => last === null || last.step === step, {
    path: ['last', 'step'],
    error: 'is not that of the checkpoint',
  })
  .refine(({ step, optimizerSteps }) => Object.values(optimizerSteps).every((n) => n <= step), {
    path: ['optimizerSteps'],
    error: 'has more steps than the run',
  });

/** The record of a step with its terms in one map: records of version 0.2 have fields for the built-in ones. */
function withTerms<R extends Readonly<Record<string, unknown>>>(record: R): R {
  const { terms: own = {}, ...fields }: Record<string, unknown> = record;
  const terms: Record<string, unknown> = {};
  for (const key of ['consistency', 'diversity', 'svd']) {
    const { [key]: value = null, [`${key}Weight`]: weight = 0 } = fields;
    if (value !== null || weight !== 0) terms[key] = { value, weight };
    delete fields[key];
    delete fields[`${key}Weight`];
  }
  return { ...fields, terms: { ...terms, ...(own as object) } } as unknown as R;
}

/**
 * Reads the text of a state file.
 * @throws FormatError naming the file and the field that is wrong
 */
export function parseState(text: string, path: string): CheckpointState {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new FormatError(`${path}: ${(error as Error).message}`, { path });
  }
  const parsed = kState.safeParse(value);
  if (parsed.success) return parsed.data as unknown as CheckpointState;
  const [issue] = parsed.error.issues as [z.core.$ZodIssue];
  const field = issue.path.length === 0 ? '' : `${issue.path.join('.')}: `;
  throw new FormatError(`${path}: ${field}${issue.message}`, { path });
}
