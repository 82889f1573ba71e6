/** The interface in which chat completions and completions differ: the prompt of a request, and the objects of an answer. */
import type { TokenLogprob } from '../generate/scores.ts';
import type { FinishReason, GeneratedText, GeneratedToken } from '../generate/sequence.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import type { Fields, GenerationRequest } from './request.ts';

/** The facts that every object of an answer has. */
export interface AnswerHead {
  readonly id: string;
  /** Seconds since 1970. */
  readonly created: number;
  readonly model: string;
}

/** The end of a choice; a choice that was stopped from outside has none. */
export type ChoiceEnd = Exclude<FinishReason, 'abort'>;

/** A complete choice. */
export interface Choice {
  readonly text: string;
  readonly finishReason: ChoiceEnd;
  /** Its tokens with their log-probabilities; null where these were not asked for. */
  readonly tokens: readonly ListedToken[] | null;
}

/** A kind of request and its answers. */
export interface Endpoint {
  /** Beginning of the ids of answers. */
  readonly prefix: string;
  /** The field with the prompt, for errors about it. */
  readonly param: string;
  /** @throws ApiError naming a field that is wrong */
  read(fields: Fields): GenerationRequest;
  whole(head: AnswerHead, choices: readonly Choice[]): object;
  /** The first object of a choice in a stream; null: there is none. */
  opening(head: AnswerHead, index: number): object | null;
  /** The object for text that has become certain. */
  part(
    head: AnswerHead,
    index: number,
    part: Pick<Choice, 'text' | 'tokens'> & { offset: number },
  ): object;
  /** The last object of a choice in a stream. */
  closing(head: AnswerHead, index: number, end: ChoiceEnd): object;
  /** The object with the numbers of tokens at the end of a stream. */
  usage(head: AnswerHead): object;
}

/** A token as text and bytes, with its log-probability. */
export interface ListedToken {
  readonly token: string;
  readonly bytes: readonly number[];
  readonly logprob: number;
  readonly top: readonly Omit<ListedToken, 'top'>[];
}

/** A token with its log-probabilities as clients see it: bytes that are no character on their own are U+FFFD in its text. */
export function listedToken(
  { token, logprob, topLogprobs }: GeneratedToken,
  tokenizer: Tokenizer,
): ListedToken {
  const shown = ({ token: id, logprob: own }: TokenLogprob): Omit<ListedToken, 'top'> => {
    // Models may have more ids than their tokenizers.
    const isKnown = id < tokenizer.vocabSize;
    const bytes = isKnown ? tokenizer.tokenBytes(id) : new Uint8Array(0);
    return { token: new TextDecoder().decode(bytes), bytes: [...bytes], logprob: own };
  };
  return { ...shown({ token, logprob: logprob as number }), top: (topLogprobs ?? []).map(shown) };
}

/** The numbers of tokens of an answer. @param count number of choices for each prompt */
export function usageOf(results: readonly GeneratedText[], count: number): object {
  const prompts = results.filter((_, i) => i % count === 0);
  const promptTokens = prompts.reduce((sum, { promptTokens: own }) => sum + own, 0);
  const completionTokens = results.reduce((sum, { tokens }) => sum + tokens.length, 0);
  return {
    prompt_tokens: promptTokens,
    completion_tokens: completionTokens,
    total_tokens: promptTokens + completionTokens,
  };
}
