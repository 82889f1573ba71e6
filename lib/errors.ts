// The kinds of failure, which a caller can distinguish by class or by `code`. Native errors arrive as the same classes.
import { oneLine } from './shown.ts';

/**
 * The codes of balora's errors, stable from version to version; docs/errors.md says what each means and what to do.
 * `ERR_ARGUMENT`: the caller passed something wrong. `ERR_UNSUPPORTED`: not available here. `ERR_FORMAT`: a file that is damaged,
 * foreign or cannot be opened. `ERR_OUT_OF_MEMORY`: a device's memory or the limit set for it. `ERR_NOT_FINITE`: a loss, a
 * gradient or, in anomaly mode, any value is NaN or infinite. `ERR_DISK_FULL`: no space, quota or size left for a file.
 * `ERR_IO`: a file cannot be read, written or mapped for another reason. `ERR_FILE_CHANGED`: a file was written to or shortened while it
 * was in use. `ERR_NETWORK`: the Hub cannot be reached. `ERR_GRADIENT`: gradcheck found a wrong one. `ERR_NATIVE`: anything else
 * below JavaScript. `ERR_ABORTED`: values were not computed, because the signal of their work aborted.
 */
export type ErrorCode =
  | 'ERR_ARGUMENT'
  | 'ERR_UNSUPPORTED'
  | 'ERR_FORMAT'
  | 'ERR_OUT_OF_MEMORY'
  | 'ERR_NOT_FINITE'
  | 'ERR_DISK_FULL'
  | 'ERR_IO'
  | 'ERR_FILE_CHANGED'
  | 'ERR_NETWORK'
  | 'ERR_GRADIENT'
  | 'ERR_ABORTED'
  | 'ERR_NATIVE';

/** The codes that a {@link NativeError} may have. */
type NativeCode = Exclude<
  ErrorCode,
  'ERR_ARGUMENT' | 'ERR_UNSUPPORTED' | 'ERR_FORMAT' | 'ERR_GRADIENT'
>;

/** Advice at the end of a {@link NativeError}'s message, after the facts of the failure. */
const kAdvice: Readonly<Record<NativeCode, string>> = {
  ERR_OUT_OF_MEMORY:
    'use a smaller batch, a shorter maxLength, dtype bf16 or a memoryBudget, or raise the limit where one was set',
  ERR_NOT_FINITE: 'lower the learning rate, or find the first such value with setAnomalyMode(true)',
  ERR_DISK_FULL: 'free space, or write to another place',
  ERR_IO: 'check that the folder exists and that this process may write there',
  ERR_FILE_CHANGED:
    'restore the file and run again, a training run with resume; to replace a file that is in use, write the new one under ' +
    'another name and rename it',
  ERR_NETWORK: 'check the connection and the name, or give a folder that is here',
  ERR_ABORTED: '',
  ERR_NATIVE: '',
};

/** Advice for an op of the addon whose result is not finite: it looks for such values in anomaly mode alone, which is on then. */
const kAnomalyAdvice = "lower the learning rate, or look at this op's inputs";

/** Advice of a {@link FormatError} that has none of its own. */
const kFormatAdvice = 'fetch the file again, or write it again with what made it';

/** The advice at the end of an error's message, of those that have some. */
const kAdviceOf = new WeakMap<BaloraError, string>();

/** The parts that any error of balora may have besides its message. */
interface ErrorDetails extends ErrorOptions {
  /** Further lines below the message. */
  lines?: readonly string[];
}

/**
 * Base of every error that balora throws on purpose. Its message is one line, unless the library itself adds some: names and texts of
 * files, servers and users in it have escapes for line breaks and all other invisible characters.
 */
export class BaloraError extends Error {
  readonly code: ErrorCode;
  /** The file or folder at fault, where there is one. */
  readonly path: string | undefined;

  constructor(code: ErrorCode, message: string, options?: ErrorDetails & { path?: string }) {
    const lines = [message, ...(options?.lines ?? [])];
    super(lines.map((line) => oneLine(line)).join('\n'), options);
    this.code = code;
    this.path = options?.path;
    this.name = new.target.name;
  }
}

/** The caller passed something wrong (`ERR_ARGUMENT`). The message says what is allowed and what was given, or what to do instead. */
export class ArgumentError extends BaloraError {
  constructor(message: string, options?: ErrorDetails) {
    super('ERR_ARGUMENT', message, options);
  }
}

/**
 * The request is sensible, but not available here (`ERR_UNSUPPORTED`): a device, a dtype, a platform, a model. The message says
 * what is supported, or what to do instead.
 */
export class UnsupportedError extends BaloraError {
  constructor(message: string, options?: ErrorDetails) {
    super('ERR_UNSUPPORTED', message, options);
  }
}

/** The place of a {@link FormatError}, and what to do. */
interface FormatErrorOptions extends ErrorDetails {
  path?: string;
  offset?: number;
  /** End of the message: what to do. Default: fetch the file again or write it again. */
  advice?: string;
}

/** A damaged or foreign file (`ERR_FORMAT`), with its `path` and, where one place is at fault, the byte `offset`. */
export class FormatError extends BaloraError {
  readonly offset: number | undefined;

  constructor(message: string, where: FormatErrorOptions = {}) {
    const { advice = kFormatAdvice } = where;
    super('ERR_FORMAT', withAdvice(message, advice), where);
    this.offset = where.offset;
    kAdviceOf.set(this, advice);
  }
}

/** The error for a file or folder, named at the beginning of its message. */
export function fileError(path: string, what: string, advice?: string): FormatError {
  return new FormatError(`${path}: ${what}`, { path, advice });
}

/** The kind of a {@link NativeError}, its place, and what to do. */
interface NativeErrorOptions extends ErrorDetails {
  /** The file or folder at fault, where there is one. */
  path?: string;
  /** Default: `ERR_NATIVE`. */
  code?: NativeCode;
  /** End of the message: what to do. Default: that of the code. */
  advice?: string;
}

/**
 * Any other failure: memory, the disk, the network, numbers that are not finite, a library, a kernel. `code` names the kind
 * (`ERR_OUT_OF_MEMORY`, `ERR_DISK_FULL`, ...; `ERR_NATIVE` where none fits), and the message ends in advice.
 */
export class NativeError extends BaloraError {
  constructor(message: string, options: NativeErrorOptions = {}) {
    const { code = 'ERR_NATIVE', advice = kAdvice[code] } = options;
    super(code, withAdvice(message, advice), options);
    kAdviceOf.set(this, advice);
  }
}

function withAdvice(message: string, advice: string): string {
  return advice === '' ? message : `${message}; ${advice}`;
}

/** The message of an error without the advice at its end, for another message that quotes it. */
export function withoutAdvice(error: BaloraError): string {
  const advice = kAdviceOf.get(error) ?? '';
  return advice === '' ? error.message : error.message.replace(`; ${oneLine(advice)}`, '');
}

/** A message of a FormatError and the advice at its end; the addon gives both in one text, or no advice. */
function splitAdvice(message: string): [fact: string, advice: string | undefined] {
  const at = message.lastIndexOf('; ');
  return at < 0 ? [message, undefined] : [message.slice(0, at), message.slice(at + 2)];
}

/** The beginning of the line in which the addon, in debug mode, says where JavaScript called an op (native/engine/launch.cc). */
const kEnqueued = '\n  enqueued ';

/** Builds the error for a code, of the matching class; the addon calls it for the errors it throws. */
export function errorFromCode(
  code: string,
  text: string,
  path?: string,
  offset?: number,
): BaloraError {
  const place = text.lastIndexOf(kEnqueued);
  const message = place < 0 ? text : text.slice(0, place);
  const lines = place < 0 ? [] : [text.slice(place + 1)];
  switch (code) {
    case 'ERR_ARGUMENT':
      return new ArgumentError(message, { lines });
    case 'ERR_UNSUPPORTED':
      return new UnsupportedError(message, { lines });
    case 'ERR_FORMAT': {
      const [fact, advice] = splitAdvice(message);
      return new FormatError(fact, { lines, advice, path, offset });
    }
    case 'ERR_NOT_FINITE':
      return new NativeError(message, { code, lines, advice: kAnomalyAdvice });
    default:
      return new NativeError(message, {
        lines,
        code: Object.hasOwn(kAdvice, code) ? (code as NativeCode) : 'ERR_NATIVE',
      });
  }
}
