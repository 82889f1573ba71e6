/**
 * Lines that a user types, or that come through a pipe. On a terminal each line has an editor of its own, so that between them, while
 * an answer is written, the terminal sends Ctrl-C as a signal.
 */
import { createInterface } from 'node:readline';
import type { InputStream, OutputStream } from './terminal.ts';

/** An event in the place of a line: the end of the input, or Ctrl-C on an empty line. */
export type NoLine = 'end' | 'interrupt';

/** A line, or the event in its place. */
export type Entered = { readonly line: string } | NoLine;

/** A source of lines. */
export interface ChatInput {
  /** Whether a person types the lines. */
  readonly isTerminal: boolean;
  /** The next line. */
  next(): Promise<Entered>;
  close(): void;
}

/** Opens a stream as lines. */
export function openChatInput(stdin: InputStream, stdout: OutputStream): ChatInput {
  // The editor writes control sequences, which do not belong into an output that is a file or a pipe.
  const isTerminal = stdin.isTTY === true && stdout.isTTY === true;
  return isTerminal ? new TerminalInput(stdin, stdout) : new PipedInput(stdin);
}

class PipedInput implements ChatInput {
  readonly isTerminal = false;
  readonly #reader: ReturnType<typeof createInterface>;
  readonly #lines: AsyncIterator<string>;

  constructor(stdin: InputStream) {
    this.#reader = createInterface({ input: stdin, crlfDelay: Number.POSITIVE_INFINITY });
    this.#lines = this.#reader[Symbol.asyncIterator]();
  }

  async next(): Promise<Entered> {
    const { done, value } = await this.#lines.next();
    return done ? 'end' : { line: value };
  }

  close(): void {
    this.#reader.close();
  }
}

const kPrompt = '> ';

class TerminalInput implements ChatInput {
  readonly isTerminal = true;
  /** Lines that came with the one before: they were pasted, or typed during an answer. */
  readonly #waiting: string[] = [];
  /** A line that was begun behind these. */
  #begun = '';
  #history: string[] = [];
  #close: (() => void) | null = null;

  constructor(
    private readonly stdin: InputStream,
    private readonly stdout: OutputStream,
  ) {}

  next(): Promise<Entered> {
    const line = this.#waiting.shift();
    return line === undefined ? this.#edit() : Promise.resolve({ line });
  }

  close(): void {
    this.#close?.();
  }

  #edit(): Promise<Entered> {
    const editor = createInterface({
      input: this.stdin,
      output: this.stdout as unknown as NodeJS.WritableStream,
      terminal: true,
      prompt: kPrompt,
      history: this.#history,
    });
    return new Promise((resolve) => {
      let entered: Entered = 'end';
      editor.on('history', (history: string[]) => {
        this.#history = history;
      });
      editor.on('line', (line) => {
        if (typeof entered === 'object') {
          this.#waiting.push(line);
          return;
        }
        entered = { line };
        // The editor is closed a turn later: closed at once, it would lose what is pasted behind the line.
        setImmediate(() => {
          this.#begun = editor.line;
          editor.close();
        });
      });
      editor.on('SIGINT', () => {
        if (editor.line === '') {
          entered = 'interrupt';
          editor.close();
        } else {
          // Ctrl-U clears what is before the cursor, Ctrl-K what is behind it.
          editor.write(null, { ctrl: true, name: 'e' });
          editor.write(null, { ctrl: true, name: 'u' });
        }
      });
      editor.once('close', () => {
        this.#close = null;
        resolve(entered);
      });
      this.#close = () => editor.close();
      const begun = this.#begun;
      this.#begun = '';
      if (begun !== '') editor.write(begun);
      editor.prompt(true);
    });
  }
}
