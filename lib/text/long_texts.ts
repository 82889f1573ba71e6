/**
 * Encoding of long texts beside the event loop. Code that encodes is synchronous, since nearly all texts are short. When it comes to a
 * text that would take long, it is left by an exception, the text is encoded in another process, and the code runs again, with the ids
 * at hand. It must therefore be a pure function, as the conversion of a row to an example is.
 */
import { NativeError } from '../errors.ts';
import { SideProcess } from '../io/side_process.ts';
import type { EncodeRequest, TokenizerSetup } from './tokenizer_parts.ts';

/** Length in UTF-16 units from which a text is long: encoding it takes some ten milliseconds. */
export const kLongText = 1 << 15;
/** Largest size of the process's JavaScript heap: that of a text of 16 MiB without any space takes most of it. */
const kHeapMiB = 4096;

/** Thrown out of code that encodes a long text; caught by {@link LongTexts.run}, which knows no other way to interrupt it. */
class WantedText extends Error {
  constructor(readonly request: EncodeRequest) {
    super('a long text is not encoded yet');
  }
}

/** The ids of the long texts of one run, by text, with special tokens in it parsed and not. */
type Found = Record<'parsed' | 'plain', Map<string, readonly number[]>>;

/** The long texts of a tokenizer. */
export class LongTexts {
  #found: Found | null = null;
  readonly #process: SideProcess<EncodeRequest, Int32Array>;

  /** @param setup what the process makes its tokenizer of */
  constructor(setup: TokenizerSetup) {
    this.#process = new SideProcess({ module: 'text/encode_process.js', setup, heapMiB: kHeapMiB });
  }

  /** The ids of a long text in code that runs in {@link run}; null for a short text, and elsewhere. */
  ids(request: EncodeRequest): number[] | null {
    if (this.#found === null || request.text.length < kLongText) return null;
    const found = this.#found[request.parseSpecial ? 'parsed' : 'plain'].get(request.text);
    if (found === undefined) throw new WantedText(request);
    return [...found];
  }

  /**
   * Runs `work`, again for each long text that it encodes.
   * @throws what `work` throws, the signal's reason, NativeError for a text for which the process's memory is not sufficient
   */
  async run<T>(work: () => T, signal: AbortSignal | undefined): Promise<T> {
    const found: Found = { parsed: new Map(), plain: new Map() };
    for (;;) {
      this.#found = found;
      let wanted: EncodeRequest;
      try {
        return work();
      } catch (error) {
        if (!(error instanceof WantedText)) throw error;
        wanted = error.request;
      } finally {
        this.#found = null;
      }
      const onEnd = () => tooLong(wanted.text);
      const ids = await this.#process.ask(wanted, { signal, onEnd });
      found[wanted.parseSpecial ? 'parsed' : 'plain'].set(wanted.text, Array.from(ids));
    }
  }
}

function tooLong({ length }: string): NativeError {
  return new NativeError(
    `a text of ${length} characters takes more memory than there is for tokenizing it`,
    { code: 'ERR_OUT_OF_MEMORY', advice: 'split it into several rows' },
  );
}
