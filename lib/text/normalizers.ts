/**
 * Normalizers of a tokenizer.json, as Hugging Face's tokenizers (Rust) apply them. Those of @huggingface/tokenizers 0.2 are not used:
 * they take SentencePiece's compiled map for NFKC, lower a sigma by its place in the word, strip other white space, read `$&` in a
 * replacement, and look for ideographs in UTF-16 units.
 */
import { UnsupportedError } from '../errors.ts';
import { shown } from '../shown.ts';
import { toByteLevel } from './byte_level.ts';
import { PrecompiledMap } from './precompiled.ts';
import { compilePattern, type Pattern, replaceMatches } from './regexes.ts';

type Json = Record<string, unknown>;
export type Normalizer = (text: string) => string;

const kForms = ['NFC', 'NFD', 'NFKC', 'NFKD'] as const;

/** The normalizers by type. */
const kNormalizers: Readonly<Record<string, (config: Json) => Normalizer>> = {
  Sequence: ({ normalizers = [] }) => {
    const steps = (normalizers as unknown[]).map(compileNormalizer);
    return (text) => steps.reduce((result, step) => step(result), text);
  },
  ...Object.fromEntries(kForms.map((form) => [form, () => (text: string) => text.normalize(form)])),
  BertNormalizer: bertNormalizer,
  ByteLevel: () => toByteLevel,
  Lowercase: () => lowerCase,
  Nmt: () => nmt,
  Precompiled: ({ precompiled_charsmap: charsmap }) => {
    if (charsmap === null || charsmap === undefined) return (text) => text;
    const map = new PrecompiledMap(charsmap as string);
    return (text) => map.normalize(text);
  },
  Prepend:
    ({ prepend = '' }) =>
    (text) =>
      text === '' ? '' : `${prepend}${text}`,
  Replace: ({ pattern, content = '' }) => {
    const compiled = compilePattern(pattern as Pattern);
    return (text) => replaceMatches(text, compiled, content as string);
  },
  Strip:
    ({ strip_left: left, strip_right: right }) =>
    (text) => {
      const kept = left ? text.replace(/^\p{White_Space}+/u, '') : text;
      return right ? trimmedEnd(kept) : kept;
    },
  StripAccents: () => (text) => text.replace(/\p{M}/gu, ''),
};

/**
 * The function of a normalizer; null: the text stays as it is.
 * @throws UnsupportedError for a type that is not known
 */
export function compileNormalizer(config: unknown): Normalizer {
  if (config === null || config === undefined) return (text) => text;
  const { type } = config as Json;
  const known = Object.hasOwn(kNormalizers, String(type)) ? kNormalizers[String(type)] : undefined;
  if (known) return known(config as Json);
  throw new UnsupportedError(
    `tokenizer: the normalizer ${shown(type)} is not supported (known: ${Object.keys(kNormalizers).join(', ')}); write it in ` +
      'tokenizer.json by these',
  );
}

/** The CJK blocks that BERT treats as ideographs. */
const kIdeograph =
  /[\u4e00-\u9fff\u3400-\u4dbf\u{20000}-\u{2a6df}\u{2a700}-\u{2b73f}\u{2b740}-\u{2b81f}\u{2b920}-\u{2ceaf}\uf900-\ufaff\u{2f800}-\u{2fa1f}]/gu;
/** Characters that BERT drops: U+FFFD and other than tab and line ends the controls, formats and private ones. */
const kBertDropped = /[\ufffd\p{Co}\p{Cf}]|(?![\t\n\r])\p{Cc}/gu;

function bertNormalizer(config: Json): Normalizer {
  const { clean_text: cleans, handle_chinese_chars: spaces, lowercase } = config;
  const strips = config.strip_accents ?? lowercase;
  return (text) => {
    let result = text;
    if (cleans) result = result.replace(kBertDropped, '').replace(/\p{White_Space}/gu, ' ');
    if (spaces) result = result.replace(kIdeograph, ' $& ');
    if (strips) result = result.normalize('NFD').replace(/\p{Mn}/gu, '');
    return lowercase ? lowerCase(result) : result;
  };
}

/** The text in lower case, character by character: JavaScript writes a capital sigma at the end of a word as another letter. */
function lowerCase(text: string): string {
  return text.replaceAll('\u03a3', '\u03c3').toLowerCase();
}

/** Removes white space at the end, in a time that grows with the length alone. */
function trimmedEnd(text: string): string {
  let end = text.length;
  while (end > 0 && /\p{White_Space}/u.test(text.charAt(end - 1))) end--;
  return text.slice(0, end);
}

const range = (first: number, last: number) =>
  Array.from({ length: last - first + 1 }, (_, i) => first + i);
/** Characters that SentencePiece's NMT normalisation drops, and those that it makes spaces. */
const kNmtDropped = new Set([...range(1, 8), 0xb, ...range(0xe, 0x1f), 0x7f, 0x8f, 0x9f]);
const kNmtSpaces = new Set([
  ...[9, 0xa, 0xc, 0xd, 0x1680, ...range(0x200b, 0x200f), 0x2028, 0x2029, 0x2581, 0xfeff, 0xfffd],
]);

function nmt(text: string): string {
  return Array.from(text, (char) => {
    const code = char.codePointAt(0) as number;
    if (kNmtDropped.has(code)) return '';
    return kNmtSpaces.has(code) ? ' ' : char;
  }).join('');
}
