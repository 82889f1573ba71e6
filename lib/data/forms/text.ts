/** Rows that are plain texts, all of which is trained on. */
import { fieldText } from '../prompt_template.ts';
import { has } from './fields.ts';
import type { FormReader, RowForm } from './form.ts';

export const text: RowForm = {
  name: 'text',
  needs: 'text',
  options: ['textField'],
  find(row, { textField = 'text' }): FormReader | null {
    if (!has(row, textField)) return null;
    return {
      description: textField,
      columns: [textField],
      text: (given) => fieldText(given, textField),
    };
  },
};
