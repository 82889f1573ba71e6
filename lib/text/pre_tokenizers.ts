/**
 * Pre-tokenizers, in tokenizer.json's vocabulary: the table of those that a GGUF names (tokenizer.ggml.pre), and the
 * repair of two whose JavaScript form differs from the original. Patterns are those of llama.cpp's llama-vocab.cpp and of
 * the models' own tokenizer.json files.
 */
import { UnsupportedError } from '../errors.ts';

type Json = Record<string, unknown>;

/** GPT-2's pattern. `\s` is Unicode White_Space here: the tokenizers package translates it in Split patterns. */
const kGpt2 = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const kContractions = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const kLlama3 = (digits: string) =>
  `${kContractions}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|` +
  '\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';

/** Words end where small letters are followed by capitals: GPT-4o's pattern, and that of Mistral's Tekken. */
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

const split = (regex: string): Json => ({
  type: 'Split',
  pattern: { Regex: regex },
  behavior: 'Isolated',
  invert: false,
});
const kBytes: Json = {
  type: 'ByteLevel',
  add_prefix_space: false,
  trim_offsets: false,
  use_regex: false,
};
const sequence = (...pretokenizers: Json[]): Json => ({ type: 'Sequence', pretokenizers });

/** The settings behind a GGUF file's pre-tokenizer name. */
interface GgufPreTokenizer {
  preTokenizer: Json;
  /** A pre-token that is itself in the vocabulary is taken whole. */
  ignoreMerges: boolean;
  /** Which special tokens are put around a text, and between two, when the file does not say. */
  frame: { bos: boolean; eos: boolean; sep: boolean };
  /** The mask token takes the white space before it. */
  maskTakesSpace: boolean;
}

const plain = (...splits: string[]): GgufPreTokenizer => ({
  preTokenizer: sequence(...splits.map(split), kBytes),
  ignoreMerges: false,
  frame: { bos: false, eos: false, sep: false },
  maskTakesSpace: false,
});
/** Whole words of the vocabulary go before merges, and a text begins with bos. */
const wholeWords = (pattern: string): GgufPreTokenizer => ({
  ...plain(pattern),
  ignoreMerges: true,
  frame: { bos: true, eos: false, sep: false },
});
const gpt2 = plain(kGpt2);
const singleDigits = plain('\\p{N}', kGpt2);
const llama3 = wholeWords(kLlama3('{1,3}'));
const qwen2 = plain(kLlama3(''));
const dbrx = plain(kLlama3('{1,3}'));
const roberta: GgufPreTokenizer = {
  ...gpt2,
  frame: { bos: true, eos: true, sep: true },
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
 * Looks up tokenizer.ggml.pre. An unknown name is refused: another pattern would give other ids without any sign of it.
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

/** A tokenizer.json's pre-tokenizer, taken apart. */
interface PreTokenizerSteps {
  /** The steps that split the text. */
  splits: unknown;
  /** Whether the pieces are then written in the byte alphabet. */
  byteLevel: boolean;
}

/**
 * Takes a pre-tokenizer apart into splitting and the step into the byte alphabet (if that is the last one), and rewrites the
 * two that @huggingface/tokenizers 0.2 hard-codes with JavaScript's own classes, and the one that it leaves whole. The original `Digits` takes any Unicode
 * number (JavaScript's \d: ASCII only); the original `ByteLevel` pattern's \s is White_Space (JavaScript's \s has U+FEFF and
 * lacks U+0085). Both become Split, whose patterns the package translates faithfully.
 */
export function preTokenizerSteps(config: unknown): PreTokenizerSteps {
  const steps = flatten(config);
  const byteLevel = isBareByteLevel(steps.at(-1));
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
  // A prefix space must be there before the pattern runs: only the original form can do that.
  if (config.type === 'ByteLevel' && config.use_regex !== false && !config.add_prefix_space) {
    return [split(kGpt2), kBytes];
  }
  return [config];
}

/** The original cuts before every mark, so that unknown characters of two words are not one; and has an older spelling. */
function metaspace(config: Json): Json[] {
  const { replacement = '\u2581', split: cuts = true, add_prefix_space: prefix } = config;
  const scheme = config.prepend_scheme ?? (prefix === false ? 'never' : 'always');
  const mark = String(replacement).replace(/[\\^$.*+?()[\]{}|]/g, '\\$&');
  const whole = { ...config, prepend_scheme: scheme };
  return cuts === false ? [whole] : [whole, split(`${mark}[^${mark}]*`)];
}

function isBareByteLevel(step: Json | undefined): boolean {
  return step?.type === 'ByteLevel' && step.use_regex === false && !step.add_prefix_space;
}
