// The four kinds of failure a caller can tell apart, by class or by `code`. Native errors arrive as the same classes.

/** Base of every error that balora throws on purpose. */
export class BaloraError extends Error {
  readonly code: string;

  constructor(code: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
    this.name = new.target.name;
  }
}

/** The caller passed something wrong (`ERR_ARGUMENT`). */
export class ArgumentError extends BaloraError {
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_ARGUMENT', message, options);
  }
}

/** The request is sensible, but not available here (`ERR_UNSUPPORTED`): a device, a dtype, a platform, a model. */
export class UnsupportedError extends BaloraError {
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_UNSUPPORTED', message, options);
  }
}

/** A damaged or foreign file (`ERR_FORMAT`), with its `path` and, where one place is at fault, the byte `offset`. */
export class FormatError extends BaloraError {
  readonly path: string | undefined;
  readonly offset: number | undefined;

  constructor(message: string, where: { path?: string; offset?: number } & ErrorOptions = {}) {
    super('ERR_FORMAT', message, where);
    this.path = where.path;
    this.offset = where.offset;
  }
}

/** Everything else (`ERR_NATIVE`): memory, the operating system, a library, a kernel. */
export class NativeError extends BaloraError {
  constructor(message: string, options?: ErrorOptions) {
    super('ERR_NATIVE', message, options);
  }
}

/** The class for a code; what the addon calls to build the errors it throws. */
export function errorFromCode(
  code: string,
  message: string,
  path?: string,
  offset?: number,
): BaloraError {
  switch (code) {
    case 'ERR_ARGUMENT':
      return new ArgumentError(message);
    case 'ERR_UNSUPPORTED':
      return new UnsupportedError(message);
    case 'ERR_FORMAT':
      return new FormatError(message, {
        ...(path !== undefined && { path }),
        ...(offset !== undefined && { offset }),
      });
    default:
      return new NativeError(message);
  }
}
