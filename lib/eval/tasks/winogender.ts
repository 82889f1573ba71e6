/** Winogender (Rudinger et al. 2018): whether a pronoun refers to the occupation or to the other person of a sentence. */
import { capitalize } from '../python_text.ts';
import { accuracy } from './choice_metrics.ts';
import type { Fields } from './fields.ts';
import { accuraciesBy } from './groups.ts';
import type { ChoiceItem, ChoiceTask } from './task.ts';

interface Sentence {
  readonly pronoun: string;
  readonly occupation: string;
  readonly participant: string;
  /** 0: the pronoun refers to the occupation, 1: to the participant. */
  readonly label: number;
  readonly gender: string;
}

const kSentId = /^([^.]+)\.([^.]+)\.([01])\.(male|female|neutral)\.txt$/;
const kPronoun = /\b(?:s?he|they|him|hers?|them|his|theirs?)\b/i;

/** The parts of a sentence of the original file, which are in its name: `technician.customer.1.male.txt`. */
function named(fields: Fields): Sentence {
  const parts = kSentId.exec(fields.text('sentid'));
  if (parts === null) throw fields.wrong('sentid', 'a name such as technician.customer.1.male.txt');
  const [, occupation, participant, label, gender] = parts as unknown as string[];
  const pronoun = kPronoun.exec(fields.text('sentence'))?.[0];
  if (pronoun === undefined) throw fields.wrong('sentence', 'a sentence with a pronoun');
  return { ...{ pronoun, label: Number(label) }, occupation, participant, gender } as Sentence;
}

function read(fields: Fields): ChoiceItem {
  const { pronoun, occupation, participant, label, gender } = fields.has('pronoun')
    ? {
        pronoun: fields.text('pronoun'),
        occupation: fields.text('occupation'),
        participant: fields.text('participant'),
        label: fields.index('label', 2),
        gender: fields.has('gender') ? fields.word('gender') : '',
      }
    : named(fields);
  return {
    context: `${fields.text('sentence')} \u2018${capitalize(pronoun)}\u2019 refers to the`,
    choices: [occupation, participant],
    gold: [label],
    groups: { occupation, ...(gender !== '' && { gender }) },
  };
}

/** The task of this name of lm-evaluation-harness, with the accuracies by the pronoun's gender beside the mean. */
export const winogender: ChoiceTask = {
  name: 'winogender',
  version: 1,
  kind: 'choice',
  help: 'to whom the pronoun of a sentence refers, by its gender',
  fields: [
    ['sentence', 'pronoun', 'occupation', 'participant', 'label'],
    ['sentid', 'sentence'],
  ],
  numFewshot: 0,
  delimiter: ' ',
  read,
  measure: accuracy,
  summarize: accuraciesBy('gender'),
};
