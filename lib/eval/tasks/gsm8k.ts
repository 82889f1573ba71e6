/** GSM8K (Cobbe et al. 2021): word problems of arithmetic, whose solutions end in "#### " and a number. */
import { kRecipeTemplate, PromptTemplate } from '../../data/prompt_template.ts';
import {
  gsm8kAnswer,
  gsm8kCorrect,
  gsm8kExactMatch,
  gsm8kFlexibleExtract,
  gsm8kGold,
  gsm8kStrictMatch,
  peftAnswer,
  peftCorrect,
} from '../answers.ts';
import { PythonRandom } from '../python_random.ts';
import type { Fields } from './fields.ts';
import type { GenerationTask, QuestionItem } from './task.ts';

const kNumber = /^-?(?:\d+(?:\.\d*)?|\.\d+)$/;

function read(fields: Fields): QuestionItem {
  const answer = fields.text('answer');
  if (kNumber.test(gsm8kGold(answer) ?? '')) return { question: fields.text('question'), answer };
  throw fields.wrong('answer', 'a solution that ends in "#### " and a number');
}

const gsm8kData = {
  kind: 'generation',
  dataName: 'gsm8k',
  version: 1,
  fields: [['question', 'answer']],
  read,
} as const;

const questionAndAnswer = ({ question }: QuestionItem): string => `Question: ${question}\nAnswer:`;

/** The task of this name of lm-evaluation-harness; the examples are drawn anew for each item. */
export const gsm8k: GenerationTask = {
  ...gsm8kData,
  name: 'gsm8k',
  help: 'word problems of arithmetic, after five examples',
  numFewshot: 5,
  drawFewshot: () => {
    const random = new PythonRandom(1234);
    return (examples, count) => random.sample(examples, count);
  },
  prompt: questionAndAnswer,
  example: (item) => `${questionAndAnswer(item)} ${item.answer}`,
  stopStrings: ['Question:', '</s>', '<|im_end|>'],
  maxNewTokens: 256,
  extract({ answer }, output) {
    const found = {
      'strict-match': gsm8kStrictMatch(output),
      'flexible-extract': gsm8kFlexibleExtract(output),
    };
    const metrics = Object.entries(found).map(([rule, extracted]) => [
      `exact_match,${rule}`,
      Number(gsm8kExactMatch(extracted, answer)),
    ]);
    return { extracted: found, metrics: Object.fromEntries(metrics) };
  },
};

const recipe = new PromptTemplate(kRecipeTemplate);

/** The BA-LoRA paper's protocol: the prompt of its training data, and the number after "The answer is: ". */
export const gsm8kAlpaca: GenerationTask = {
  ...gsm8kData,
  name: 'gsm8k_alpaca',
  help: "word problems of arithmetic in the BA-LoRA recipe's prompt, without examples",
  numFewshot: 0,
  prompt: ({ question }) => recipe.fill({ question }, 'question'),
  example: ({ question, answer }) =>
    `${recipe.fill({ question }, 'question')} ${answer}\nThe answer is: ${gsm8kGold(answer)}`,
  stopStrings: [],
  maxNewTokens: 1024,
  extract: ({ answer }, output) => ({
    extracted: { answer: gsm8kAnswer(output) },
    metrics: { accuracy: Number(gsm8kCorrect(output, gsm8kGold(answer) as string)) },
  }),
};

/** The protocol of PEFT's MetaMathQA benchmark. */
export const gsm8kPeft: GenerationTask = {
  ...gsm8kData,
  name: 'gsm8k_peft',
  help: "word problems of arithmetic by the protocol of PEFT's benchmark",
  numFewshot: 0,
  prompt: ({ question }) => `Question: ${question} Think step by step.\nAnswer:`,
  example: ({ question, answer }) => `Question: ${question} Think step by step.\nAnswer: ${answer}`,
  stopStrings: [],
  maxNewTokens: 300,
  extract({ answer }, output) {
    const found = peftAnswer(output);
    return {
      extracted: { answer: found },
      metrics: { accuracy: Number(peftCorrect(found, peftAnswer(answer))) },
    };
  },
};
