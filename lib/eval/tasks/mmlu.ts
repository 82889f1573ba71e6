/** MMLU (Hendrycks et al. 2021): questions of 57 subjects with four answers, of which the model names the letter. */
import { strip } from '../python_text.ts';
import { accuracy } from './choice_metrics.ts';
import type { Fields } from './fields.ts';
import type { ChoiceTask } from './task.ts';

const kLetters = ['A', 'B', 'C', 'D'] as const;

/** The answers and the right one: `choices` and an index, or as in the original files a column for each letter, and the letter. */
function answers(fields: Fields): { readonly choices: readonly string[]; readonly gold: number } {
  const count = kLetters.length;
  if (fields.has('choices')) {
    const choices = fields.texts('choices');
    if (choices.length !== count) throw fields.wrong('choices', `a list of ${count} texts`);
    return { choices, gold: fields.index('answer', count) };
  }
  const gold = (kLetters as readonly string[]).indexOf(fields.text('answer'));
  if (gold < 0) throw fields.wrong('answer', `one of ${kLetters.join(', ')}`);
  return { choices: kLetters.map((letter) => fields.text(letter)), gold };
}

export const mmlu: ChoiceTask = {
  name: 'mmlu',
  version: 1,
  kind: 'choice',
  help: 'questions of 57 subjects with four answers',
  fields: [
    ['question', 'choices', 'answer'],
    ['question', ...kLetters, 'answer'],
  ],
  columns: ['question', ...kLetters, 'answer'],
  numFewshot: 0,
  delimiter: ' ',
  read(fields) {
    const { choices, gold } = answers(fields);
    const lines = choices.map((choice, i) => `${kLetters[i]}. ${choice}`);
    const subject = fields.has('subject') ? fields.text('subject') : undefined;
    const about = subject === undefined ? '' : ` about ${subject.replaceAll('_', ' ')}`;
    return {
      description: `The following are multiple choice questions (with answers)${about}.\n\n`,
      context: [strip(fields.text('question')), ...lines, 'Answer:'].join('\n'),
      choices: kLetters,
      gold: [gold],
      groups: subject === undefined ? undefined : { subject },
    };
  },
  hasClasses: true,
  measure: accuracy,
};
