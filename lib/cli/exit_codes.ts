/** The exit codes of every command, by what ended it; docs/command-line.md has the same table. */
import { BaloraError, type ErrorCode } from '../errors.ts';

/** The codes that are no signal's. A signal's is 128 + its number, see interrupt.ts. */
export const EXIT = { success: 0, failure: 1, usage: 2 } as const;

/**
 * The exit code of each kind of error. What is wrong with a file or a model that is named (it is missing, damaged, not supported) is a
 * failure in every command; wrong options, and rows that the options do not fit, are wrong usage.
 */
export const EXIT_CODES: Readonly<Record<ErrorCode, number>> = {
  ERR_ARGUMENT: EXIT.usage,
  ERR_UNSUPPORTED: EXIT.failure,
  ERR_FORMAT: EXIT.failure,
  ERR_OUT_OF_MEMORY: EXIT.failure,
  ERR_NOT_FINITE: EXIT.failure,
  ERR_DISK_FULL: EXIT.failure,
  ERR_IO: EXIT.failure,
  ERR_FILE_CHANGED: EXIT.failure,
  ERR_NETWORK: EXIT.failure,
  ERR_ABORTED: EXIT.failure,
  ERR_GRADIENT: EXIT.failure,
  ERR_NATIVE: EXIT.failure,
};

/** The exit code for an error that ended a command. */
export function exitCodeOf(error: unknown): number {
  return error instanceof BaloraError ? EXIT_CODES[error.code] : EXIT.failure;
}
