/** Errors that end a run, and the notes in them about the state in which the run was left. */
import { NativeError } from '../errors.ts';
import { oneLine } from '../shown.ts';
import type { CombinedTerms } from './record.ts';

/** The error for a step whose loss or gradients are not finite; no parameter has been changed by it. */
export function notFinite(step: number, terms: CombinedTerms, norm: number): NativeError {
  const values = Object.entries({ taskLoss: terms.taskLoss, ...terms.values, gradNorm: norm })
    .filter(([, value]) => value !== null)
    .map(([name, value]) => `${name} ${value}`);
  return new NativeError(
    `step ${step}: not finite (${values.join(', ')}); the parameters are those after step ${step - 1}`,
    { code: 'ERR_NOT_FINITE' },
  );
}

/**
 * Adds notes to an error's message; the object, its class and its code stay the same. A second error becomes the cause of the
 * first if that has none. A value that is not an Error, or whose message cannot be changed, is left as it is.
 */
export function addNotes(error: unknown, notes: readonly string[], second?: unknown): void {
  if (!(error instanceof Error) || notes.length === 0) return;
  const { message: before, stack, cause } = error;
  const message = [before, ...notes.map((note) => oneLine(note))].join('; ');
  // Assignment would fail for a DOMException, whose message is a getter, so the property is redefined.
  const define = (key: string, value: unknown): boolean =>
    Reflect.defineProperty(error, key, { value, writable: true, configurable: true });
  if (!define('message', message)) return;
  if (stack !== undefined)
    define(
      'stack',
      stack.replace(before, () => message),
    );
  if (second !== undefined && cause === undefined) define('cause', second);
}
