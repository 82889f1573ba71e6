/** The prompts of a call: texts, conversations or ids, one or several, as ids. */
import { ArgumentError } from '../errors.ts';
import { type Model, Seq2SeqLM } from '../models/index.ts';
import { type ChatMessage, checkRoles } from '../text/chat_template.ts';
import type { Tokenizer } from '../text/tokenizer.ts';

/** Ids as a caller gives them. */
export type TokenIds = readonly number[] | Int32Array;

/** A prompt that leaves no room for a new token in the model's context (`ERR_ARGUMENT`). */
export class ContextLengthError extends ArgumentError {
  /** Number of the prompt's tokens. */
  readonly tokens: number;
  /** Number of tokens that the model's context has, those of the prompt and new ones. */
  readonly contextLength: number;

  /** @param what the prompt, as the beginning of the message */
  constructor(
    what: string,
    { tokens, model, advice }: { tokens: number; model: Model; advice: string },
  ) {
    const { modelType, contextLength } = model;
    super(
      `${what} has ${tokens} tokens, but the context of this ${modelType} model has ${contextLength}, new tokens included; ${advice}`,
    );
    this.tokens = tokens;
    this.contextLength = contextLength;
  }
}

/** The prompts of a call, of which exactly one is given. */
export interface PromptInput {
  /** A text or several, with the tokenizer's special tokens (BOS) but in no template. */
  prompt?: string | readonly string[];
  /** A conversation or several, in the model's chat template, which the answer continues. */
  messages?: readonly ChatMessage[] | readonly (readonly ChatMessage[])[];
  /** Ids or several lists of them. */
  ids?: TokenIds | readonly TokenIds[];
}

/** The names of the prompts' forms. */
export const PROMPT_KEYS = ['prompt', 'messages', 'ids'] as const;

/**
 * Converts the prompts to ids, and checks them.
 * @throws ArgumentError naming the prompt: none or two forms are given, a tokenizer is missing, a prompt has no token, an id that is
 *   not in the vocabulary, or as many tokens as the context of the model
 */
export function encodePrompts(
  input: PromptInput,
  { tokenizer, model }: { tokenizer: Tokenizer | undefined; model: Model },
): Int32Array[] {
  const given = PROMPT_KEYS.filter((key) => input[key] !== undefined);
  const [key] = given;
  if (key === undefined || given.length > 1) {
    const found = given.length === 0 ? 'none' : given.join(' and ');
    throw new ArgumentError(`generate: give one of ${PROMPT_KEYS.join(', ')}, got ${found}`);
  }
  const prompts = promptsOf(input, key, tokenizer);
  if (prompts.length === 0) {
    throw new ArgumentError(`generate: ${key} is an empty list; give at least one prompt`);
  }
  return prompts.map(({ ids, name }) => checkIds(ids, { what: `generate: ${name}`, model }));
}

interface NamedIds {
  /** The prompt in messages: `prompt`, or `prompt[2]` for one of several. */
  readonly name: string;
  readonly ids: TokenIds;
}

function promptsOf(
  { prompt, messages, ids }: PromptInput,
  key: (typeof PROMPT_KEYS)[number],
  tokenizer: Tokenizer | undefined,
): NamedIds[] {
  if (ids !== undefined)
    return listOf<TokenIds>(ids, isIds, 'ids').map(({ one, name }) => ({ ids: one, name }));
  if (tokenizer === undefined) {
    throw new ArgumentError(
      `generate: ${key} needs the model's tokenizer; pass tokenizer: await Tokenizer.fromPretrained(model.folder), or ids`,
    );
  }
  if (prompt !== undefined) {
    const isText = (one: unknown): one is string => typeof one === 'string';
    return listOf(prompt, isText, 'prompt').map(({ one, name }) => ({
      ...{ name, ids: tokenizer.encode(one) },
    }));
  }
  const conversations = messages as NonNullable<typeof messages>;
  return listOf<readonly ChatMessage[]>(conversations, isConversation, 'messages').map(
    ({ one, name }) => {
      checkRoles(`generate: ${name}`, one, tokenizer.chatTemplate);
      return { name, ids: tokenizer.encodeChat(one, { addGenerationPrompt: true }) };
    },
  );
}

/** A value or the values of a list, each with its name. @throws ArgumentError for a value that is neither */
function listOf<T>(
  given: T | readonly T[],
  is: (value: unknown) => value is T,
  key: string,
): { one: T; name: string }[] {
  if (is(given)) return [{ one: given, name: key }];
  if (!Array.isArray(given)) throw wrongType(key);
  return given.map((one, i) => {
    if (!is(one)) throw wrongType(`${key}[${i}]`);
    return { one, name: `${key}[${i}]` };
  });
}

function isIds(value: unknown): value is TokenIds {
  if (value instanceof Int32Array) return true;
  return Array.isArray(value) && value.length > 0 && value.every((id) => typeof id === 'number');
}

function isConversation(value: unknown): value is readonly ChatMessage[] {
  return Array.isArray(value) && value.length > 0 && value.every((message) => isMessage(message));
}

function isMessage(value: unknown): boolean {
  return typeof value === 'object' && value !== null && 'role' in value;
}

const kWanted: Readonly<Record<string, string>> = {
  prompt: 'a text or a list of texts',
  messages: 'a list of messages { role, content } that is not empty, or a list of such lists',
  ids: 'a list of ids that is not empty, or a list of such lists',
};

function wrongType(name: string): ArgumentError {
  return new ArgumentError(`generate: ${name} must be ${kWanted[name.replace(/\[.*/, '')]}`);
}

/**
 * Checks ids as a prompt.
 * @param options what: the prompt, as the beginning of messages; advice: what to do about too many tokens
 * @throws ArgumentError as {@link encodePrompts}
 */
export function checkIds(
  ids: TokenIds,
  { what, model, advice = 'shorten the prompt' }: { what: string; model: Model; advice?: string },
): Int32Array {
  if (ids.length === 0) {
    throw new ArgumentError(
      `${what} has no tokens; give at least one, such as the tokenizer's bosId`,
    );
  }
  for (const id of ids) {
    if (Number.isInteger(id) && id >= 0 && id < model.vocabSize) continue;
    throw new ArgumentError(
      `${what} has the id ${id}, which the model does not have; give ids from 0 to ${model.vocabSize - 1}, by the ` +
        "model's own tokenizer",
    );
  }
  // The prompt of an encoder-decoder is not in the context of the new tokens.
  if (!(model instanceof Seq2SeqLM) && ids.length >= model.contextLength) {
    throw new ContextLengthError(what, { tokens: ids.length, model, advice });
  }
  return Int32Array.from(ids);
}
