/** The list of the forms of rows. */
import { alpaca } from './alpaca.ts';
import type { RowForm } from './form.ts';
import { messages } from './messages.ts';
import { promptCompletion } from './prompt_completion.ts';
import { sharegpt } from './sharegpt.ts';
import { text } from './text.ts';

/** All forms, in the order in which they are looked for. */
export const ROW_FORMS: readonly RowForm[] = [messages, sharegpt, alpaca, promptCompletion, text];

/** Names of the forms. */
export const DATA_FORMATS: readonly string[] = ROW_FORMS.map(({ name }) => name);
