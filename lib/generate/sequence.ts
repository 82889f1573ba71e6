/** One sequence that is being generated: its tokens, its text, and whether and why it has ended. */
import type { DecodeStream } from '../text/decode_stream.ts';
import type { TokenLogprob } from './scores.ts';
import type { StopStrings } from './stop_strings.ts';

/**
 * The reason for the end of a sequence: `stop` for an end token or a stop string, `length` for maxNewTokens or the end of the model's
 * context, `abort` for the caller's signal, or a consumer that left its loop.
 */
export type FinishReason = 'stop' | 'length' | 'abort';

/** A new token with the text that became certain by it. */
export interface GeneratedToken {
  /** Index of the sequence: that of the prompt times numReturnSequences, plus that among the prompt's sequences. */
  readonly sequence: number;
  /** Text that became certain; it may be empty, or the end of a character that earlier tokens began. */
  readonly text: string;
  readonly token: number;
  /** Natural logarithm of the token's probability by the model itself; null without `logprobs`. */
  readonly logprob: number | null;
  /** The most likely ids at this position, as many as `logprobs` says; null without it. */
  readonly topLogprobs: readonly TokenLogprob[] | null;
}

/** A finished sequence. */
export interface GeneratedText {
  /** The texts of the sequence's tokens, concatenated. */
  readonly text: string;
  /** The new ids, those of an end token or of a stop string included. */
  readonly tokens: readonly number[];
  /** The logarithm of each token's probability by the model itself; null without `logprobs`. */
  readonly logprobs: readonly number[] | null;
  readonly finishReason: FinishReason;
  readonly promptTokens: number;
  /** Tokens of the prompt that were read before, and whose keys and values were kept: those of earlier turns of a {@link Chat}. */
  readonly cachedTokens: number;
  /** Tokens of the prompt per second of the pass that read it, with the other prompts of its batch; 0 if it was not read. */
  readonly promptTokensPerSecond: number;
  /** New tokens after the first per second; 0 for fewer than two. */
  readonly tokensPerSecond: number;
}

/** The facts of a sequence before it begins. */
export interface SequenceParts {
  /** Index of the sequence in the call. */
  readonly index: number;
  readonly promptTokens: number;
  /** Ids that repetition counts: those of the prompt, or the decoder's start token. */
  readonly context: Iterable<number>;
  readonly maxNewTokens: number;
  readonly eosTokenIds: ReadonlySet<number>;
  /** null: no text. */
  readonly decode: DecodeStream | null;
  readonly stops: StopStrings;
}

/** A token and its log-probabilities. */
export interface Choice {
  readonly token: number;
  readonly logprob: number | null;
  readonly topLogprobs: readonly TokenLogprob[] | null;
}

export class Sequence {
  readonly index: number;
  readonly eosTokenIds: ReadonlySet<number>;
  /** Every id so far, each once. */
  readonly seen: Set<number>;
  readonly tokens: number[] = [];
  #promptSeconds = 0;
  #cachedTokens = 0;
  /** Times of the first and of the last token so far. */
  #first = 0;
  #last = 0;
  #text = '';
  #finishReason: FinishReason | null = null;
  readonly #logprobs: (number | null)[] = [];

  constructor(private readonly parts: SequenceParts) {
    this.index = parts.index;
    this.eosTokenIds = parts.eosTokenIds;
    this.seen = new Set(parts.context);
  }

  /** Number of new tokens. */
  get newTokens(): number {
    return this.tokens.length;
  }

  get isFinished(): boolean {
    return this.#finishReason !== null;
  }

  /** Notes that the prompt has been read in so many seconds, except for its first tokens, which were in the cache. */
  begin(promptSeconds: number, cachedTokens: number): void {
    this.#promptSeconds = promptSeconds;
    this.#cachedTokens = cachedTokens;
  }

  /** Adds the next token, and returns it with the text that became certain by it: at the end of the sequence all that is left. */
  add({ token, logprob, topLogprobs }: Choice): GeneratedToken {
    const { decode, stops, maxNewTokens } = this.parts;
    this.tokens.push(token);
    this.seen.add(token);
    this.#logprobs.push(logprob);
    this.#last = performance.now();
    if (this.tokens.length === 1) this.#first = this.#last;
    let text = decode === null ? '' : stops.push(decode.push(token));
    if (stops.found !== null || this.eosTokenIds.has(token)) this.#finishReason = 'stop';
    else if (this.tokens.length >= maxNewTokens) this.#finishReason = 'length';
    if (this.#finishReason !== null) text += this.#rest();
    this.#text += text;
    return { sequence: this.index, text, token, logprob, topLogprobs };
  }

  /** The text that was held back, at the end of the sequence; a stop string may be complete only then. */
  #rest(): string {
    const { decode, stops } = this.parts;
    if (decode === null) return '';
    const text = stops.push(decode.end()) + stops.end();
    if (stops.found !== null) this.#finishReason = 'stop';
    return text;
  }

  /** The result; `abort` is the reason of a sequence that has not ended by itself, and its text is what was passed on. */
  result(): GeneratedText {
    const { promptTokens } = this.parts;
    const isWithLogprobs = this.#logprobs.length > 0 && this.#logprobs[0] !== null;
    return {
      text: this.#text,
      tokens: this.tokens,
      logprobs: isWithLogprobs ? (this.#logprobs as number[]) : null,
      finishReason: this.#finishReason ?? 'abort',
      promptTokens,
      cachedTokens: this.#cachedTokens,
      promptTokensPerSecond: rate(promptTokens - this.#cachedTokens, this.#promptSeconds),
      tokensPerSecond: rate(this.tokens.length - 1, (this.#last - this.#first) / 1000),
    };
  }
}

function rate(count: number, seconds: number): number {
  return count > 0 && seconds > 0 ? count / seconds : 0;
}
