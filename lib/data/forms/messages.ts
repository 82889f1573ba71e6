/** Conversations in OpenAI's form: `messages`, each with `role` and `content`, and `tools` of the row for the chat template. */
import { ArgumentError } from '../../errors.ts';
import { has, isPlainObject, listValue, messagesOf, toolsOf } from './fields.ts';
import type { FormReader, RowForm } from './form.ts';

/** Names of a conversation's field, tried in this order. */
export const kConversationFields = ['messages', 'conversations', 'conversation'] as const;

export const messages: RowForm = {
  name: 'messages',
  needs: 'messages, a list of role and content',
  options: ['messagesField', 'roleMap'],
  find(row, { messagesField, roleMap }): FormReader | null {
    const names = messagesField === undefined ? kConversationFields : [messagesField];
    const field = names.find((name) => {
      const value = listValue(row, name);
      return Array.isArray(value) && !isOfShareGpt(value[0]);
    });
    if (field === undefined) return null;
    return {
      description: field,
      columns: [field],
      conversation: (given) => {
        const marked = messagesOf(given, field, roleMap);
        if (marked.length === 0) {
          throw new ArgumentError(`field '${field}' is empty; give it messages, or remove the row`);
        }
        return {
          messages: marked.map(({ message }) => message),
          trained: marked.map(({ trained }) => trained),
          ...toolsOf(given),
        };
      },
    };
  },
};

/** Whether a message is in the form of ShareGPT. */
export function isOfShareGpt(message: unknown): boolean {
  return isPlainObject(message) && has(message, 'from') && !has(message, 'role');
}
