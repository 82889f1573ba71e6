/** Conversations in OpenAI's form: `messages`, each with `role` and `content`, and `tools` of the row for the chat template. */
import { ArgumentError } from '../../errors.ts';
import { isObject } from '../../options/option.ts';
import type { Row } from '../rows.ts';
import { has, listValue, messagesOf, toolsOf } from './fields.ts';
import type { FormReader, RowForm } from './form.ts';

/** Names of a conversation's field, tried in this order. */
const kConversationFields = ['messages', 'conversations', 'conversation'] as const;

/** The field of a conversation: the named one, or one of the known names, if its first message is of the form. */
export function conversationField(
  row: Row,
  named: string | undefined,
  isOfForm: (first: unknown) => boolean,
): string | undefined {
  return (named === undefined ? kConversationFields : [named]).find((name) => {
    const value = listValue(row, name);
    return Array.isArray(value) && isOfForm(value[0]);
  });
}

export const messages: RowForm = {
  name: 'messages',
  needs: 'messages, a list of role and content',
  options: ['messagesField', 'roleMap'],
  find(row, { messagesField, roleMap }): FormReader | null {
    const field = conversationField(row, messagesField, (first) => !isOfShareGpt(first));
    if (field === undefined) return null;
    return {
      description: field,
      columns: [field],
      conversation: (given) => {
        const marked = messagesOf(given, field, roleMap);
        if (marked.length === 0) {
          throw new ArgumentError(`field '${field}' is empty; give it messages, or remove the row`);
        }
        return { marked, tools: toolsOf(given) };
      },
    };
  },
};

/** Whether a message is in the form of ShareGPT. */
export function isOfShareGpt(message: unknown): boolean {
  return isObject(message) && has(message, 'from') && !has(message, 'role');
}
