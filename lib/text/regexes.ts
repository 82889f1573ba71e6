/**
 * Patterns of a tokenizer.json, which are written for Oniguruma, as JavaScript's regular expressions. @huggingface/tokenizers translates
 * classes and escapes; what it drops or reads as something else is translated or refused here before.
 */
import { UnsupportedError } from '../errors.ts';
import { shown } from '../shown.ts';
import { HfSplit } from './hf_tokenizers.ts';
import { malformed } from './tokenizer_checks.ts';

/** The characters of Rust's `\w`, for a class of a regular expression with the flag `u`. */
export const kWordCharacters = '\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\u200c\\u200d';

/** A pattern of a Split or Replace step. */
export interface Pattern {
  readonly Regex?: string | undefined;
  readonly String?: string | undefined;
}

/**
 * The regular expression of a pattern, with the flags `gu`.
 * @throws UnsupportedError for syntax that JavaScript has no equal of; FormatError for a pattern that is none
 */
export function compilePattern({ Regex: regex, String: text = '' }: Pattern): RegExp {
  if (regex === undefined) return new RegExp(text.replace(/[\\^$.*+?()[\]{}|/]/g, '\\$&'), 'gu');
  const pattern = { Regex: rewritten(regex) };
  try {
    return new HfSplit({ type: 'Split', pattern, invert: true }).pattern as RegExp;
  } catch (error) {
    throw malformed(`the pattern ${shown(regex)} cannot be read (${(error as Error).message})`);
  }
}

/**
 * The places that match, from left to right. An empty match is left out where another ends, as Oniguruma's iterator does.
 */
export function* matchesOf(text: string, pattern: RegExp): Generator<[start: number, end: number]> {
  let last = -1;
  for (const { index, 0: match } of text.matchAll(pattern)) {
    const end = index + match.length;
    if (match.length === 0 && index === last) continue;
    last = end;
    yield [index, end];
  }
}

/** The text with every match replaced by a plain text. */
export function replaceMatches(text: string, pattern: RegExp, content: string): string {
  let [result, rest] = ['', 0];
  for (const [start, end] of matchesOf(text, pattern)) {
    result += text.slice(rest, start) + content;
    rest = end;
  }
  return result + text.slice(rest);
}

/** A part of a pattern: an atom, a quantifier, or what opens, separates or closes a group. */
interface Lexeme {
  readonly kind: 'atom' | 'quantifier' | 'open' | 'bar' | 'close';
  readonly text: string;
}

const kEscape = /^\\(?:[pPxu]\{[^}]*\}|k<[^>]*>|[\s\S])/u;
/** Groups that mean the same in both languages, and atomic ones. */
const kOpen = /^\((?:(?!\?)|\?(?:[:=!>]|<[=!]|<[A-Za-z_]\w*>|i:))/;
const kQuantifier = /^(?:[*+?]|\{(?:\d+(?:,\d*)?|,\d+)\})/;

/** The next part of a pattern that is not empty; null where a group is of a kind of its own. */
function lexemeAt(rest: string, behindAtom: boolean): Lexeme | null {
  const quantifier = behindAtom ? kQuantifier.exec(rest) : null;
  if (quantifier) return { kind: 'quantifier', text: quantifier[0] };
  const char = String.fromCodePoint(rest.codePointAt(0) as number);
  if (char === '(') {
    const open = kOpen.exec(rest);
    return open && { kind: 'open', text: open[0] };
  }
  if (char === ')') return { kind: 'close', text: char };
  if (char === '|') return { kind: 'bar', text: char };
  if (char === '[') return { kind: 'atom', text: classAt(rest) };
  return { kind: 'atom', text: kEscape.exec(rest)?.[0] ?? char };
}

/** The class of characters, with those in it, that a text begins with; the whole text if it has no end. */
function classAt(text: string): string {
  let depth = 0;
  for (let i = 0; i < text.length; i++) {
    if (text[i] === '\\') i++;
    else if (text[i] === '[') {
      depth++;
      // A bracket at the beginning of a class is one of its characters.
      const first = /^\[\^?\]/.exec(text.slice(i))?.[0];
      if (first !== undefined) i += first.length - 1;
    } else if (text[i] === ']' && --depth === 0) return text.slice(0, i + 1);
  }
  return text;
}

/** Letters that have a third form beside the two of ASCII. */
const kThirdForms: Readonly<Record<string, string>> = { s: 'sS\u017f', k: 'kK\u212a' };

/**
 * Rewrites what the package drops: possessive quantifiers (`a++`) and atomic groups (`(?>a)`), which become a lookahead and a reference
 * to what it found, and the long s and the Kelvin sign, which are an s and a k where case is ignored.
 */
function rewritten(regex: string): string {
  const refuse = (what: string): UnsupportedError =>
    new UnsupportedError(
      `tokenizer: the pattern ${shown(regex)} has ${what}, which JavaScript's regular expressions do not have; write it in ` +
        'another way in tokenizer.json',
    );
  const groups: { at: number; isAtomic: boolean; folds: boolean }[] = [];
  let [written, atom, found] = ['', -1, 0];
  const makeAtomic = (from: number, more = ''): void => {
    // Names without letters, since the package gives those a second form where case is ignored.
    const name = `_${found++}`;
    const whole = written.slice(from) + more;
    written = `${written.slice(0, from)}(?:(?=(?<${name}>${whole}))\\k<${name}>)`;
  };
  for (let i = 0; i < regex.length; ) {
    const rest = regex.slice(i);
    const lexeme = lexemeAt(rest, atom >= 0);
    if (lexeme === null) throw refuse(`the group ${rest.slice(0, 4)}`);
    const { kind, text } = lexeme;
    const folds = groups.at(-1)?.folds ?? false;
    i += text.length;
    if (kind === 'quantifier') {
      const isPossessive = regex[i] === '+' && !text.startsWith('{');
      if (isPossessive) makeAtomic(atom, text);
      else written += text;
      if (isPossessive) i++;
    } else if (kind === 'open') {
      const isAtomic = text === '(?>';
      groups.push({ at: written.length, isAtomic, folds: folds || text === '(?i:' });
      written += isAtomic ? '(?:' : text;
      atom = -1;
    } else if (kind === 'close') {
      const group = groups.pop();
      written += text;
      if (group?.isAtomic) makeAtomic(group.at);
      atom = group?.at ?? -1;
    } else {
      if (/^\\[GKRXyY]/.test(text)) throw refuse(text);
      if (folds && /^[^\0-\x7f]/.test(text)) throw refuse(`${text} where case is ignored`);
      atom = kind === 'bar' ? -1 : written.length;
      const forms = folds ? kThirdForms[text.toLowerCase()] : undefined;
      written += forms === undefined ? text : `[${forms}]`;
    }
  }
  if (found > 0 && /\\[1-9]/.test(regex)) throw refuse('a numbered reference beside atomic parts');
  return written;
}
