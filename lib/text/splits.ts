/**
 * Pre-tokenizers of a tokenizer.json, as Hugging Face's tokenizers (Rust) split texts. Those of @huggingface/tokenizers 0.2 are not used:
 * they know two of a Split's five behaviors, take `invert` for one, split words at letters beyond ASCII, keep punctuation together, and
 * count UTF-16 units.
 */
import { UnsupportedError } from '../errors.ts';
import { shown } from '../shown.ts';
import { toByteLevel } from './byte_level.ts';
import { compilePattern, kWordCharacters, matchesOf, type Pattern } from './regexes.ts';

type Json = Record<string, unknown>;

/** A part of a text. */
export interface Part {
  readonly text: string;
  /** Whether it begins where the whole text begins, before which Metaspace's scheme `first` puts a mark. */
  readonly isFirst: boolean;
}

type Splitter = (part: Part) => readonly Part[];

/** The treatment of the text that a pattern matches. */
type Behavior = 'Removed' | 'Isolated' | 'MergedWithPrevious' | 'MergedWithNext' | 'Contiguous';

/** A part of a text from one place to another, and whether the pattern matches it. */
interface Span {
  start: number;
  end: number;
  readonly isMatch: boolean;
}

/** The spans that remain of those of a text, by behavior. */
const kBehaviors: Readonly<Record<Behavior, (spans: readonly Span[]) => readonly Span[]>> = {
  Removed: (spans) => spans.filter(({ isMatch }) => !isMatch),
  Isolated: (spans) => spans,
  Contiguous: (spans) => joined(spans, (span, before) => span.isMatch === before),
  MergedWithPrevious: (spans) => joined(spans, (span, before) => span.isMatch && !before),
  MergedWithNext: (spans) => {
    const backwards = joined([...spans].reverse(), (span, after) => span.isMatch && !after);
    return [...backwards].reverse();
  },
};

/**
 * Joins spans with those that were seen before them.
 * @param joins whether a span is joined, by it and by whether the one seen before it is a match
 */
function joined(spans: readonly Span[], joins: (span: Span, before: boolean) => boolean): Span[] {
  const result: Span[] = [];
  let before = false;
  for (const span of spans) {
    const last = result.at(-1);
    if (last !== undefined && joins(span, before)) {
      last.start = Math.min(last.start, span.start);
      last.end = Math.max(last.end, span.end);
    } else result.push({ ...span });
    before = span.isMatch;
  }
  return result;
}

/** The spans of a text: matches, and what is between them. */
function spansOf(text: string, pattern: RegExp, invert: boolean): Span[] {
  const spans: Span[] = [];
  let rest = 0;
  for (const [start, end] of matchesOf(text, pattern)) {
    if (rest < start) spans.push({ start: rest, end: start, isMatch: invert });
    spans.push({ start, end, isMatch: !invert });
    rest = end;
  }
  if (rest < text.length) spans.push({ start: rest, end: text.length, isMatch: invert });
  return spans;
}

/** A splitter at the matches of a pattern, or with `invert` at what is between them. */
function splitter(pattern: RegExp, behavior: Behavior, invert = false): Splitter {
  const remaining = kBehaviors[behavior];
  return ({ text, isFirst }) =>
    remaining(spansOf(text, pattern, invert)).flatMap(({ start, end }) =>
      start === end ? [] : [{ text: text.slice(start, end), isFirst: isFirst && start === 0 }],
    );
}

/** A splitter that changes texts. */
const change =
  (changed: (part: Part) => string): Splitter =>
  (part) => [{ ...part, text: changed(part) }];

/** @throws UnsupportedError for a behavior that is not known */
function behaviorOf({ type, behavior = 'Isolated' }: Json): Behavior {
  if (typeof behavior === 'string' && Object.hasOwn(kBehaviors, behavior))
    return behavior as Behavior;
  throw new UnsupportedError(
    `tokenizer: the behavior ${shown(behavior)} of the pre-tokenizer ${String(type)} is not supported (known: ` +
      `${Object.keys(kBehaviors).join(', ')})`,
  );
}

const kSpace = /\p{White_Space}/gu;
const kPunctuation = /[\p{P}!-/:-@[-`{-~]/gu;
/** Words and runs of other characters. */
const kWordOrOther = new RegExp(
  `[${kWordCharacters}]+|[^${kWordCharacters}\\p{White_Space}]+`,
  'gu',
);

/** The splitters by type. */
const kSplitters: Readonly<Record<string, (config: Json) => Splitter>> = {
  Sequence: ({ pretokenizers = [] }) => {
    const steps = (pretokenizers as unknown[]).map(compilePreTokenizer);
    return (part) => steps.reduce<readonly Part[]>((parts, step) => parts.flatMap(step), [part]);
  },
  BertPreTokenizer: () => {
    const words = splitter(kSpace, 'Removed');
    const marks = splitter(kPunctuation, 'Isolated');
    return (part) => words(part).flatMap(marks);
  },
  // The conversion alone: preTokenizerSteps makes steps of their own of a pattern and a prefix.
  ByteLevel: () => change(({ text }) => toByteLevel(text)),
  CharDelimiterSplit: ({ delimiter }) =>
    splitter(compilePattern({ String: String(delimiter) }), 'Removed'),
  FixedLength: ({ length = 5 }) =>
    splitter(new RegExp(`[^]{1,${String(length)}}`, 'gu'), 'Isolated'),
  Metaspace: metaspace,
  PrefixSpace: () => change(({ text }) => (text.startsWith(' ') ? text : ` ${text}`)),
  Punctuation: (config) => splitter(kPunctuation, behaviorOf(config)),
  Split: (config) => {
    const { pattern, invert } = config;
    return splitter(compilePattern(pattern as Pattern), behaviorOf(config), invert === true);
  },
  Whitespace: () => splitter(kWordOrOther, 'Removed', true),
  WhitespaceSplit: () => splitter(kSpace, 'Removed'),
};

/** Types that are made here of others and are not those of a file. */
const kOwnTypes = ['PrefixSpace'];

/**
 * The function of a pre-tokenizer's steps (preTokenizerSteps); null: the text stays in one part.
 * @throws UnsupportedError for a type that is not known
 */
export function compilePreTokenizer(config: unknown): Splitter {
  if (config === null || config === undefined) return (part) => [part];
  const { type } = config as Json;
  const known = Object.hasOwn(kSplitters, String(type)) ? kSplitters[String(type)] : undefined;
  if (known) return known(config as Json);
  const names = Object.keys(kSplitters).filter((name) => !kOwnTypes.includes(name));
  throw new UnsupportedError(
    `tokenizer: the pre-tokenizer ${shown(type)} is not supported (known: ${names.join(', ')}); write it in tokenizer.json by these`,
  );
}

/** Marks in the place of spaces, and before the text. preTokenizerSteps adds the split before every mark. */
function metaspace({ replacement = '\u2581', prepend_scheme: scheme }: Json): Splitter {
  const mark = String(replacement);
  return change(({ text, isFirst }) => {
    const marked = text.replaceAll(' ', () => mark);
    const prepends = scheme === 'always' || (scheme === 'first' && isFirst);
    return prepends && !marked.startsWith(mark) ? mark + marked : marked;
  });
}
