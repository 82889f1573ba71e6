/** Errors that end a run, and what they say of what became of it. */
import { NativeError } from '../errors.ts';
import type { CombinedTerms } from './record.ts';

/** The error of a step whose numbers are not finite; nothing was changed by it. */
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
 * Adds notes to an error's message; object, class and code stay as they are. Where there is a second error, it becomes the cause
 * of one that has none. What is no Error, or cannot be written to, is left alone.
 */
export function addNotes(error: unknown, notes: readonly string[], second?: unknown): void {
  if (!(error instanceof Error) || notes.length === 0) return;
  const { message: before, stack, cause } = error;
  const message = [before, ...notes].join('; ');
  // By definition, not assignment: a DOMException has its message behind a getter.
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
