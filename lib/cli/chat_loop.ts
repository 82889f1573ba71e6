/** The loop of a conversation on the command line: answers go to stdout as they come, everything else to stderr. */
import { BaloraError } from '../errors.ts';
import type { Chat } from '../generate/chat.ts';
import { ContextLengthError } from '../generate/prompts.ts';
import type { GeneratedText } from '../generate/sequence.ts';
import { commandOf } from './chat_commands.ts';
import type { ChatInput, Entered } from './chat_input.ts';
import { kChatOptions } from './chat_options.ts';
import { withFlags } from './flag_names.ts';
import { Interrupt, type InterruptSignal, onSignals } from './interrupt.ts';
import { flagsIn } from './option_table.ts';
import type { CliContext } from './program.ts';
import { hasColour, styler, writeAnswer } from './terminal.ts';

/** The streams of a conversation. */
interface ChatStreams extends Pick<CliContext, 'stdout' | 'stderr'> {
  readonly input: ChatInput;
}

/** A conversation that reads lines until it is left. */
export class ChatLoop {
  readonly #adapter: string | null;
  readonly #style: ReturnType<typeof styler>;
  /** The controller that stops the answer that is being written; null between answers. */
  #stop: AbortController | null = null;
  #hasFailed = false;
  /** The signal that ends the conversation; null: none has come. */
  #ended: Interrupt | null = null;
  /** Wakes the loop while it waits for a line. */
  #wake: () => void = () => {};

  constructor(
    private readonly chat: Chat,
    private readonly streams: ChatStreams,
  ) {
    this.#adapter = chat.adapter ?? null;
    this.#style = styler(hasColour(streams.stderr));
  }

  /**
   * Reads lines to the end of the input, `/exit` or a signal.
   * @returns the exit code: that of a signal; 1 where lines came through a pipe and one of them was not answered; else 0
   */
  async run(): Promise<number> {
    const { input, stdout } = this.streams;
    const stopListening = onSignals((name) => this.#receive(name));
    if (input.isTerminal) this.#note('/help lists what can be typed; Ctrl-C stops an answer');
    try {
      for (;;) {
        const entered = await this.#next();
        if (typeof entered === 'object' && (await this.#take(entered))) continue;
        // The shell's prompt begins in a line of its own.
        if (typeof entered === 'string' && input.isTerminal) stdout.write('\n');
        if (entered === 'interrupt') return (this.#ended ?? new Interrupt('SIGINT')).exitCode;
        return this.#hasFailed && !input.isTerminal ? 1 : 0;
      }
    } finally {
      stopListening();
    }
  }

  /** The next line, or `interrupt` once a signal has come. */
  async #next(): Promise<Entered> {
    const interrupted = new Promise<Entered>((resolve) => {
      this.#wake = () => resolve('interrupt');
    });
    if (this.#ended !== null) return 'interrupt';
    return Promise.race([this.streams.input.next(), interrupted]);
  }

  /** Runs the command of a line, or answers it. @returns whether the conversation goes on */
  async #take({ line }: Exclude<Entered, string>): Promise<boolean> {
    if (line.trim() === '') return true;
    const found = commandOf(line);
    if (found === null) {
      await this.#reporting(() => this.#answer(line.startsWith('//') ? line.slice(1) : line));
      return true;
    }
    const { name, command, argument } = found;
    if (command === null) {
      this.#fail(`there is no ${name}; /help lists what can be typed`);
      return true;
    }
    let isOver = false;
    await this.#reporting(async () => {
      const told = command.run(argument, { chat: this.chat, adapter: this.#adapter });
      if (told === null) isOver = true;
      else this.#note(told);
    });
    return !isOver;
  }

  async #answer(message: string): Promise<void> {
    const { stdout } = this.streams;
    const stop = new AbortController();
    this.#stop = stop;
    let last = '';
    try {
      const answer = this.chat.send(message, { signal: stop.signal });
      for await (const { text } of answer) {
        writeAnswer(stdout, text);
        last = text || last;
      }
      if (!last.endsWith('\n')) stdout.write('\n');
      this.#noteEnd(await answer.result);
    } catch (error) {
      if (last !== '' && !last.endsWith('\n')) stdout.write('\n');
      throw error;
    } finally {
      this.#stop = null;
    }
  }

  /** Tells why an answer ended, unless the model ended it. */
  #noteEnd({ finishReason, promptTokens, tokens }: GeneratedText): void {
    const { contextLength } = this.chat;
    if (finishReason === 'abort') this.#note('stopped');
    if (finishReason !== 'length') return;
    const isFull = promptTokens + tokens.length >= contextLength;
    this.#note(
      isFull
        ? `the context of ${contextLength} tokens is full; /reset begins anew`
        : `stopped after ${tokens.length} tokens; --max-new-tokens sets how many there may be`,
    );
  }

  /** Runs work, and shows an error of the library in it; the conversation goes on. */
  async #reporting(work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (error instanceof ContextLengthError) {
        this.#fail(
          `the conversation would have ${error.tokens} tokens, and the context of this model has ${error.contextLength}, those ` +
            'of the answer included; /reset begins anew, or send a shorter message',
        );
      } else if (error instanceof BaloraError) {
        this.#fail(withFlags(error.in(flagsIn(kChatOptions)), kChatOptions));
      } else {
        throw error;
      }
    }
  }

  /** Takes a signal: Ctrl-C stops an answer; anything else leaves, and at once where an answer does not stop. */
  #receive(name: InterruptSignal): void {
    const stop = this.#stop;
    const interrupt = new Interrupt(name);
    if (stop?.signal.aborted && name !== 'SIGHUP') process.exit(interrupt.exitCode);
    stop?.abort();
    if (stop !== null && name === 'SIGINT') return;
    this.#ended = interrupt;
    this.#wake();
  }

  #note(text: string): void {
    const shown = text
      .split('\n')
      .map((line) => this.#style(line, 'dim'))
      .join('\n');
    this.streams.stderr.write(`${shown}\n`);
  }

  #fail(text: string): void {
    this.#hasFailed = true;
    this.streams.stderr.write(`${this.#style('error:', 'red', 'bold')} ${text}\n`);
  }
}
