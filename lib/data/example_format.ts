/**
 * Conversion of a row to an example: prompt and response fields through a prompt template, or `messages` through the model's chat
 * template. Options that are not given are inferred from the first row.
 */
import { ArgumentError } from '../errors.ts';
import { type CallTable, kCall } from '../options/call.ts';
import { shown } from '../shown.ts';
import type { ChatMessage } from '../text/chat_template.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import { type Example, encodeConversation, encodePromptResponse } from './example.ts';
import { fieldText, kRecipeTemplate, PromptTemplate } from './prompt_template.ts';
import type { Row } from './rows.ts';

/** Field names of prompt and response in a row, and the template around them. */
export interface FormatOptions {
  /** A template with {field} places, or the name of one. Default: the recipe's. */
  promptTemplate?: string;
  promptField?: string;
  responseField?: string;
}

/** The kinds of the options. */
export const formatTable: CallTable<FormatOptions> = {
  promptTemplate: kCall.text,
  promptField: kCall.text,
  responseField: kCall.text,
};

export interface ExampleFormat {
  /** Description for people: `question -> answer` or `messages`. */
  readonly description: string;
  encode(row: Row): Example;
}

/** Field names of public data sets for prompt and response, tried in this order. */
const kKnownPairs = [
  ['instruction', 'output'],
  ['query', 'response'],
  ['query', 'answer'],
  ['question', 'answer'],
  ['prompt', 'completion'],
  ['prompt', 'response'],
  ['human', 'assistant'],
] as const;

/**
 * Chooses the format by the options and the fields of the first row.
 * @throws ArgumentError naming the fields that there are when no known pair fits
 */
export function chooseFormat(
  tokenizer: Tokenizer,
  firstRow: Row,
  options: FormatOptions = {},
): ExampleFormat {
  if (isConversation(firstRow, options)) {
    return {
      description: 'messages',
      encode: (row) => encodeConversation(tokenizer, checkedMessages(row), checkedTools(row)),
    };
  }
  const { promptTemplate = kRecipeTemplate } = options;
  const { description, texts } = chooseTexts(firstRow, options, promptTemplate);
  return { description, encode: (row) => encodePromptResponse(tokenizer, ...texts(row)) };
}

/** Whether rows are conversations: they have `messages`, and no option names other fields or a template. */
function isConversation(
  firstRow: Row,
  { promptTemplate, promptField, responseField }: FormatOptions,
): boolean {
  const asksForFields = [promptTemplate, promptField, responseField].some((o) => o !== undefined);
  return !asksForFields && Array.isArray(firstRow.messages);
}

/** A way of reading prompt and response from a row. */
export interface TextFormat {
  /** Description for people: `question -> answer`. */
  readonly description: string;
  /** The two texts of a row. @throws ArgumentError naming a field that is missing or not a text */
  texts(row: Row): [prompt: string, response: string];
}

/**
 * Chooses the two fields by the options and the first row.
 * @param promptTemplate template around the prompt; null: none
 * @throws ArgumentError naming the fields that there are when no known pair fits
 */
function chooseTexts(
  firstRow: Row,
  options: FormatOptions,
  promptTemplate: string | null,
): TextFormat {
  const [prompt, response] = chooseFields(firstRow, options);
  const template = promptTemplate === null ? null : new PromptTemplate(promptTemplate);
  return {
    description: `${prompt ?? 'template'} -> ${response}`,
    texts: (row) => [
      template === null ? fieldText(row, prompt as string) : template.fill(row, prompt),
      fieldText(row, response),
    ],
  };
}

/** The prompts of rows whose responses are not needed: all texts, or all conversations. */
export type RowPrompts = { prompt: string[] } | { messages: ChatMessage[][] };

/**
 * Converts rows to prompts as training does. Of a conversation that ends with an answer, this is left out.
 * @param isSource whether the prompts are sources of an encoder-decoder, which have no template unless one is given
 * @throws ArgumentError naming the row, and the fields that there are where none is known
 */
export function rowPrompts(
  rows: readonly Row[],
  { isSource, ...options }: FormatOptions & { isSource: boolean },
): RowPrompts {
  const [first = {}] = rows;
  if (!isSource && isConversation(first, options)) return { messages: rows.map(questionOf) };
  const field = promptField(first, options);
  const { promptTemplate = isSource ? null : kRecipeTemplate } = options;
  const template = promptTemplate === null ? null : new PromptTemplate(promptTemplate);
  return {
    prompt: rows.map((row) =>
      template === null ? fieldText(row, field as string) : template.fill(row, field),
    ),
  };
}

/** A conversation without the answer at its end. */
function questionOf(row: Row): ChatMessage[] {
  const messages = checkedMessages(row);
  const asked = messages.at(-1)?.role === 'assistant' ? messages.slice(0, -1) : messages;
  if (asked.length > 0) return asked;
  throw new ArgumentError("field 'messages' has no message that could be answered");
}

/** The field of the prompt in rows that may have no response; null if the template names its own fields. */
function promptField(
  row: Row,
  { promptField: given, promptTemplate }: FormatOptions,
): string | null {
  if (given !== undefined) return given;
  const found = kKnownPairs.find(([prompt]) => Object.hasOwn(row, prompt));
  if (found !== undefined) return found[0];
  if (promptTemplate !== undefined) return null;
  throw new ArgumentError(
    `cannot tell which field holds the prompt (fields: ${Object.keys(row).join(', ') || 'none'}); name it with promptField`,
  );
}

/**
 * Chooses the source and the target of an encoder-decoder: the prompt as it stands, unless there is a template, and the response.
 * @throws ArgumentError naming the fields that there are when no known pair fits, or for conversations
 */
export function chooseSourceTarget(firstRow: Row, options: FormatOptions = {}): TextFormat {
  if (isConversation(firstRow, options)) {
    throw new ArgumentError(
      "rows with 'messages' are conversations, which an encoder-decoder has no template for; give each row a source and a " +
        'target, and name their fields with promptField and responseField',
    );
  }
  return chooseTexts(firstRow, options, options.promptTemplate ?? null);
}

/** The fields of the prompt (null if the template names its own fields) and of the response. */
function chooseFields(row: Row, options: FormatOptions): [string | null, string] {
  const { promptField, responseField, promptTemplate } = options;
  for (const field of [promptField, responseField]) {
    if (field !== undefined) fieldText(row, field); // throws if a field that was named is missing
  }
  if (promptField !== undefined && responseField !== undefined) return [promptField, responseField];
  const pair = kKnownPairs.find(
    ([p, r]) =>
      Object.hasOwn(row, promptField ?? p) &&
      Object.hasOwn(row, responseField ?? r) &&
      (promptField === undefined || p === promptField) &&
      (responseField === undefined || r === responseField),
  );
  if (pair) return [...pair];
  if (promptTemplate !== undefined && responseField !== undefined) return [null, responseField];
  throw new ArgumentError(
    `cannot tell which fields hold prompt and response (fields: ${Object.keys(row).join(', ') || 'none'}); ` +
      'name them with promptField and responseField',
  );
}

function checkedMessages(row: Row): ChatMessage[] {
  const { messages } = row;
  if (!Array.isArray(messages)) {
    throw new ArgumentError(
      messages === undefined
        ? `no field 'messages' (fields: ${Object.keys(row).join(', ') || 'none'}); every row needs it where the first has it`
        : `field 'messages' must be an array, got ${shown(messages, 40)}`,
    );
  }
  return messages.map((message: unknown, i) => checkedMessage(message, i));
}

/** A message with a role and content. A message that only calls tools may have no content, which is then an empty text. */
function checkedMessage(message: unknown, i: number): ChatMessage {
  const { role, content = null, tool_calls: calls } = (message ?? {}) as Partial<ChatMessage>;
  if (typeof role !== 'string') {
    throw new ArgumentError(`messages[${i}] has no role; give it one, such as user or assistant`);
  }
  if (content !== null) return message as ChatMessage;
  if (!Array.isArray(calls) || calls.length === 0) {
    throw new ArgumentError(
      `messages[${i}] (${role}) has no content; give it a text, or remove the message or the row`,
    );
  }
  return { ...(message as ChatMessage), content: '' };
}

/** The descriptions of tools in a row; none for null or an empty list. @throws ArgumentError for another value than a list */
function checkedTools({ tools = null }: Row): { tools?: unknown[] } {
  if (tools === null) return {};
  if (!Array.isArray(tools)) {
    throw new ArgumentError(
      `field 'tools' must be a list of descriptions, got ${shown(tools, 40)}`,
    );
  }
  return tools.length === 0 ? {} : { tools };
}
