/**
 * The interface of a form of rows: the columns by which it is recognised, and what a row of it says. A form is one file in this
 * folder and one line in list.ts.
 */
import { type CallTable, kCall } from '../../options/call.ts';
import type { ChatMessage } from '../../text/chat_template.ts';
import type { PromptTemplate } from '../prompt_template.ts';
import type { Row } from '../rows.ts';

/** Options that name a form and its fields. */
export interface FormOptions {
  /** The form of the rows, one of `DATA_FORMATS`. Default: found by their columns. */
  dataFormat?: string;
  /** Field of the prompt. Default: the first known pair that a row has. */
  promptField?: string;
  /** Field of the response. Default: that of the pair. */
  responseField?: string;
  /** Field of a conversation. Default: `messages` or `conversations`. */
  messagesField?: string;
  /** Field of a plain text. Default `text`. */
  textField?: string;
  /** The chat template's role for a role of the data, beside the known ones: `{ narrator: 'user' }`. */
  roleMap?: Readonly<Record<string, string>>;
}

/** The kinds of the options, without that which names one of all forms. */
export const formTable: CallTable<Omit<FormOptions, 'dataFormat'>> = {
  promptField: kCall.text,
  responseField: kCall.text,
  messagesField: kCall.text,
  textField: kCall.text,
  roleMap: kCall.textsByName,
};

/** A message, and whether it is trained on, as the row says. */
export interface MarkedMessage {
  readonly message: ChatMessage;
  /** Default: the row does not say. */
  readonly trained?: boolean | undefined;
}

/** A conversation of a row. */
export interface Conversation {
  readonly marked: readonly MarkedMessage[];
  /** Descriptions of tools for the chat template. Default: none. */
  readonly tools: unknown[] | undefined;
  /** Number of first messages that are the prompt, which is trained on only with everything. Default 0. */
  readonly asked?: number;
}

/** The reading of rows in which the form was found. Each function throws ArgumentError naming a field that is missing or wrong. */
export interface FormReader {
  /** Description for people: `question -> answer`, `messages`. */
  readonly description: string;
  /** The columns whose texts the model reads. */
  readonly columns: readonly string[];
  /** Reads a row as a conversation; undefined: the form has none. */
  conversation?(row: Row): Conversation;
  /** Reads a row as a prompt and a response; undefined: the form is not one of prompts and responses. */
  readonly pair?: PairReader;
  /** Reads a row as a text without a prompt; undefined: the form has none. */
  text?(row: Row): string;
}

/** The reading of rows as prompts and responses. */
export interface PairReader {
  /** The prompt through a template; null: as it stands. */
  prompt(row: Row, template: PromptTemplate | null): string;
  response(row: Row): string;
}

/** Circumstances in which a form is looked for. */
export interface FindOptions extends FormOptions {
  /** Whether a row without a response is of the form, too. Default false. */
  readonly promptsOnly?: boolean;
  /** Whether a prompt template was given, which may name the fields of the prompt itself. Default false. */
  readonly hasTemplate?: boolean;
}

/** A form of rows. */
export interface RowForm {
  readonly name: string;
  /** The fields that it needs, for messages. */
  readonly needs: string;
  /** Options that it reads. One that is given rules out the forms that do not read it. */
  readonly options: readonly (keyof FormOptions)[];
  /**
   * The reader of rows such as this one.
   * @returns null where the row is not of this form
   * @throws ArgumentError where an option names a field that the row lacks
   */
  find(row: Row, options: FindOptions): FormReader | null;
}
