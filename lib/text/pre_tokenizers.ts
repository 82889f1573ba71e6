/**
 * Pre-tokenizers in the form of tokenizer.json: the table of those that GGUF files name (tokenizer.ggml.pre), and the steps that they
 * consist of, which splits.ts carries out. The patterns are those of llama.cpp's llama-vocab.cpp and of the models' own files.
 */
import { UnsupportedError } from '../errors.ts';

type Json = Record<string, unknown>;

/** GPT-2's pattern. `\s` is Unicode's White_Space here, as in all patterns of a tokenizer.json. */
const kGpt2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const kContractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const kLlama3 = (digits: string) =>
  `${kContractions}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|` +
  '\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';

/** The pattern of GPT-4o and of Mistral's Tekken, in which a word ends where a small letter is followed by a capital. */
const kCased = ({ contractions, digits }: { contractions: string; digits: string }) => {
  const [capitals, small] = [
    '[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]',
    '[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]',
  ];
  const before = '[^\\r\\n\\p{L}\\p{N}]?';
  return (
    `${before}${capitals}*${small}+${contractions}|${before}${capitals}+${small}*${contractions}|` +
    `\\p{N}${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`
  );
};

export const split = (regex: string): Json => ({
  type: 'Split',
  pattern: { Regex: regex },
  behavior: 'Isolated',
  invert: false,
});
export const kBytes: Json = {
  type: 'ByteLevel',
  add_prefix_space: false,
  trim_offsets: false,
  use_regex: false,
};
const sequence = (...pretokenizers: Json[]): Json => ({ type: 'Sequence', pretokenizers });

/** The settings behind a GGUF file's pre-tokenizer name. */
interface GgufPreTokenizer {
  preTokenizer: Json;
  /** Whether a pre-token that is in the vocabulary becomes this token without merges. */
  ignoreMerges: boolean;
  /** The special tokens that are added to texts if the file does not say. */
  addedByDefault: { bos: boolean; eos: boolean; sep: boolean };
  /** Whether the mask token strips the white space before it. */
  maskTakesSpace: boolean;
}

const plain = (...splits: string[]): GgufPreTokenizer => ({
  preTokenizer: sequence(...splits.map(split), kBytes),
  ignoreMerges: false,
  addedByDefault: { bos: false, eos: false, sep: false },
  maskTakesSpace: false,
});
/** A pre-tokenizer whose words become tokens without merges if the vocabulary has them; texts begin with bos. */
const wholeWords = (pattern: string): GgufPreTokenizer => ({
  ...plain(pattern),
  ignoreMerges: true,
  addedByDefault: { bos: true, eos: false, sep: false },
});
const gpt2 = plain(kGpt2);
const singleDigits = plain('\\p{N}', kGpt2);
const llama3 = wholeWords(kLlama3('{1,3}'));
const qwen2 = plain(kLlama3(''));
const dbrx = plain(kLlama3('{1,3}'));
const roberta: GgufPreTokenizer = {
  ...gpt2,
  addedByDefault: { bos: true, eos: true, sep: true },
  maskTakesSpace: true,
};

const kByName = new Map<string, GgufPreTokenizer>(
  Object.entries({
    'gpt-2': gpt2,
    'phi-2': gpt2,
    olmo: gpt2,
    'roberta-bpe': roberta,
    smollm: singleDigits,
    starcoder: singleDigits,
    refact: singleDigits,
    'command-r': singleDigits,
    codeshell: singleDigits,
    'llama-bpe': llama3,
    'llama-v3': llama3,
    llama3: llama3,
    falcon3: llama3,
    tekken: wholeWords(kCased({ contractions: '', digits: '' })),
    dbrx: dbrx,
    'smaug-bpe': dbrx,
    'gpt-4o': plain(kCased({ contractions: `${kContractions}?`, digits: '{1,3}' })),
    qwen2: qwen2,
    'deepseek-r1-qwen': qwen2,
    megrez: qwen2,
    stablelm2: qwen2,
  }),
);

/**
 * The pre-tokenizer with the name in tokenizer.ggml.pre. An unknown name is refused, because another pattern would silently give
 * other ids.
 * @throws UnsupportedError naming those that are known
 */
export function ggufPreTokenizer(name: string): GgufPreTokenizer {
  const known = kByName.get(name);
  if (known) return known;
  throw new UnsupportedError(
    `tokenizer: the GGUF's pre-tokenizer '${name}' is not known (known: ${[...kByName.keys()].join(', ')}); ` +
      "put the model's tokenizer.json beside the file",
  );
}

/** The name in tokenizer.ggml.pre of a tokenizer.json's pre-tokenizer; null: it has none in the table. */
export function ggufNameOfPreTokenizer(
  config: unknown,
  { ignoreMerges }: { ignoreMerges: boolean },
): string | null {
  const wanted = comparable(config);
  for (const [name, known] of kByName) {
    if (known.ignoreMerges === ignoreMerges && comparable(known.preTokenizer) === wanted)
      return name;
  }
  return null;
}

/** The steps of a pre-tokenizer as text, without settings that change no id. */
function comparable(config: unknown): string {
  const { splits, byteLevel } = preTokenizerSteps(config);
  const steps = ((splits as Json | null)?.pretokenizers ?? []) as Json[];
  const patterns = steps.map(({ type, pattern, behavior, invert }) => [
    type,
    pattern,
    behavior,
    invert,
  ]);
  return JSON.stringify([patterns, byteLevel]);
}

/** The steps of a tokenizer.json's pre-tokenizer. */
interface PreTokenizerSteps {
  /** The steps that split the text. */
  splits: unknown;
  /** Whether the resulting words are then converted to the byte alphabet. */
  byteLevel: boolean;
}

/**
 * Separates a pre-tokenizer into splitting and the conversion to the byte alphabet, if that is the last step. Steps that do several things
 * become several: `Digits`, `ByteLevel` with its pattern or a prefix space, `Metaspace` with the split before every mark.
 */
export function preTokenizerSteps(config: unknown): PreTokenizerSteps {
  const steps = flatten(config);
  const byteLevel = steps.at(-1)?.type === 'ByteLevel';
  if (byteLevel) steps.pop();
  return { splits: steps.length === 0 ? null : sequence(...steps), byteLevel };
}

function flatten(node: unknown): Json[] {
  if (node === null || typeof node !== 'object') return [];
  const config = node as Json;
  if (config.type === 'Sequence' && Array.isArray(config.pretokenizers)) {
    return config.pretokenizers.flatMap(flatten);
  }
  if (config.type === 'Digits') return [split(config.individual_digits ? '\\p{N}' : '\\p{N}+')];
  if (config.type === 'Metaspace') return metaspace(config);
  if (config.type === 'ByteLevel') {
    const prefix: Json[] = config.add_prefix_space ? [{ type: 'PrefixSpace' }] : [];
    return [...prefix, ...(config.use_regex === false ? [] : [split(kGpt2)]), kBytes];
  }
  return [config];
}

/** Every mark with the word after it, for Metaspace's mark in a pattern. */
const fromMarks = (mark: string) => `${mark}[^${mark}]*`;

/** Words of marked text, each with the marks before it. */
export const kMarkedWords = '\u2581*[^\u2581]+|\u2581+';

/** Metaspace with the split before every mark, so that unknown characters of two words are not joined, and with its older keys. */
function metaspace(config: Json): Json[] {
  const { replacement = '\u2581', split: cuts = true, add_prefix_space: prefix } = config;
  const scheme = config.prepend_scheme ?? (prefix === false ? 'never' : 'always');
  const mark = String(replacement).replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
  const whole = { ...config, prepend_scheme: scheme };
  return cuts === false ? [whole] : [whole, split(fromMarks(mark))];
}

/** Patterns whose time grows with the length of the text alone: those of the table, and others of published tokenizers. */
const kHarmless = new Set([
  ...[...kByName.values()].flatMap(({ preTokenizer }) => regexesOf(preTokenizer)),
  ...['\\p{N}', '\\p{N}+', '\\p{N}{1,3}', kMarkedWords, fromMarks('\u2581')],
  ...[' {2,}', ' \\z', ' +', '\\s+', '\\s', '\\n+'],
]);

/** The regular expressions of a part of a tokenizer.json that are not known to be harmless, since some take for ever. */
export function unknownRegexes(part: unknown): string[] {
  return [...new Set(regexesOf(part))].filter((regex) => !kHarmless.has(regex));
}

function regexesOf(node: unknown): string[] {
  if (node === null || typeof node !== 'object') return [];
  return Object.entries(node).flatMap(([key, value]) =>
    key === 'Regex' && typeof value === 'string' ? [value] : regexesOf(value),
  );
}
