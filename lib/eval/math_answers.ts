/**
 * Comparison of answers to competition problems (MATH, Hendrycks et al. 2021) as texts, by the rules of the benchmark's own grader, which
 * BA-LoRA's paper and lm-evaluation-harness use: both answers are brought into one spelling, which must be the same.
 */
import { mathAnswer } from './answers.ts';

const kMarker = 'The answer is: ';

/**
 * The answer of a text by the paper's protocol: what follows the last "The answer is: ", up to a full stop at the end of a line; null:
 * there is no such mark.
 */
export function markedMathAnswer(output: string): string | null {
  const at = output.lastIndexOf(kMarker);
  if (at < 0) return null;
  const [first = ''] = output.slice(at + kMarker.length).split('.\n');
  return first.trim().replace(/\.$/, '').trim();
}

/** The answer of a text by lm-evaluation-harness's hendrycks_math: what is between the first and the last dollar sign, or all of it. */
export function dollarMathAnswer(output: string): string {
  const [first, last] = [output.indexOf('$'), output.lastIndexOf('$')];
  return first === last ? output : output.slice(first + 1, last);
}

/** The answer that a reference's solution has in its last box, which may lack braces (`\boxed 3`); null: there is no box. */
export function mathGold(solution: string): string | null {
  const bare = solution.split('\\boxed ');
  if (bare.length > 1) return (bare.at(-1) as string).split('$')[0] as string;
  return mathAnswer(solution) ?? mathAnswer(solution.replaceAll('\\fbox{', '\\boxed{'));
}

/** Whether two answers are equal once they have one spelling; where one cannot be brought into it, whether they are the same text. */
export function mathEquivalent(a: string, b: string): boolean {
  const [left, right] = [normalizedMathAnswer(a), normalizedMathAnswer(b)];
  return left === null || right === null ? a === b : left === right;
}

/** Spellings that mean the same, or nothing, in the order in which they are replaced. */
const kReplaced: readonly (readonly [from: string, to: string])[] = [
  ['\n', ''],
  ['\\!', ''],
  ['\\\\', '\\'],
  ['tfrac', 'frac'],
  ['dfrac', 'frac'],
  ['\\left', ''],
  ['\\right', ''],
  ['^{\\circ}', ''],
  ['^\\circ', ''],
  ['\\$', ''],
];

/** The text before a unit. */
const kUnit = '\\text{ ';

/**
 * The spelling of an answer that is compared: without units, degrees, percent and spaces, fractions and roots with braces.
 * @returns null for an answer that the grader cannot read: two units, or a root or fraction without an argument
 */
export function normalizedMathAnswer(answer: string): string | null {
  const plain = kReplaced.reduce((text, [from, to]) => text.replaceAll(from, to), answer);
  const parts = plain.split(kUnit);
  if (parts.length > 2) return null;
  let text = (parts[0] as string)
    .replaceAll('\\%', '')
    .replaceAll(' .', ' 0.')
    .replaceAll('{.', '{0.');
  if (text === '') return text;
  if (text.startsWith('.')) text = `0${text}`;
  const sides = text.split('=');
  // A short name before the sign: x = 5.
  if (sides.length === 2 && (sides[0] as string).length <= 2) text = sides[1] as string;
  const rooted = rootsWithBraces(text);
  const braced = rooted === null ? null : fractionsWithBraces(rooted.replaceAll(' ', ''));
  if (braced === null) return null;
  return quotient(braced === '0.5' ? '\\frac{1}{2}' : braced);
}

/** `\sqrt3` as `\sqrt{3}`; null for a root of nothing. */
function rootsWithBraces(text: string): string | null {
  const [before, ...roots] = text.split('\\sqrt');
  if (roots.includes('')) return null;
  const braced = roots.map((root) => {
    const [first = ''] = root;
    return first === '{' ? root : `{${first}}${root.slice(first.length)}`;
  });
  return [before, ...braced].join('\\sqrt');
}

/** `\frac12` and `\frac1{2}` as `\frac{1}{2}`; null for a fraction of nothing, the text itself where one has half of its arguments. */
function fractionsWithBraces(text: string): string | null {
  const [before, ...fractions] = text.split('\\frac');
  const odd = fractions.find((one) => !one.startsWith('{') && [...one].length < 2);
  if (odd !== undefined) return odd === '' ? null : text;
  const braced = fractions.map((fraction) => {
    const [above = '', below = '', ...rest] = fraction;
    if (above === '{') return fraction;
    return `{${above}}${below === '{' ? below : `{${below}}`}${rest.join('')}`;
  });
  return [before, ...braced].join('\\frac');
}

/** `1/2` as `\frac{1}{2}`, where both are whole numbers in their shortest spelling. */
function quotient(text: string): string {
  const [, above, below] = /^(-?[1-9]\d*|0)\/(-?[1-9]\d*|0)$/.exec(text) ?? [];
  return above === undefined ? text : `\\frac{${above}}{${below}}`;
}
