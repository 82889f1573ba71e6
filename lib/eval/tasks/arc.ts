/** ARC (Clark et al. 2018): multiple choice questions of school science. */
import { normalizedAccuracies } from './choice_metrics.ts';
import type { Fields } from './fields.ts';
import type { ChoiceItem, ChoiceTask } from './task.ts';

/** Answers and their labels: `choices.text` and `choices.label`, or as in the original files `question.choices`, a list of both. */
function answers(fields: Fields): {
  readonly stem: string;
  readonly text: readonly string[];
  readonly label: readonly string[];
} {
  if (typeof fields.value('question') === 'string') {
    const choices = fields.nested('choices');
    return {
      stem: fields.text('question'),
      text: choices.texts('text'),
      label: choices.texts('label'),
    };
  }
  const question = fields.nested('question');
  const given = question.value('choices');
  const isPair = (one: unknown): one is { text: string; label: string } => {
    const { text, label } = (one ?? {}) as Record<string, unknown>;
    return typeof text === 'string' && text !== '' && typeof label === 'string';
  };
  if (!Array.isArray(given) || given.length < 2 || !given.every(isPair)) {
    throw question.wrong('choices', 'a list of at least two objects with text and label');
  }
  return {
    stem: question.text('stem'),
    text: given.map(({ text }) => text),
    label: given.map(({ label }) => label),
  };
}

function read(fields: Fields): ChoiceItem {
  const { stem, text, label } = answers(fields);
  const gold = label.indexOf(fields.text('answerKey'));
  if (gold < 0 || gold >= text.length) {
    throw fields.wrong('answerKey', `one of the labels ${label.join(', ')}`);
  }
  return { context: `Question: ${stem}\nAnswer:`, choices: text, gold: [gold] };
}

const arc = {
  kind: 'choice',
  version: 1,
  fields: [
    ['question', 'choices', 'answerKey'],
    ['question', 'answerKey'],
  ],
  numFewshot: 0,
  delimiter: ' ',
  read,
  measure: normalizedAccuracies,
} as const satisfies Partial<ChoiceTask>;

export const arcEasy: ChoiceTask = { ...arc, name: 'arc_easy', help: 'school science, easy part' };
export const arcChallenge: ChoiceTask = {
  ...arc,
  name: 'arc_challenge',
  help: 'school science, hard part',
};
