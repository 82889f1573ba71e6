// Extraction of answers against lm-evaluation-harness and PEFT's benchmark.
import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import {
  gsm8kExactMatch,
  gsm8kFlexibleExtract,
  gsm8kStrictMatch,
  peftAnswer,
  peftCorrect,
} from '../../../lib/eval/answers.ts';
import { gsm8k, gsm8kAlpaca, gsm8kPeft } from '../../../lib/eval/tasks/gsm8k.ts';
import { describeShared, sharedPath } from '../../support/shared.ts';

interface Answers {
  readonly lm_eval_gsm8k: readonly {
    readonly output: string;
    readonly gold: string;
    readonly strict: string;
    readonly flexible: string;
    readonly strict_match: number;
    readonly flexible_match: number;
  }[];
  readonly peft_metamath: readonly {
    readonly output: string;
    readonly response: string;
    readonly parsed: string | null;
    readonly parsed_response: string | null;
    readonly correct: boolean;
  }[];
}

describeShared('answers', ['golden/evaluation'], () => {
  const golden = JSON.parse(
    readFileSync(sharedPath('golden/evaluation/answers.json'), 'utf8'),
  ) as Answers;

  it('are extracted and compared as by lm-evaluation-harness', () => {
    expect(golden.lm_eval_gsm8k.length).toBeGreaterThan(20);
    for (const one of golden.lm_eval_gsm8k) {
      const [strict, flexible] = [gsm8kStrictMatch(one.output), gsm8kFlexibleExtract(one.output)];
      expect([strict, flexible], one.output).toEqual([one.strict, one.flexible]);
      const right = [strict, flexible].map((found) => Number(gsm8kExactMatch(found, one.gold)));
      expect(right, one.output).toEqual([one.strict_match, one.flexible_match]);
    }
  });

  it("are extracted and compared as by PEFT's benchmark", () => {
    expect(golden.peft_metamath.length).toBeGreaterThan(20);
    for (const { output, response, parsed, parsed_response, correct } of golden.peft_metamath) {
      expect(peftAnswer(output), output).toBe(parsed);
      expect(peftAnswer(response), response).toBe(parsed_response);
      expect(peftCorrect(parsed, parsed_response), output).toBe(correct);
    }
  });
});

const item = { question: 'What is 1 + 1?', answer: '1 + 1 = 2\n#### 2' };

it("has the prompts of the harness, of the paper's recipe and of PEFT's benchmark", () => {
  expect(gsm8k.prompt(item)).toBe('Question: What is 1 + 1?\nAnswer:');
  expect(gsm8k.example(item)).toBe('Question: What is 1 + 1?\nAnswer: 1 + 1 = 2\n#### 2');
  expect(gsm8kAlpaca.prompt(item)).toMatch(
    /^Below is an instruction .*\n\n### Instruction:\nWhat is 1 \+ 1\?\n\n### Response:$/,
  );
  expect(gsm8kPeft.prompt(item)).toBe('Question: What is 1 + 1? Think step by step.\nAnswer:');
});

it('counts an answer without a number as wrong', () => {
  const wrong = { 'exact_match,strict-match': 0, 'exact_match,flexible-extract': 0 };
  expect(gsm8k.extract(item, 'I do not know.').metrics).toEqual(wrong);
  for (const task of [gsm8kAlpaca, gsm8kPeft]) {
    expect(task.extract(item, 'I do not know.')).toEqual({
      extracted: { answer: null },
      metrics: { accuracy: 0 },
    });
    expect(task.extract(item, 'The answer is: 2').metrics).toEqual({ accuracy: 1 });
    expect(task.extract(item, 'The answer is: 3').metrics).toEqual({ accuracy: 0 });
  }
});
