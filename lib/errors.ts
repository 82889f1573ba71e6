// The kinds of failure, which a caller can distinguish by class or by `code`. Native errors arrive as the same classes.
import { Phrase, phrase, phraseOf, type Spelling, type Text } from './phrase.ts';
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
const kAdvice: Readonly<Record<NativeCode, string | null>> = {
  ERR_OUT_OF_MEMORY:
    'use a smaller batch, a shorter maxLength, dtype bf16 or a memoryBudget, or raise the limit where one was set',
  ERR_NOT_FINITE: 'lower the learning rate, or find the first such value with setAnomalyMode(true)',
  ERR_DISK_FULL: 'free space, or write to another place',
  ERR_IO: 'check that the folder exists and that this process may write there',
  ERR_FILE_CHANGED:
    'restore the file and run again, a training run with resume; to replace a file that is in use, write the new one under ' +
    'another name and rename it',
  ERR_NETWORK: 'check the connection and the name, or give a folder that is here',
  ERR_ABORTED: null,
  ERR_NATIVE: null,
};

/** Advice for an op of the addon whose result is not finite: it looks for such values in anomaly mode alone, which is on then. */
const kAnomalyAdvice = "lower the learning rate, or look at this op's inputs";

/** Advice of a {@link FormatError} that has none of its own. */
const kFormatAdvice = 'fetch the file again, or write it again with what made it';

/** The parts that an error may have besides its fact and its advice. */
interface ErrorDetails extends ErrorOptions {
  /** The option at fault. Default: the first that the fact names. */
  option?: string | undefined;
  /** Description of what is allowed, where the fact says what a value must be. */
  wanted?: string | undefined;
  /** Further lines below the message. */
  lines?: readonly string[] | undefined;
}

/** An error as data. */
interface Facts extends ErrorDetails {
  code: ErrorCode;
  fact: Text;
  /** Null where the fact says what to do, and where nothing can be done. */
  advice: Text | null;
  path?: string | undefined;
  offset?: number | undefined;
  /** Remarks that are added on the error's way. */
  notes?: readonly string[];
}

/**
 * Base of every error that balora throws on purpose. Its message is its fact and its advice in one line, unless the library itself adds
 * some: names and texts of files, servers and users in it have escapes for line breaks and all other invisible characters.
 */
export class BaloraError extends Error {
  readonly code: ErrorCode;
  /** The file or folder at fault, where there is one. */
  readonly path: string | undefined;
  readonly #facts: Facts;

  constructor(facts: Facts) {
    super(wordsOf(facts), facts);
    this.#facts = facts;
    this.code = facts.code;
    this.path = facts.path;
    this.name = new.target.name;
  }

  /** The description of what is wrong, with the names of options as data. */
  get fact(): Phrase {
    return phraseOf(this.#facts.fact);
  }

  /** The description of what to do; null where the fact says it, and where nothing can be done. */
  get advice(): Phrase | null {
    return this.#facts.advice === null ? null : phraseOf(this.#facts.advice);
  }

  /** The name in the library of the option at fault; undefined where there is none. */
  get option(): string | undefined {
    const { option, fact } = this.#facts;
    return option ?? phraseOf(fact).parts.find((part) => typeof part === 'object')?.option;
  }

  /** The description of what is allowed, where the fact says what a value must be: `a whole number >= 1`. */
  get wanted(): string | undefined {
    return this.#facts.wanted;
  }

  /** Further lines below the message. */
  get lines(): readonly string[] {
    return this.#facts.lines ?? [];
  }

  /** The message with names of options as a front end writes them. */
  in(spelling: Spelling): string {
    return wordsOf(this.#facts, spelling);
  }

  /**
   * Adds to the words of an error on its way; the object stays the same.
   * @internal for the library alone
   * @param notes what follows the message, about the state in which the error left something
   */
  amend({ where, notes = [] }: { where?: string; notes?: readonly string[] }): void {
    const { message: before, stack } = this;
    if (where !== undefined) this.#facts.fact = phrase`${where}: ${this.#facts.fact}`;
    this.#facts.notes = [...(this.#facts.notes ?? []), ...notes];
    this.message = wordsOf(this.#facts);
    if (stack !== undefined) this.stack = stack.replace(before, () => this.message);
  }
}

/** The one line of an error, and the lines below it. */
function wordsOf(facts: Facts, spelling: Spelling = ({ text }) => text): string {
  const { fact, advice, lines = [], notes = [] } = facts;
  const first = [fact, ...(advice === null ? [] : [advice])];
  const line = first.map((text) => phraseOf(text).in(spelling)).join('; ');
  const words = [line, ...lines].map(oneLine).join('\n');
  return [words, ...notes.map(oneLine)].join('; ');
}

/** The caller passed something wrong (`ERR_ARGUMENT`). The message says what is allowed and what was given, or what to do instead. */
export class ArgumentError extends BaloraError {
  constructor(fact: Text, advice?: Text | null | ErrorDetails, details?: ErrorDetails) {
    super(splitForNow('ERR_ARGUMENT', fact, advice, details));
  }
}

/**
 * The request is sensible, but not available here (`ERR_UNSUPPORTED`): a device, a dtype, a platform, a model. The message says
 * what is supported, or what to do instead.
 */
export class UnsupportedError extends BaloraError {
  constructor(fact: Text, advice?: Text | null | ErrorDetails, details?: ErrorDetails) {
    super(splitForNow('ERR_UNSUPPORTED', fact, advice, details));
  }
}

function splitForNow(
  code: ErrorCode,
  fact: Text,
  advice: Text | null | ErrorDetails = null,
  details: ErrorDetails = {},
): Facts {
  if (advice === null || typeof advice === 'string' || advice instanceof Phrase)
    return { ...details, code, fact, advice };
  return { ...advice, code, fact, advice: null };
}

/** The error for a value that is none of those allowed: "... must be a whole number >= 1, got 0". */
export function mustBe(what: Text, wanted: Text, got?: string): ArgumentError {
  const end = got === undefined ? '' : `, got ${got}`;
  return new ArgumentError(phrase`${what} must be ${wanted}${end}`, null, { wanted: `${wanted}` });
}

/** The same error with the place before its fact. */
export function within(where: Text, { fact, advice, option, wanted }: BaloraError): ArgumentError {
  return new ArgumentError(phrase`${where}: ${fact}`, advice, { option, wanted });
}

/** The place of a {@link FormatError}, and what to do. */
interface FormatErrorOptions extends ErrorDetails {
  path?: string | undefined;
  offset?: number | undefined;
  /** Default: to fetch the file again or write it again. */
  advice?: Text | null | undefined;
}

/** A damaged or foreign file (`ERR_FORMAT`), with its `path` and, where one place is at fault, the byte `offset`. */
export class FormatError extends BaloraError {
  readonly offset: number | undefined;

  constructor(fact: Text, where: FormatErrorOptions = {}) {
    const { advice = kFormatAdvice } = where;
    super({ ...where, code: 'ERR_FORMAT', fact, advice });
    this.offset = where.offset;
  }
}

/** The error for a file or folder, named at the beginning of its message. */
export function fileError(path: string, what: Text, advice?: Text | null): FormatError {
  return new FormatError(phrase`${path}: ${what}`, { path, advice });
}

/** The kind of a {@link NativeError}, its place, and what to do. */
interface NativeErrorOptions extends ErrorDetails {
  /** The file or folder at fault, where there is one. */
  path?: string | undefined;
  /** Default: `ERR_NATIVE`. */
  code?: NativeCode;
  /** Default: that of the code. */
  advice?: Text | null | undefined;
}

/**
 * Any other failure: memory, the disk, the network, numbers that are not finite, a library, a kernel. `code` names the kind
 * (`ERR_OUT_OF_MEMORY`, `ERR_DISK_FULL`, ...; `ERR_NATIVE` where none fits).
 */
export class NativeError extends BaloraError {
  constructor(fact: Text, options: NativeErrorOptions = {}) {
    const { code = 'ERR_NATIVE', advice = kAdvice[code] } = options;
    super({ ...options, code, fact, advice });
  }
}

/** A message of a FormatError and the advice at its end; the addon gives both in one text, or no advice. */
function splitAdvice(message: string): [fact: string, advice: string | undefined] {
  const at = message.lastIndexOf('; ');
  return at < 0 ? [message, undefined] : [message.slice(0, at), message.slice(at + 2)];
}

/** The beginning of the line in which the addon, in debug mode, says where JavaScript called an op (native/engine/launch.cc). */
const kEnqueued = '\n  enqueued ';

/** The error for a code, of the matching class; the addon calls it for the errors it throws. */
export function errorFromCode(
  code: string,
  text: string,
  path?: string,
  offset?: number,
): BaloraError {
  const place = text.lastIndexOf(kEnqueued);
  const message = place < 0 ? text : text.slice(0, place);
  const lines = place < 0 ? [] : [text.slice(place + 1)];
  const own = ['ERR_ARGUMENT', 'ERR_UNSUPPORTED', 'ERR_FORMAT', ...Object.keys(kAdvice)];
  const known = (own.includes(code) ? code : 'ERR_NATIVE') as ErrorCode;
  const [fact, advice] = known === 'ERR_FORMAT' ? splitAdvice(message) : [message, undefined];
  const givenAdvice = known === 'ERR_NOT_FINITE' ? kAnomalyAdvice : advice;
  return errorOf({ code: known, fact, advice: givenAdvice, lines, path, offset });
}

/** Facts of which the advice may be missing. */
type Given = Omit<Facts, 'advice'> & { advice?: Text | null | undefined };

/** The error of these facts, of the class that fits their code. Without an advice it has that of its code. */
export function errorOf({ code, fact, advice, ...details }: Given): BaloraError {
  switch (code) {
    case 'ERR_ARGUMENT':
      return new ArgumentError(fact, advice ?? null, details);
    case 'ERR_UNSUPPORTED':
      return new UnsupportedError(fact, advice ?? null, details);
    case 'ERR_FORMAT':
      return new FormatError(fact, { ...details, advice });
    default:
      return new NativeError(fact, { ...details, code: code as NativeCode, advice });
  }
}
