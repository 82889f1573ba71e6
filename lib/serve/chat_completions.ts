/** POST /v1/chat/completions: an answer to a conversation. */
import { misspelt } from '../nearest.ts';
import type { ChatMessage } from '../text/chat_template.ts';
import { ApiError, wrongField } from './api_error.ts';
import type { AnswerHead, Endpoint, ListedToken } from './endpoint.ts';
import { type Fields, flagOf, logprobsOf, readRequest } from './request.ts';

/** The roles that chat templates know. `developer` is the name of `system` for newer models of OpenAI. */
const kRoles = ['system', 'developer', 'user', 'assistant'];

export const chatCompletions: Endpoint = {
  prefix: 'chatcmpl-',
  param: 'messages',
  read: (fields) => {
    const request = readRequest(fields, ['messages', 'logprobs', 'top_logprobs']);
    const input = { messages: messagesOf(fields.messages) };
    return { ...request, input, settings: { ...request.settings, ...logprobs(fields) } };
  },
  whole: (head, choices) => ({
    ...{ ...head, object: 'chat.completion' },
    choices: choices.map(({ text, finishReason, tokens }, index) => ({
      index,
      message: { role: 'assistant', content: text, refusal: null },
      logprobs: listed(tokens),
      finish_reason: finishReason,
    })),
  }),
  opening: (head, index) =>
    chunk(head, { index, delta: { role: 'assistant', content: '' }, logprobs: null }),
  part: (head, index, { text, tokens }) =>
    chunk(head, { index, delta: { content: text }, logprobs: listed(tokens) }),
  closing: (head, index, end) =>
    chunk(head, { index, delta: {}, logprobs: null, finish_reason: end }),
  usage: (head) => ({ ...head, object: 'chat.completion.chunk', choices: [] }),
};

function chunk(head: AnswerHead, choice: object): object {
  return {
    ...{ ...head, object: 'chat.completion.chunk' },
    choices: [{ finish_reason: null, ...choice }],
  };
}

function listed(tokens: readonly ListedToken[] | null): object | null {
  if (tokens === null) return null;
  return {
    content: tokens.map(({ top, ...token }) => ({ ...token, top_logprobs: top })),
    refusal: null,
  };
}

function logprobs(fields: Fields): { logprobs?: number } {
  const count = logprobsOf(fields, 'top_logprobs');
  if (flagOf(fields, 'logprobs')) return { logprobs: count ?? 0 };
  if (count === null || count === 0) return {};
  throw wrongField('top_logprobs', 'top_logprobs needs logprobs: true');
}

function messagesOf(given: unknown): ChatMessage[] {
  if (!Array.isArray(given) || given.length === 0) {
    throw wrongField('messages', 'messages must be a list of messages that is not empty');
  }
  return given.map((message: unknown, i) => messageOf(message, `messages[${i}]`));
}

function messageOf(given: unknown, where: string): ChatMessage {
  if (typeof given !== 'object' || given === null || Array.isArray(given)) {
    throw wrongField(where, `${where} must be an object with role and content`);
  }
  const { role, content, name, ...others } = given as Fields;
  for (const [key, value] of Object.entries(others)) {
    // Answers of the API have such fields; what asks for nothing is no reason to refuse them.
    if (value === null || (Array.isArray(value) && value.length === 0)) continue;
    throw new ApiError(`${where}.${key} is not supported; leave it out`, {
      ...{ status: 400, param: `${where}.${key}`, code: 'unsupported_field' },
    });
  }
  if (typeof role !== 'string' || !kRoles.includes(role)) {
    const meant = typeof role === 'string' ? misspelt(role, kRoles) : null;
    throw wrongField(
      `${where}.role`,
      `${where}.role must be one of ${kRoles.join(', ')}${meant === null ? '' : ` (did you mean "${meant}"?)`}`,
    );
  }
  if (name !== undefined && name !== null && typeof name !== 'string') {
    throw wrongField(`${where}.name`, `${where}.name must be a text`);
  }
  return {
    role: role === 'developer' ? 'system' : role,
    content: contentOf(content, `${where}.content`),
    ...(typeof name === 'string' && { name }),
  };
}

/** The text of a message: a text, or the texts of a list of parts. */
function contentOf(given: unknown, where: string): string {
  if (typeof given === 'string') return given;
  if (!Array.isArray(given)) {
    throw wrongField(where, `${where} must be a text, or a list of parts of type text`);
  }
  return given
    .map((part: unknown, i) => {
      const { type, text } = (part ?? {}) as Fields;
      if (type === 'text' && typeof text === 'string') return text;
      throw wrongField(
        `${where}[${i}]`,
        `${where}[${i}] must be { type: 'text', text }; the model reads nothing but texts`,
      );
    })
    .join('');
}
