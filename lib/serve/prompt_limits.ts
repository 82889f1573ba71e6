/** Limits on the prompts of a request: in characters, before they are tokenized, and in tokens, before they are computed. */
import { Seq2SeqLM } from '../models/index.ts';
import type { ChatMessage } from '../text/chat_template.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { ApiError } from './api_error.ts';
import type { RequestInput } from './request.ts';
import type { ServedModels } from './served_models.ts';

/** Prompts of a request, as contexts. */
const kContexts = 4;
/** Tokens of the prompts of a request where a model's context has no end. */
const kMostTokens = 1 << 16;
/**
 * Characters per token of a run of letters, of white space or of other characters. Byte pairs are merged within such a run, whose
 * characters take the longer the more it has. Texts without spaces have fewer, even sequences of bases; a longer run is one character
 * again and again.
 */
const kOfRun = 4;
const kRuns = /[\p{L}\p{M}]+|\s+|[^\p{L}\p{M}\s]+/gu;

export interface PromptLimits {
  /** Most tokens of all prompts together. */
  readonly tokens: number;
  /**
   * Most characters of all prompts together, and of one of them: so many tokens have no more, unless one of them stands for a long unknown
   * word or for several of them, or the normalizer drops characters. Such texts are refused as well, since their length would
   * be known only after the work that the limit saves. With long tokens and a long context, a body has fewer.
   */
  readonly characters: number;
  readonly charactersOfOne: number;
  /** Most letters in a row, and most characters of another kind. */
  readonly run: number;
}

/** The limits for a model. @param maxTokens undefined: by the model's context */
export function promptLimits(
  { model, tokenizer }: Pick<ServedModels, 'model' | 'tokenizer'>,
  maxTokens: number | undefined,
): PromptLimits {
  const { contextLength } = model;
  const isLimited = Number.isFinite(contextLength) && !(model instanceof Seq2SeqLM);
  const tokens = maxTokens ?? (isLimited ? kContexts * contextLength : kMostTokens);
  const characters = tokens * longestToken(tokenizer);
  const ofOne = Math.min(tokens, isLimited ? contextLength : tokens);
  const charactersOfOne = ofOne * longestToken(tokenizer);
  return { tokens, characters, charactersOfOne, run: kOfRun * ofOne };
}

const longest = new WeakMap<Tokenizer, number>();

/** Bytes of a tokenizer's longest token, no fewer than its characters. */
function longestToken(tokenizer: Tokenizer): number {
  const known = longest.get(tokenizer);
  if (known !== undefined) return known;
  let most = 1;
  for (let id = 0; id < tokenizer.vocabSize; id++) {
    most = Math.max(most, tokenizer.tokenBytes(id).length);
  }
  longest.set(tokenizer, most);
  return most;
}

/** Refuses prompts before they are tokenized. @throws ApiError (413) naming the field */
export function checkCharacters(input: RequestInput, limits: PromptLimits, param: string): void {
  if ('ids' in input) return;
  const texts =
    'prompt' in input ? input.prompt.map((text) => [text]) : [input.messages.flatMap(textsOf)];
  const sizes = texts.map((own) => own.reduce((sum, text) => sum + text.length, 0));
  sizes.forEach((size, i) => {
    if (size <= limits.charactersOfOne) return;
    const name = sizes.length > 1 ? `${param}[${i}]` : param;
    throw tooLong(
      param,
      `${name} has ${size} characters, and no more than ${limits.charactersOfOne} fit into the context`,
    );
  });
  const all = sizes.reduce((sum, size) => sum + size, 0);
  if (all > limits.characters) {
    throw tooLong(
      param,
      `${param} has ${all} characters in all, more than the ${limits.characters} of a request; send several requests`,
    );
  }
  const run = longestRun(texts.flat());
  if (run <= limits.run) return;
  throw tooLong(
    param,
    `${param} has ${run} characters in a row that are all letters, all white space or neither, more than the ${limits.run} that are ` +
      'converted to tokens; divide them',
  );
}

/** The texts that a template puts into the prompt for a message. */
const textsOf = ({ content, name }: ChatMessage): string[] => [String(content), String(name ?? '')];

function longestRun(texts: readonly string[]): number {
  let most = 0;
  for (const text of texts) {
    for (const [run] of text.matchAll(kRuns)) most = Math.max(most, run.length);
  }
  return most;
}

/** Refuses prompts before they are computed. @throws ApiError (413) naming the field */
export function checkTokens(
  prompts: readonly { readonly length: number }[],
  { tokens }: PromptLimits,
  param: string,
): void {
  const all = prompts.reduce((sum, { length }) => sum + length, 0);
  if (all <= tokens) return;
  throw tooLong(
    param,
    `${param} has ${all} tokens in all, more than the ${tokens} of a request; send several requests, or serve with a larger ` +
      '--max-prompt-tokens',
  );
}

function tooLong(param: string, message: string): ApiError {
  return new ApiError(message, { status: 413, param, code: 'prompt_too_long' });
}
