import { describe, expect, it } from 'vitest';
import {
  dollarMathAnswer,
  markedMathAnswer,
  mathEquivalent,
  mathGold,
  normalizedMathAnswer,
} from '../../lib/eval/math_answers.ts';
import { fixturePath, readJson } from '../support/fixtures.ts';

interface Pair {
  readonly a: string;
  readonly b: string;
}
const { math_equal_after_common_normalisation: pairs } = readJson(
  fixturePath('metrics/answers.json'),
) as { math_equal_after_common_normalisation: readonly Pair[] };

describe('equivalence', () => {
  it('holds for the usual spellings, but not for marks between thousands, which the grader keeps', () => {
    expect(pairs).toHaveLength(10);
    const other = pairs.filter(({ a, b }) => !mathEquivalent(a, b));
    expect(other.map(({ b }) => b)).toEqual(['1000']);
  });

  it('brings answers into one spelling', () => {
    const spelled = {
      '\\sqrt3': '\\sqrt{3}',
      '2\\sqrt {5}': null,
      '\\frac1b': '\\frac{1}{b}',
      '\\frac1{72}': '\\frac{1}{72}',
      '3/4': '\\frac{3}{4}',
      '-1/2': '\\frac{-1}{2}',
      '03/4': '03/4',
      '1/2/3': '1/2/3',
      '0.5': '\\frac{1}{2}',
      'k = 7': '7',
      'abc=7': 'abc=7',
      '5\\text{ cm}': '5',
      ' .3': '0.3',
      '': '',
    };
    for (const [answer, wanted] of Object.entries(spelled)) {
      if (wanted !== null) expect(normalizedMathAnswer(answer), answer).toBe(wanted);
    }
  });

  it('compares the texts of answers that cannot be read', () => {
    for (const odd of ['\\sqrt', '\\frac', 'a\\text{ b}\\text{ c}']) {
      expect(normalizedMathAnswer(odd), odd).toBeNull();
      expect(mathEquivalent(odd, odd)).toBe(true);
      expect(mathEquivalent(odd, `${odd} `)).toBe(false);
    }
    expect(normalizedMathAnswer('\\frac1')).toBe('\\frac1');
  });
});

describe('extraction', () => {
  it("takes the text after the paper's mark", () => {
    expect(markedMathAnswer('So.\nThe answer is: $\\frac12$.')).toBe('$\\frac12$');
    expect(markedMathAnswer('The answer is: 1. The answer is: 2.\nMore text.')).toBe('2');
    expect(markedMathAnswer('The answer is 3')).toBeNull();
    expect(markedMathAnswer('The answer is: ')).toBe('');
  });

  it('takes what is between dollar signs', () => {
    expect(dollarMathAnswer('it is $3$, so $x=3$')).toBe('3$, so $x=3');
    expect(dollarMathAnswer('3')).toBe('3');
    expect(dollarMathAnswer('costs $3')).toBe('costs $3');
  });

  it('reads the box of a solution', () => {
    expect(mathGold('\\boxed{1} and $\\boxed{\\frac{1}{2}}$.')).toBe('\\frac{1}{2}');
    expect(mathGold('$\\boxed 2$ left')).toBe('2');
    expect(mathGold('\\fbox{3}')).toBe('3');
    expect(mathGold('none')).toBeNull();
  });
});
