/**
 * Extraction and comparison of answers to arithmetic word problems (GSM8K) and competition problems (MATH). Numbers are compared
 * as decimal numbers, not as doubles.
 */

const kMarker = 'The answer is: ';
const kGoldMarker = '#### ';
const kNumber = /-?(?:\d+(?:\.\d+)?|\.\d+)/;

/**
 * The number that a text gives as its answer: the first one after the last "The answer is: ", or else after the last "#### ",
 * without commas and dollar signs; null if there is none.
 */
export function gsm8kAnswer(output: string): string | null {
  const text = afterLast(output, kMarker) ?? afterLast(output, kGoldMarker);
  return text === null ? null : (kNumber.exec(text.replace(/[,$]/g, ''))?.[0] ?? null);
}

/** The gold answer of a GSM8K row: the text after the last "#### ", without commas; null if there is no such mark. */
export function gsm8kGold(answer: string): string | null {
  return afterLast(answer, kGoldMarker)?.replaceAll(',', '').trim() ?? null;
}

/** Whether the answer of a text equals the gold number. */
export function gsm8kCorrect(output: string, gold: string): boolean {
  const answer = gsm8kAnswer(output);
  return answer !== null && decimal(answer) === decimal(gold.replaceAll(',', ''));
}

/** The trimmed contents of the last complete \boxed{...}; null if there is none. Braces after a backslash do not count. */
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

/** Whether the boxed answer of a text equals the gold one, without regard to spaces. */
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

/** The canonical spelling of a number, without leading and trailing zeros and without the sign of zero. */
function decimal(number: string): string {
  const [, sign, whole = '', fraction = ''] = /^(-?)(\d*)\.?(\d*)$/.exec(number.trim()) ?? [];
  if (sign === undefined) return number;
  const [before, after] = [whole.replace(/^0+/, ''), fraction.replace(/0+$/, '')];
  return before === '' && after === '' ? '0' : `${sign}${before || '0'}.${after}`;
}
