/** MATH (Hendrycks et al. 2021): competition problems, whose solutions have the answer in a box. */
import { kRecipeTemplate, PromptTemplate } from '../../data/prompt_template.ts';
import { dollarMathAnswer, markedMathAnswer, mathEquivalent, mathGold } from '../math_answers.ts';
import type { Fields } from './fields.ts';
import type { GenerationTask, QuestionItem } from './task.ts';

/** A problem and its answer, which is a field of its own or in the box of the solution. */
function read(fields: Fields): QuestionItem {
  const group = ['type', 'subject', 'level'].filter((name) => fields.has(name));
  const groups = Object.fromEntries(group.map((name) => [name, fields.word(name)]));
  const answer = fields.has('answer') ? fields.text('answer') : mathGold(fields.text('solution'));
  if (answer) return { question: fields.text('problem'), answer, groups };
  throw fields.wrong('solution', 'a solution with its answer in \\boxed{}');
}

const mathData = {
  kind: 'generation',
  dataName: 'math',
  version: 1,
  fields: [
    ['problem', 'solution'],
    ['problem', 'answer'],
  ],
  numFewshot: 0,
  read,
} as const;

const recipe = new PromptTemplate(kRecipeTemplate);
const prompt = ({ question }: QuestionItem): string => recipe.fill({ question }, 'question');

/** The BA-LoRA paper's protocol: the prompt of its training data, and what follows "The answer is: ". */
export const math: GenerationTask = {
  ...mathData,
  name: 'math',
  help: "competition problems in the BA-LoRA recipe's prompt",
  prompt,
  example: (item) => `${prompt(item)} The answer is: ${item.answer}`,
  stopStrings: [],
  maxNewTokens: 1024,
  extract({ answer }, output) {
    const found = markedMathAnswer(output);
    const accuracy = Number(found !== null && mathEquivalent(found, answer));
    return { extracted: { answer: found }, metrics: { accuracy } };
  },
};

const problem = ({ question }: QuestionItem): string => `Problem: ${question}\nAnswer:`;

/** The task of this name of lm-evaluation-harness. */
export const hendrycksMath: GenerationTask = {
  ...mathData,
  name: 'hendrycks_math',
  help: "competition problems by lm-evaluation-harness's protocol",
  prompt: problem,
  example: (item) => `${problem(item)} ${item.answer}`,
  stopStrings: ['Problem:'],
  maxNewTokens: 256,
  extract({ answer }, output) {
    const found = dollarMathAnswer(output);
    const exact_match = Number(mathEquivalent(found, answer));
    return { extracted: { answer: found }, metrics: { exact_match } };
  },
};
