/** Errors that end a run, and the notes in them about the state in which the run was left. */
import { BaloraError, NativeError } from '../errors.ts';
import { oneLine } from '../shown.ts';
import type { DType } from '../tensor.ts';
import type { StepLosses } from './types.ts';

/** The settings that a run's numbers depend on and its user may change, for the advice of an error. */
export interface Tried {
  readonly learningRate: number;
  readonly maxGradNorm: number;
  readonly dtype: DType;
}

/** Advice about a run that diverges. */
function advice({ learningRate, maxGradNorm, dtype }: Tried): string {
  const clip = maxGradNorm === 0 ? 'switch clipping on with' : 'clip to a smaller';
  return [
    `lower the learning rate (${learningRate} in this step)`,
    `${clip} maxGradNorm (now ${maxGradNorm})`,
    ...(dtype === 'f32' || dtype === 'f64' ? [] : [`load the model in dtype f32 (now ${dtype})`]),
    'or find the first such value with setAnomalyMode(true)',
  ].join(', ');
}

/** The values of a step that show what is not finite, as text. */
export function valuesOf({ taskLoss, terms }: StepLosses, norm: number): string {
  const values = Object.entries(terms).map(([key, { value }]) => [key, value] as const);
  return [['taskLoss', taskLoss], ...values, ['gradNorm', norm]]
    .filter(([, value]) => value !== null)
    .map(([name, value]) => `${name} ${value}`)
    .join(', ');
}

/** The error of an op that found a value that is not finite, as an error that says where in a run it was has it. */
export interface FoundBy {
  readonly cause: BaloraError;
  /** In anomaly mode: where the op was called. */
  readonly lines: readonly string[];
}

/** The error for a step in which something is not finite. */
export function notFinite(
  step: number,
  what: string,
  { tried, updating = false, ...found }: { tried: Tried; updating?: boolean } & Partial<FoundBy>,
): NativeError {
  const state = updating
    ? 'while the parameters were written'
    : `the parameters are those after step ${step - 1}`;
  return new NativeError(`step ${step}: not finite (${what}); ${state}`, {
    ...{ code: 'ERR_NOT_FINITE', advice: advice(tried) },
    ...found,
  });
}

/**
 * An error that arose in the course of a run, which says where if it is about a value that is not finite: the op that found it knows
 * nothing of the run. Other errors are returned as they are.
 * @param make makes the error of the place from what is not finite
 */
export function placed(
  error: unknown,
  make: (what: string, found: FoundBy) => NativeError,
): unknown {
  if (!(error instanceof BaloraError) || error.code !== 'ERR_NOT_FINITE') return error;
  return make(`${error.fact}`, { cause: error, lines: error.lines });
}

/** An error of an evaluation, or of the answers to sample prompts, in a run: see {@link placed}. */
export function placedInEvaluation(error: unknown, step: number, tried: Tried): unknown {
  return placed(error, (what, found) => {
    const message = `step ${step}: not finite in the evaluation after it (${what})`;
    return new NativeError(message, { code: 'ERR_NOT_FINITE', advice: advice(tried), ...found });
  });
}

/**
 * Adds notes to an error's message; the object, its class and its code stay the same. A second error becomes the cause of the
 * first if that has none. A value that is not an Error, or whose message cannot be changed, is left as it is.
 */
export function addNotes(error: unknown, notes: readonly string[], second?: unknown): void {
  if (!(error instanceof Error) || notes.length === 0) return;
  const { message: before, stack, cause } = error;
  // Assignment would fail for a DOMException, whose message is a getter, so the property is redefined.
  const define = (key: string, value: unknown): boolean =>
    Reflect.defineProperty(error, key, { value, writable: true, configurable: true });
  if (error instanceof BaloraError) {
    error.amend({ notes });
  } else {
    const message = [before, ...notes.map((note) => oneLine(note))].join('; ');
    if (!define('message', message)) return;
    if (stack !== undefined)
      define(
        'stack',
        stack.replace(before, () => message),
      );
  }
  if (second !== undefined && cause === undefined) define('cause', second);
}
