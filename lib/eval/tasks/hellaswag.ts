/** HellaSwag (Zellers et al. 2019): the most plausible continuation of a description. */
import { capitalize, strip } from '../python_text.ts';
import { normalizedAccuracies } from './choice_metrics.ts';
import type { ChoiceTask } from './task.ts';

/** Removes the marks of WikiHow's texts: titles, and what else is in brackets. */
function cleaned(text: string): string {
  return strip(text)
    .replaceAll(' [title]', '. ')
    .replace(/\[[^\n]*?\]/g, '')
    .replaceAll('  ', ' ');
}

export const hellaswag: ChoiceTask = {
  name: 'hellaswag',
  version: 1,
  kind: 'choice',
  help: 'the most plausible continuation of a description',
  fields: [['activity_label', 'ctx_a', 'ctx_b', 'endings', 'label']],
  numFewshot: 0,
  delimiter: ' ',
  read(fields) {
    const endings = fields.texts('endings').map(cleaned);
    const context = `${fields.text('ctx_a')} ${capitalize(fields.text('ctx_b', { mayBeEmpty: true }))}`;
    return {
      context: cleaned(`${fields.text('activity_label')}: ${context}`),
      choices: endings,
      gold: [fields.index('label', endings.length)],
    };
  },
  measure: normalizedAccuracies,
};
