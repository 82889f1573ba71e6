/**
 * Tokenizers that have one option of tokenizer.json each, over vocabularies of pairs of characters, whose ids show where a text was split.
 * tools/fixtures/tokenizer_steps.mjs writes what Hugging Face's tokenizers (Rust) gives for them.
 */

type Json = Record<string, unknown>;

/** The characters of the vocabularies. Others that texts have are unknown. */
const kCharacters = [...' abdfsikst-.,12▁_éΣσςſĠ'].filter((c, i, all) => all.indexOf(c) === i);
const kPairs = kCharacters.flatMap((a) => kCharacters.map((b) => a + b));
const numbered = (tokens: readonly string[]) =>
  Object.fromEntries(tokens.map((token, id) => [token, id]));

/** BPE of the characters and all pairs of them. */
export function pairBpe(over: Json = {}, more: readonly string[] = []): Json {
  const tokens = ['?', ...kCharacters, ...kPairs, ...more];
  const merges = kCharacters.flatMap((a) => kCharacters.map((b) => [a, b]));
  return { type: 'BPE', unk_token: '?', fuse_unk: false, vocab: numbered(tokens), merges, ...over };
}

function unigram(over: Json = {}, more: readonly (readonly [string, number])[] = []): Json {
  const vocab = [
    ['<unk>', 0],
    ...kCharacters.map((char) => [char, -5]),
    ...kPairs.map((pair, i) => [pair, -8 - (i % 7)]),
    ...more,
  ];
  return { type: 'Unigram', unk_id: 0, vocab, ...over };
}

function wordPiece(over: Json = {}): Json {
  const starts = ['[UNK]', ...kCharacters, 'ab', 'abs', 'bdf'];
  const vocab = numbered([...starts, ...starts.slice(1).map((token) => `##${token}`)]);
  const fixed = {
    unk_token: '[UNK]',
    continuing_subword_prefix: '##',
    max_input_chars_per_word: 6,
  };
  return { type: 'WordPiece', ...fixed, vocab, ...over };
}

const wordLevel = (over: Json = {}): Json => ({
  ...{ type: 'WordLevel', vocab: numbered(['?', 'a', 'ab', '-', '..', '1', 'ab-', '[U]']) },
  ...{ unk_token: '?', ...over },
});

const bytes = (skipped: readonly number[] = []) =>
  Array.from(
    { length: 256 },
    (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`,
  ).filter((_, byte) => !skipped.includes(byte));

interface Parts {
  normalizer?: unknown;
  pre_tokenizer?: unknown;
  decoder?: unknown;
  post_processor?: unknown;
  model?: Json;
  added_tokens?: readonly Json[];
}

const whole = (parts: Parts): Json => ({
  ...{ version: '1.0', truncation: null, padding: null, added_tokens: [], normalizer: null },
  ...{ pre_tokenizer: null, post_processor: null, decoder: null, model: pairBpe(), ...parts },
});

const kBehaviors = ['Removed', 'Isolated', 'MergedWithPrevious', 'MergedWithNext', 'Contiguous'];
const splitAt = (pattern: Json, behavior: string, invert = false): Json => ({
  ...{ type: 'Split', pattern, behavior, invert },
});
const regex = (Regex: string, behavior = 'Isolated', invert = false) =>
  splitAt({ Regex }, behavior, invert);
const sequence = (...pretokenizers: Json[]): Json => ({ type: 'Sequence', pretokenizers });
const normalizers = (...list: Json[]): Json => ({ type: 'Sequence', normalizers: list });
const marks = (over: Json): Json => ({
  ...{ type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: true, ...over },
});
const byteLevel = (over: Json): Json => ({
  ...{ type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true, ...over },
});
const bert = (over: Json): Json => ({
  ...{ type: 'BertNormalizer', clean_text: false, handle_chinese_chars: false },
  ...{ strip_accents: null, lowercase: false, ...over },
});
const token = (content: string, over: Json = {}): Json => ({
  ...{
    content,
    single_word: false,
    lstrip: false,
    rstrip: false,
    normalized: false,
    special: true,
  },
  ...over,
});

/** Added tokens with their ids in the vocabulary, or those that follow it. */
function added(model: Json, ...tokens: Json[]): Parts {
  const ids = model.vocab as Record<string, number>;
  let next = Object.keys(ids).length;
  return {
    model,
    added_tokens: tokens.map((one) => ({ id: ids[one.content as string] ?? next++, ...one })),
  };
}

const splits = (): Record<string, Parts> => ({
  ...Object.fromEntries(
    kBehaviors.flatMap((behavior): [string, Parts][] =>
      [false, true].flatMap((invert): [string, Parts][] => [
        [
          `Split at "-" ${behavior} ${invert}`,
          { pre_tokenizer: splitAt({ String: '-' }, behavior, invert) },
        ],
        [
          `Split at [ab]+ ${behavior} ${invert}`,
          { pre_tokenizer: regex('[ab]+', behavior, invert) },
        ],
        [`Split at -* ${behavior} ${invert}`, { pre_tokenizer: regex('-*', behavior, invert) }],
        [
          `Split at () ${behavior} ${invert}`,
          { pre_tokenizer: regex('(a)|(-)', behavior, invert) },
        ],
      ]),
    ),
  ),
  ...Object.fromEntries(
    kBehaviors.map((behavior): [string, Parts] => [
      `Punctuation ${behavior}`,
      { pre_tokenizer: { type: 'Punctuation', behavior } },
    ]),
  ),
  'Split at an empty text': { pre_tokenizer: splitAt({ String: '' }, 'Isolated') },
  'Split at possessive': { pre_tokenizer: regex('\\s++$|a++a|\\s+(?!\\S)|\\s') },
  'Split at an atomic group': { pre_tokenizer: regex('(?>a|ab)-|b+') },
  'Split at an optional possessive': {
    pre_tokenizer: regex('[^\\s\\p{L}\\p{N}]?+\\p{L}+|\\p{N}{1,2}+'),
  },
  'Split where case is ignored': { pre_tokenizer: regex('(?i:-s|-t|k)|\\s+') },
  'Split at a repeated interval': { pre_tokenizer: regex('(?:\\p{N}{1,2})+|-{2}') },
  'Split at word characters': { pre_tokenizer: regex('\\w+|[^\\w\\s]+') },
  'Digits one by one': { pre_tokenizer: { type: 'Digits', individual_digits: true } },
  'Digits together': { pre_tokenizer: { type: 'Digits', individual_digits: false } },
  Whitespace: { pre_tokenizer: { type: 'Whitespace' } },
  WhitespaceSplit: { pre_tokenizer: { type: 'WhitespaceSplit' } },
  BertPreTokenizer: { pre_tokenizer: { type: 'BertPreTokenizer' } },
  CharDelimiterSplit: { pre_tokenizer: { type: 'CharDelimiterSplit', delimiter: '-' } },
  FixedLength: { pre_tokenizer: { type: 'FixedLength', length: 3 } },
  'Splits in a row': {
    pre_tokenizer: sequence(regex('-', 'MergedWithNext'), {
      type: 'Digits',
      individual_digits: true,
    }),
  },
});

const metaspaces = (): Record<string, Parts> => ({
  ...Object.fromEntries(
    ['always', 'first', 'never'].flatMap((prepend_scheme): [string, Parts][] =>
      [true, false].flatMap((split): [string, Parts][] => [
        [
          `Metaspace ${prepend_scheme} ${split}`,
          { pre_tokenizer: marks({ prepend_scheme, split }) },
        ],
        [
          `Metaspace ${prepend_scheme} ${split} with tokens`,
          {
            ...added(pairBpe(), token('<s>'), token('-b', { normalized: true, special: false })),
            pre_tokenizer: marks({ prepend_scheme, split }),
          },
        ],
      ]),
    ),
  ),
  'Metaspace first behind a split': {
    pre_tokenizer: sequence({ type: 'WhitespaceSplit' }, marks({ prepend_scheme: 'first' })),
  },
  'Metaspace first of stripped text': {
    normalizer: { type: 'Strip', strip_left: true, strip_right: false },
    pre_tokenizer: marks({ prepend_scheme: 'first' }),
  },
  'Metaspace with another mark': { pre_tokenizer: marks({ replacement: '_' }) },
  'Metaspace with another str_rep': { pre_tokenizer: marks({ str_rep: '_' }) },
});

const normalizations = (): Record<string, Parts> => ({
  Lowercase: { normalizer: { type: 'Lowercase' } },
  'BertNormalizer lowercase': { normalizer: bert({ lowercase: true }) },
  'BertNormalizer lowercase with accents': {
    normalizer: bert({ lowercase: true, strip_accents: false }),
  },
  'BertNormalizer strip_accents': { normalizer: bert({ strip_accents: true }) },
  'BertNormalizer clean_text': { normalizer: bert({ clean_text: true }) },
  'BertNormalizer handle_chinese_chars': { normalizer: bert({ handle_chinese_chars: true }) },
  'Strip left': { normalizer: { type: 'Strip', strip_left: true, strip_right: false } },
  'Strip right': { normalizer: { type: 'Strip', strip_left: false, strip_right: true } },
  'Strip both': { normalizer: { type: 'Strip', strip_left: true, strip_right: true } },
  StripAccents: { normalizer: normalizers({ type: 'NFD' }, { type: 'StripAccents' }) },
  'Strip and Prepend': {
    normalizer: normalizers(
      { type: 'Strip', strip_left: true, strip_right: true },
      { type: 'Prepend', prepend: '▁' },
    ),
  },
  'Replace by dollars': {
    normalizer: { type: 'Replace', pattern: { String: '-' }, content: '$$.$&' },
  },
  'Replace at empty matches': {
    normalizer: { type: 'Replace', pattern: { Regex: 'a*' }, content: '-' },
  },
  'Replace a text of operators': {
    normalizer: { type: 'Replace', pattern: { String: '.' }, content: '1' },
  },
  'Replace at possessive': {
    normalizer: { type: 'Replace', pattern: { Regex: 'a++b?' }, content: '1' },
  },
  Nmt: { normalizer: { type: 'Nmt' } },
  NFKC: { normalizer: { type: 'NFKC' } },
  NFC: { normalizer: { type: 'NFC' } },
  NFKD: { normalizer: { type: 'NFKD' } },
  'ByteLevel normalizer': { normalizer: { type: 'ByteLevel' } },
});

/** The byte alphabet as far as texts here need it, with pairs. */
function byteAlphabet(): Json {
  const alphabet = [...'abdfsikt-.,12_ĠéÃ©Î£±âĸģĉĊ'];
  const pairs = alphabet.flatMap((a) => alphabet.map((b) => a + b));
  return {
    ...{ type: 'BPE', vocab: numbered([...new Set([...alphabet, ...pairs])]) },
    merges: alphabet.flatMap((a) => alphabet.map((b) => [a, b])),
  };
}

const byteLevels = (): Record<string, Parts> => ({
  ...Object.fromEntries(
    [false, true].flatMap((add_prefix_space): [string, Parts][] =>
      [false, true].map((use_regex): [string, Parts] => [
        `ByteLevel prefix ${add_prefix_space} pattern ${use_regex}`,
        { model: byteAlphabet(), pre_tokenizer: byteLevel({ add_prefix_space, use_regex }) },
      ]),
    ),
  ),
  'ByteLevel with a prefix behind a split': {
    model: byteAlphabet(),
    pre_tokenizer: sequence(regex('-', 'MergedWithNext'), byteLevel({ add_prefix_space: true })),
  },
  'ByteLevel before a split': {
    model: byteAlphabet(),
    pre_tokenizer: sequence(byteLevel({}), regex('a', 'MergedWithPrevious')),
  },
  'ByteLevel with an unknown token': {
    model: { ...byteAlphabet(), unk_token: '-', fuse_unk: true },
    pre_tokenizer: byteLevel({}),
  },
});

const models = (): Record<string, Parts> => {
  const words = { pre_tokenizer: { type: 'WhitespaceSplit' } };
  return {
    'BPE fuse_unk over words': { ...words, model: pairBpe({ fuse_unk: true }) },
    'BPE fuse_unk of one word': { model: pairBpe({ fuse_unk: true, unk_token: '-' }) },
    'BPE without unknown token': { ...words, model: pairBpe({ unk_token: null }) },
    'BPE with bytes': { ...words, model: pairBpe({ byte_fallback: true }, bytes()) },
    'BPE with some bytes': {
      ...words,
      model: pairBpe({ byte_fallback: true, fuse_unk: true }, bytes([0xe2])),
    },
    'BPE with some bytes and no unknown token': {
      ...words,
      model: pairBpe({ byte_fallback: true, unk_token: null }, bytes([0xe2])),
    },
    'BPE ignore_merges': {
      ...words,
      model: pairBpe({ ignore_merges: true }, ['abs', 'abdf', '-.-']),
    },
    'BPE dropout 0': { ...words, model: pairBpe({ dropout: 0 }) },
    'BPE empty prefix and suffix': {
      ...words,
      model: pairBpe({ continuing_subword_prefix: '', end_of_word_suffix: '' }),
    },
    'BPE end_of_word_suffix': {
      ...words,
      model: {
        ...{ type: 'BPE', unk_token: '?', end_of_word_suffix: '</w>' },
        vocab: numbered(['?', 'a', 'b', '-', 'a</w>', 'b</w>', 'ab</w>', 'ab', 'aba</w>']),
        merges: [
          ['a', 'b</w>'],
          ['a', 'b'],
          ['ab', 'a</w>'],
        ],
      },
    },
    'BPE without a type': { model: { ...pairBpe(), type: undefined } },
    WordPiece: { ...words, model: wordPiece() },
    'WordPiece with another prefix': {
      ...words,
      model: wordPiece({ continuing_subword_prefix: '' }),
    },
    'WordPiece fuse_unk': { ...words, model: wordPiece({ fuse_unk: true }) },
    WordLevel: { model: wordLevel(), pre_tokenizer: regex('-|\\.\\.|\\s') },
    'WordLevel with another unknown token': {
      model: wordLevel({ unk_token: '[U]' }),
      pre_tokenizer: { type: 'Punctuation', behavior: 'MergedWithPrevious' },
    },
    Unigram: { ...words, model: unigram() },
    'Unigram of one word': { model: unigram() },
    'Unigram with bytes': {
      ...words,
      model: unigram(
        { byte_fallback: true },
        bytes().map((b) => [b, 0]),
      ),
    },
    'Unigram with some bytes': {
      ...words,
      model: unigram(
        { byte_fallback: true },
        bytes([0xe2]).map((b) => [b, 0]),
      ),
    },
    'Unigram with its unknown token in the text': {
      model: unigram({}, [
        ['<', -3],
        ['>', -3],
        ['u', -3],
        ['n', -3],
      ]),
    },
  };
};

const addedTokens = (): Record<string, Parts> => {
  const model = pairBpe();
  const one = (over: Json) => added(model, token('abd', over));
  return {
    'added token': one({}),
    'added token single_word': one({ single_word: true }),
    'added token lstrip': one({ lstrip: true }),
    'added token rstrip': one({ rstrip: true }),
    'added token lstrip rstrip': one({ lstrip: true, rstrip: true, single_word: true }),
    'added token normalized': {
      ...one({ normalized: true, special: false }),
      normalizer: { type: 'Replace', pattern: { String: 'd' }, content: 'a' },
    },
    'added token not normalized': {
      ...one({ normalized: false }),
      normalizer: { type: 'Replace', pattern: { String: 'd' }, content: 'a' },
    },
    'added tokens that overlap': added(
      model,
      token('abd'),
      token('abd-'),
      token('bd-', { special: false }),
    ),
    'added tokens of two passes': added(model, token('ab-', { normalized: true }), token('b-')),
    'added tokens of white space': added(
      model,
      token('ab', { rstrip: true, lstrip: true }),
      token('  '),
      token('- ', { lstrip: true }),
    ),
    'added tokens inside of the vocabulary and behind it': added(
      model,
      token(' '),
      token('<x>'),
      token('d'),
    ),
  };
};

/** The contents of tokenizer.json by what is special in it. */
export const kStepTokenizers: Readonly<Record<string, Json>> = Object.fromEntries(
  [splits, metaspaces, normalizations, byteLevels, models, addedTokens]
    .flatMap((make) => Object.entries(make()))
    .map(([name, parts]) => [name, whole(parts)]),
);
