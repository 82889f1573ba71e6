/** Limits on the prompts of a request: in characters, before they are tokenized, and in tokens, before they are computed. */
import { Seq2SeqLM } from '../models/index.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { ApiError } from './api_error.ts';
import type { RequestInput } from './request.ts';
import type { ServedModels } from './served_models.ts';

/** Prompts of a request, as contexts. */
const kContexts = 4;
/** Tokens of the prompts of a request where a model's context has no end. */
const kMostTokens = 1 << 16;

export interface PromptLimits {
  /** Most tokens of all prompts together. */
  readonly tokens: number;
  /** Most characters of all prompts together, and of one of them. No text has more in so many tokens as there may be. */
  readonly characters: number;
  readonly charactersOfOne: number;
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
  return { tokens, characters, charactersOfOne: ofOne * longestToken(tokenizer) };
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
  const sizes =
    'prompt' in input
      ? input.prompt.map((text) => text.length)
      : [input.messages.reduce((sum, { content }) => sum + String(content).length, 0)];
  sizes.forEach((size, i) => {
    if (size <= limits.charactersOfOne) return;
    const name = sizes.length > 1 ? `${param}[${i}]` : param;
    throw tooLong(
      param,
      `${name} has ${size} characters, and no more than ${limits.charactersOfOne} fit into the context`,
    );
  });
  const all = sizes.reduce((sum, size) => sum + size, 0);
  if (all <= limits.characters) return;
  throw tooLong(
    param,
    `${param} has ${all} characters in all, more than the ${limits.characters} of a request; send several requests`,
  );
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
