/**
 * Conversion of a row to an example: the form of the rows (forms/list.ts) says what a row contains, and a prompt template or the
 * model's chat template puts it into a text. Options that are not given are inferred from the first row of each file.
 */
import { ArgumentError } from '../errors.ts';
import { type CallTable, kCall, oneOf } from '../options/call.ts';
import type { ChatMessage } from '../text/chat_template.ts';
import type { Tokenizer } from '../text/tokenizer.ts';
import {
  type Example,
  encodeConversation,
  encodePromptResponse,
  encodeText,
  wholly,
} from './example.ts';
import { fieldNames } from './forms/fields.ts';
import {
  type Conversation,
  type FormOptions,
  type FormReader,
  formTable,
  type RowForm,
} from './forms/form.ts';
import { DATA_FORMATS, ROW_FORMS } from './forms/list.ts';
import { kChatTemplateName, kRecipeTemplate, PromptTemplate } from './prompt_template.ts';
import { type Row, type RowSource, withRowLocation } from './rows.ts';
import { readTemplate } from './template_file.ts';

/** Parts of an example that can be trained on: the assistant's messages, the last of them, or everything. */
export const TRAINED_TURNS = ['assistant', 'last', 'all'] as const;
/** Part of an example that is trained on. */
export type TrainedTurns = (typeof TRAINED_TURNS)[number];

/** The form and the fields of rows, the template around them, and what of them is trained on. */
export interface FormatOptions extends FormOptions {
  /**
   * A template with {field} places, a file of one, or a name: `alpaca` (the recipe's), `none` (the prompt alone) or `chat` (the
   * model's chat template). Default: `alpaca`; conversations always get the chat template.
   */
  promptTemplate?: string;
  /**
   * The part that is trained on: `assistant` (the response, every message of the assistant), `last` (its last message only) or `all` (prompts,
   * too). Default `assistant`; of plain texts everything.
   */
  trainOnTurns?: TrainedTurns;
}

/** The kinds of the options. */
export const formatTable: CallTable<FormatOptions> = {
  ...formTable,
  dataFormat: oneOf(DATA_FORMATS),
  promptTemplate: kCall.text,
  trainOnTurns: oneOf(TRAINED_TURNS),
};

export interface ExampleFormat {
  /** Description for people: `question -> answer` or `messages`. */
  readonly description: string;
  /** The columns whose texts the model reads. */
  readonly columns: readonly string[];
  encode(row: Row): Example;
}

/** Makes a choice for each file by its first row. @throws what `choose` does, with the row's place */
export async function perFile<T>(
  rows: RowSource,
  choose: (firstRow: Row) => T,
): Promise<readonly T[]> {
  const all: T[] = [];
  for (const { start } of rows.files ?? [{ start: 0 }]) {
    const row = await rows.row(start);
    all.push(await withRowLocation(rows, start, () => choose(row)));
  }
  return all;
}

/** Descriptions of formats, each once: `messages`, `messages, prompt -> completion`. */
export function describeFormats(formats: readonly { readonly description: string }[]): string {
  return [...new Set(formats.map(({ description }) => description))].join(', ');
}

/**
 * Chooses the format of the rows of each file by the options and its first row, and reads the file of a template.
 * @throws ArgumentError as {@link chooseFormat} does, with the row's place; as readTemplate() does
 */
export async function chooseFormats(
  rows: RowSource,
  tokenizer: Tokenizer,
  options: FormatOptions = {},
): Promise<readonly ExampleFormat[]> {
  const given = await withTemplate(options);
  return perFile(rows, (row) => chooseFormat(tokenizer, row, given));
}

/** The options with the text of a template in the place of its file. */
async function withTemplate<T extends FormatOptions>(options: T): Promise<T> {
  const { promptTemplate } = options;
  if (promptTemplate === undefined) return options;
  return { ...options, promptTemplate: await readTemplate(promptTemplate) };
}

/**
 * Chooses the format by the options and the fields of the first row.
 * @throws ArgumentError naming the fields that there are when no form fits, and the forms where several do
 */
export function chooseFormat(
  tokenizer: Tokenizer,
  firstRow: Row,
  options: FormatOptions = {},
): ExampleFormat {
  const { form, reader } = findForm(firstRow, options);
  const { promptTemplate = kRecipeTemplate, trainOnTurns } = options;
  const { description, columns, pair } = reader;
  const checked = checkedForm(form, reader, options);
  if (reader.text !== undefined && promptTemplate !== kChatTemplateName) {
    const text = (row: Row) => (reader.text as (row: Row) => string)(checked(row));
    return { description, columns, encode: (row) => encodeText(tokenizer, text(row)) };
  }
  if (pair === undefined || promptTemplate === kChatTemplateName) {
    const read = conversationOf(reader);
    return {
      description: pair === undefined ? description : `${description} as messages`,
      columns,
      encode: (row) => encodeTurns(tokenizer, read(checked(row)), trainOnTurns),
    };
  }
  const template = new PromptTemplate(promptTemplate);
  return {
    description,
    columns,
    encode: (row) => {
      const given = checked(row);
      const [prompt, response] = [pair.prompt(given, template), pair.response(given)];
      const example = encodePromptResponse(tokenizer, prompt, response);
      return trainOnTurns === 'all' ? wholly(example) : example;
    },
  };
}

/** A conversation as an example, with the messages supervised that the options and the row's own marks choose. */
function encodeTurns(
  tokenizer: Tokenizer,
  { marked, asked = 0, tools }: Conversation,
  turns: TrainedTurns = 'assistant',
): Example {
  const messages = marked.map(({ message }) => message);
  if (turns === 'all') {
    const off = marked.findIndex(({ trained }) => trained === false);
    if (off >= 0) {
      throw new ArgumentError(
        `message ${off} is marked not to be trained on, and trainOnTurns: 'all' trains on everything; leave one of them out`,
      );
    }
    return wholly(encodeConversation(tokenizer, messages, { tools }));
  }
  const last = messages.findLastIndex(({ role }) => role === 'assistant');
  const first = turns === 'last' ? last : asked;
  const trains = marked.map(({ trained = true }, turn) => trained && turn >= first);
  return encodeConversation(tokenizer, messages, { tools, trains });
}

function conversationOf(reader: FormReader): (row: Row) => Conversation {
  const { conversation, description } = reader;
  if (conversation !== undefined) return conversation;
  throw new ArgumentError(
    `rows of the form ${description} are no conversations; leave promptTemplate: 'chat' out`,
  );
}

/**
 * Finds the form of a row.
 * @throws ArgumentError naming the row's fields where no form fits, and the forms where several do
 */
function findForm(
  row: Row,
  options: FormatOptions,
  { promptsOnly = false }: { promptsOnly?: boolean } = {},
): { form: RowForm; reader: FormReader } {
  const hasTemplate = isTemplate(options);
  const found = candidates(options).flatMap((form) => {
    const reader = form.find(row, { ...options, promptsOnly, hasTemplate });
    return reader === null ? [] : [{ form, reader }];
  });
  const [first] = found;
  if (first === undefined) throw new ArgumentError(noForm(row, options, promptsOnly));
  // A text is often there beside the form that it was made from.
  const rivals = found.filter(({ form }) => form.name !== 'text');
  if (rivals.length > 1 && !promptsOnly) {
    const names = rivals.map(({ form, reader }) => `${form.name} (${reader.description})`);
    throw new ArgumentError(
      `the row mixes the forms ${names.join(' and ')}; name the one to read with dataFormat: '${first.form.name}'`,
    );
  }
  return first;
}

const isTemplate = ({ promptTemplate }: FormatOptions): boolean =>
  promptTemplate !== undefined && promptTemplate !== kChatTemplateName;

/** The forms that the options leave: that which they name, or those that read the named fields and can have the named template. */
function candidates(options: FormatOptions): readonly RowForm[] {
  const { dataFormat } = options;
  const forms = ROW_FORMS.filter(({ name }) => dataFormat === undefined || name === dataFormat);
  const named = (['promptField', 'responseField', 'messagesField', 'textField'] as const).filter(
    (key) => options[key] !== undefined,
  );
  return forms.filter(
    (form) =>
      named.every((key) => form.options.includes(key)) &&
      (!isTemplate(options) || dataFormat !== undefined || form.options.includes('promptField')),
  );
}

/** The message for a row in which no form was found. */
function noForm(row: Row, options: FormatOptions, promptsOnly: boolean): string {
  const { dataFormat, promptTemplate } = options;
  const fields = `(fields: ${fieldNames(row)})`;
  const form = ROW_FORMS.find(({ name }) => name === dataFormat);
  if (form !== undefined) {
    return `dataFormat: '${form.name}' needs ${form.needs} ${fields}; name the fields, or another form`;
  }
  const other = candidates({}).find((one) => one.find(row, {}) !== null);
  if (other !== undefined && promptTemplate !== undefined) {
    return `the rows are of the form ${other.name} ${fields}, and a prompt template is for prompts and responses; leave promptTemplate out, or name the fields with promptField and responseField`;
  }
  if (promptsOnly) {
    return `cannot tell which field holds the prompt ${fields}; name it with promptField`;
  }
  return (
    `cannot tell which fields hold prompt and response, or which of the forms ${DATA_FORMATS.join(', ')} it is ${fields}; ` +
    'name the fields with promptField and responseField'
  );
}

/**
 * The check that a row is of the form of its file alone, where the form was found by columns. It returns the row.
 * @throws ArgumentError for a row of another form, or of several
 */
function checkedForm(form: RowForm, reader: FormReader, options: FormatOptions): (row: Row) => Row {
  const { dataFormat, promptField, responseField, messagesField, textField } = options;
  const isNamed = [dataFormat, promptField, responseField, messagesField, textField].some(
    (option) => option !== undefined,
  );
  if (isNamed) return (row) => row;
  const others = ROW_FORMS.filter((other) => other !== form && other.name !== 'text');
  return (row) => {
    const found = others.find((other) => other.find(row, {}) !== null);
    if (found === undefined) return row;
    const description = found.find(row, {})?.description;
    throw new ArgumentError(
      `the row has fields of the form ${found.name} (${description}), and the first row of the file is of the form ${form.name} ` +
        `(${reader.description}); write all rows in one form, or divide the file`,
    );
  };
}

/** A way of reading prompt and response from a row. */
export interface TextFormat {
  /** Description for people: `question -> answer`. */
  readonly description: string;
  /** The columns whose texts the model reads. */
  readonly columns: readonly string[];
  /** The two texts of a row. @throws ArgumentError naming a field that is missing or not a text */
  texts(row: Row): [prompt: string, response: string];
}

/** The prompts of rows whose responses are not needed: all texts, or all conversations. */
export type RowPrompts = { prompt: string[] } | { messages: ChatMessage[][] };

/**
 * Converts rows to prompts as training does. Of a conversation that ends with an answer, this is left out.
 * @param isSource whether the prompts are sources of an encoder-decoder, which have no template unless one is given
 * @throws ArgumentError naming the row, and the fields that there are where none is known
 */
export async function rowPrompts(
  rows: readonly Row[],
  { isSource, ...options }: FormatOptions & { isSource: boolean },
): Promise<RowPrompts> {
  const given = await withTemplate(options);
  const [first = {}] = rows;
  const { reader } = findForm(first, given, { promptsOnly: true });
  const { promptTemplate = isSource ? null : kRecipeTemplate } = given;
  const { pair } = reader;
  if (pair !== undefined && promptTemplate !== kChatTemplateName) {
    const template = promptTemplate === null ? null : new PromptTemplate(promptTemplate);
    return { prompt: rows.map((row) => pair.prompt(row, template)) };
  }
  if (isSource) throw noConversations(reader);
  if (reader.text !== undefined) {
    return { prompt: rows.map((row) => (reader.text as (row: Row) => string)(row)) };
  }
  const read = conversationOf(reader);
  return { messages: rows.map((row) => questionOf(read(row), reader)) };
}

/** A conversation without the answer at its end. */
function questionOf({ marked }: Conversation, { columns }: FormReader): ChatMessage[] {
  const messages = marked.map(({ message }) => message);
  const asked = messages.at(-1)?.role === 'assistant' ? messages.slice(0, -1) : messages;
  if (asked.length > 0) return asked;
  throw new ArgumentError(`field '${columns[0]}' has no message that could be answered`);
}

/**
 * Chooses the source and the target of an encoder-decoder for each file: the prompt, which stays as it is unless there is a template,
 * and the response.
 * @throws ArgumentError naming the fields that there are when no form fits, and for conversations and plain texts
 */
export async function chooseSourceTargets(
  rows: RowSource,
  options: FormatOptions = {},
): Promise<readonly TextFormat[]> {
  const given = await withTemplate(options);
  return perFile(rows, (row) => chooseSourceTarget(row, given));
}

function chooseSourceTarget(firstRow: Row, options: FormatOptions): TextFormat {
  const { form, reader } = findForm(firstRow, options);
  const { promptTemplate, trainOnTurns } = options;
  const { description, columns, pair } = reader;
  if (pair === undefined || promptTemplate === kChatTemplateName) throw noConversations(reader);
  if (trainOnTurns === 'all') {
    throw new ArgumentError(
      "an encoder-decoder learns its target, never its source; leave trainOnTurns: 'all' out",
    );
  }
  const template = promptTemplate === undefined ? null : new PromptTemplate(promptTemplate);
  const checked = checkedForm(form, reader, options);
  const texts = (row: Row): [string, string] => {
    const given = checked(row);
    return [pair.prompt(given, template), pair.response(given)];
  };
  return { description, columns, texts };
}

function noConversations({ description, pair, text }: FormReader): ArgumentError {
  if (pair !== undefined) {
    return new ArgumentError(
      "an encoder-decoder has no chat template; leave promptTemplate: 'chat' out, or give a template",
    );
  }
  const what = text === undefined ? 'conversations' : 'texts without a prompt';
  return new ArgumentError(
    `rows with '${description}' are ${what}, which an encoder-decoder has no template for; give each row a source ` +
      'and a target, and name their fields with promptField and responseField',
  );
}
