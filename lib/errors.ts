/**
 * The library's errors. Every one that it throws on purpose is one of these four, with a stable `code`; the message names the
 * function or file and what was expected. The native side's errors arrive as the same classes.
 */

export abstract class BaloraError extends Error {
  constructor(
    readonly code: 'ERR_ARGUMENT' | 'ERR_UNSUPPORTED' | 'ERR_FORMAT' | 'ERR_NATIVE',
    message: string,
  ) {
    super(message);
    this.name = new.target.name;
  }
}

/** The caller's fault: a wrong value, shape or option. */
export class ArgumentError extends BaloraError {
  constructor(message: string) {
    super('ERR_ARGUMENT', message);
  }
}

/** A sensible request that this version, device or build cannot do. */
export class UnsupportedError extends BaloraError {
  constructor(message: string) {
    super('ERR_UNSUPPORTED', message);
  }
}

/** A damaged or inconsistent file. */
export class FormatError extends BaloraError {
  /** The file, if it is one. */
  readonly path: string | undefined;
  /** Where in it, in bytes from its start. */
  readonly offset: number | undefined;

  constructor(message: string, where: { path?: string; offset?: number } = {}) {
    super('ERR_FORMAT', message);
    this.path = where.path;
    this.offset = where.offset;
  }
}

/** Anything else that failed natively: memory, a device, a value that is not finite. */
export class NativeError extends BaloraError {
  constructor(message: string) {
    super('ERR_NATIVE', message);
  }
}
