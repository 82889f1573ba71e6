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

/** The value of a rule of lm-evaluation-harness that finds nothing. */
export const kInvalidAnswer = '[invalid]';

const kStrict = /#### (-?[0-9.,]+)/;
const kFlexible = /-?[$0-9.,]{2,}|-?[0-9]+/g;

/** The answer of a text to a GSM8K question by lm-evaluation-harness's filter strict-match: the number after the first "#### ". */
export function gsm8kStrictMatch(output: string): string {
  return kStrict.exec(output)?.[1] ?? kInvalidAnswer;
}

/** The answer of a text by lm-evaluation-harness's filter flexible-extract: the last number, or what looks like one. */
export function gsm8kFlexibleExtract(output: string): string {
  return output.match(kFlexible)?.at(-1) ?? kInvalidAnswer;
}

/**
 * Whether an extracted answer equals the reference's by lm-evaluation-harness's exact_match for GSM8K. Texts are compared, not numbers:
 * 3.0 is not 3.
 */
export function gsm8kExactMatch(extracted: string, answer: string): boolean {
  const plain = (text: string): string =>
    (afterLast(text.replace(/[,$]/g, ''), kGoldMarker) ?? text.replace(/[,$]/g, ''))
      .replace(/\.(?=\n?$)/, '')
      .toLowerCase();
  return plain(extracted) === plain(answer);
}

/** Beginnings of an answer for PEFT's benchmark, by preference. */
const kPeftMarkers = [
  'The answer is: ',
  'The answer is ',
  'The final answer is: ',
  'The final answer is ',
  kGoldMarker,
];

/** The answer of a text by the rule of PEFT's MetaMathQA benchmark; null: none. */
export function peftAnswer(output: string): string | null {
  const text = output.trim().replace(/[.!?]+$/, '');
  const marker = kPeftMarkers.find((one) => text.includes(one));
  if (marker === undefined) return null;
  const [line = ''] = (afterLast(text, marker) as string).trim().split('\n');
  return line.replace(/^[ .!?$%]+/, '').replace(/[ .!?$%]+$/, '');
}

/** Whether two answers are equal by the rule of PEFT's MetaMathQA benchmark: as doubles where both are numbers, else as texts. */
export function peftCorrect(answer: string | null, gold: string | null): boolean {
  if (answer === null || gold === null) return false;
  const [a, b] = [peftNumber(answer), peftNumber(gold)];
  return a === null || b === null ? answer === gold : a === b;
}

/** A number as Python's Decimal reads it, or the quotient of two; null: it is neither. */
function peftNumber(text: string): number | null {
  const parts = text.split('/');
  if (parts.length > 2) return null;
  const [above, below] = parts.map(decimalNumber) as [number | null, number | null | undefined];
  if (above === null || below === undefined) return above;
  return below === null || below === 0 ? null : above / below;
}

function decimalNumber(text: string): number | null {
  const bare = text.trim().replaceAll('_', '');
  if (/^[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?$/i.test(bare)) return Number(bare);
  if (/^[+-]?inf(?:inity)?$/i.test(bare)) {
    return bare.startsWith('-') ? Number.NEGATIVE_INFINITY : Number.POSITIVE_INFINITY;
  }
  return /^[+-]?s?nan\d*$/i.test(bare) ? Number.NaN : null;
}
