/**
 * Answers of arithmetic word problems (GSM8K) and competition problems (MATH), read out of a model's text. Numbers are compared
 * as decimal numbers, not as doubles.
 */

const kMarker = 'The answer is: ';
const kGoldMarker = '#### ';
const kNumber = /-?(?:\d+(?:\.\d+)?|\.\d+)/;

/**
 * The number that a text gives as its answer: after the last "The answer is: " (else the last "#### "), commas and dollar signs
 * dropped, the first number; null without one.
 */
export function gsm8kAnswer(output: string): string | null {
  const text = afterLast(output, kMarker) ?? afterLast(output, kGoldMarker);
  return text === null ? null : (kNumber.exec(text.replace(/[,$]/g, ''))?.[0] ?? null);
}

/** The gold answer of a GSM8K row: what follows the last "#### ", without commas; null without the mark. */
export function gsm8kGold(answer: string): string | null {
  return afterLast(answer, kGoldMarker)?.replaceAll(',', '').trim() ?? null;
}

/** Whether a text's answer is the gold number. */
export function gsm8kCorrect(output: string, gold: string): boolean {
  const answer = gsm8kAnswer(output);
  return answer !== null && decimal(answer) === decimal(gold.replaceAll(',', ''));
}

/** The contents of the last complete \boxed{...}, trimmed; a backslash takes a brace out of the count. Null without one. */
export function mathAnswer(output: string): string | null {
  const opening = '\\boxed{';
  for (let at = output.lastIndexOf(opening); at >= 0; ) {
    const start = at + opening.length;
    const end = closingBrace(output, start);
    if (end !== null) return output.slice(start, end).trim();
    at = at === 0 ? -1 : output.lastIndexOf(opening, at - 1);
  }
  return null;
}

/** Whether the boxed answer is the gold one, spaces aside. */
export function mathCorrect(output: string, gold: string): boolean {
  const bare = (text: string): string => text.replaceAll(' ', '');
  const answer = bare(mathAnswer(output) ?? '');
  return answer !== '' && answer === bare(gold);
}

function closingBrace(text: string, start: number): number | null {
  let depth = 1;
  for (let i = start; i < text.length; i++) {
    const char = text[i];
    if (char === '\\') i++;
    else if (char === '{') depth++;
    else if (char === '}' && --depth === 0) return i;
  }
  return null;
}

function afterLast(text: string, mark: string): string | null {
  const at = text.lastIndexOf(mark);
  return at < 0 ? null : text.slice(at + mark.length);
}

/** One spelling for each number: no leading or trailing zeros, no sign of zero. */
function decimal(number: string): string {
  const [, sign, whole = '', fraction = ''] = /^(-?)(\d*)\.?(\d*)$/.exec(number.trim()) ?? [];
  if (sign === undefined) return number;
  const [before, after] = [whole.replace(/^0+/, ''), fraction.replace(/0+$/, '')];
  return before === '' && after === '' ? '0' : `${sign}${before || '0'}.${after}`;
}
