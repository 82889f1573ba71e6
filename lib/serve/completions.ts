/** POST /v1/completions: continuations of texts, or of ids. */
import { wrongField } from './api_error.ts';
import type { AnswerHead, Endpoint, ListedToken } from './endpoint.ts';
import { kMostChoices, logprobsOf, type RequestInput, readRequest } from './request.ts';

export const completions: Endpoint = {
  prefix: 'cmpl-',
  param: 'prompt',
  read: (fields) => {
    const request = readRequest(fields, ['prompt', 'logprobs']);
    const logprobs = logprobsOf(fields, 'logprobs');
    const { numReturnSequences: n = 1 } = request.settings;
    const input = promptOf(fields.prompt);
    const prompts = 'ids' in input ? input.ids.length : input.prompt.length;
    if (prompts * n > kMostChoices) {
      throw wrongField(
        'prompt',
        `${prompts} prompts with n ${n} are more than ${kMostChoices} texts; send several requests`,
      );
    }
    return {
      ...request,
      input,
      settings: { ...request.settings, logprobs: logprobs ?? undefined },
    };
  },
  whole: (head, choices) => ({
    ...{ ...head, object: 'text_completion' },
    choices: choices.map(({ text, finishReason, tokens }, index) => ({
      ...{ text, index, logprobs: listed(tokens, 0), finish_reason: finishReason },
    })),
  }),
  opening: () => null,
  part: (head, index, { text, tokens, offset }) =>
    chunk(head, { text, index, logprobs: listed(tokens, offset), finish_reason: null }),
  closing: (head, index, end) =>
    chunk(head, { text: '', index, logprobs: null, finish_reason: end }),
  usage: (head) => ({ ...head, object: 'text_completion', choices: [] }),
};

function chunk(head: AnswerHead, choice: object): object {
  return { ...head, object: 'text_completion', choices: [choice] };
}

function listed(tokens: readonly ListedToken[] | null, offset: number): object | null {
  if (tokens === null) return null;
  let next = offset;
  return {
    tokens: tokens.map(({ token }) => token),
    token_logprobs: tokens.map(({ logprob }) => logprob),
    top_logprobs: tokens.map(({ top }) =>
      Object.fromEntries(top.map(({ token, logprob }) => [token, logprob])),
    ),
    text_offset: tokens.map(({ token }) => {
      const own = next;
      next += token.length;
      return own;
    }),
  };
}

type PromptInput = Exclude<RequestInput, { readonly messages: unknown }>;

function promptOf(given: unknown): PromptInput {
  if (typeof given === 'string') return { prompt: [given] };
  const list: readonly unknown[] = Array.isArray(given) ? given : [];
  if (list.length > 0) {
    if (list.every((one) => typeof one === 'string')) return { prompt: list };
    if (isIds(list)) return { ids: [list] };
    if (list.every(isIds)) return { ids: list };
  }
  throw wrongField(
    'prompt',
    'prompt must be a text, a list of token ids, or a list of one or the other that is not empty',
  );
}

function isIds(given: unknown): given is readonly number[] {
  return Array.isArray(given) && given.length > 0 && given.every((id) => typeof id === 'number');
}
