// Small vocabularies of every kind, as tokenizer.json and as metadata of a GGUF file.

/** The characters that stand for the 256 bytes in a byte-level vocabulary. */
const kByteCharacters = Array.from({ length: 256 }, (_, byte) => {
  const printable = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  if (printable(byte)) return String.fromCharCode(byte);
  return String.fromCharCode(256 + Array.from({ length: byte }, (_, b) => b).filter((b) => !printable(b)).length);
});

const special = (id, content) => ({ id, content, special: true, normalized: false, single_word: false, lstrip: false, rstrip: false });
const numbered = (tokens) => Object.fromEntries(tokens.map((token, id) => [token, id]));

const kMerges = [['t', 'h'], ['th', 'e'], ['Ġ', 'the'], ['a', 't'], ['c', 'at'], ['Ġ', 'cat']];

function byteLevel() {
  const tokens = [...kByteCharacters, ...kMerges.map((pair) => pair.join(''))];
  return {
    ...{ version: '1.0', added_tokens: [special(tokens.length, '<s>'), special(tokens.length + 1, '</s>')], normalizer: null },
    pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false, use_regex: true },
    ...{ post_processor: null, decoder: { type: 'ByteLevel' } },
    model: { type: 'BPE', unk_token: null, byte_fallback: false, vocab: numbered(tokens), merges: kMerges },
  };
}

function splitBpe() {
  const json = byteLevel();
  json.pre_tokenizer = {
    type: 'Sequence',
    pretokenizers: [
      { type: 'Split', pattern: { Regex: "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|\\s+" }, behavior: 'Isolated', invert: false },
      { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false },
    ],
  };
  json.normalizer = { type: 'Sequence', normalizers: [{ type: 'NFC' }, { type: 'Replace', pattern: { String: '  ' }, content: ' ' }] };
  return json;
}

const kPieces = ['<unk>', '<s>', '</s>', '▁', '▁the', '▁cat', '▁sat', ...'abcdefghijklmnopqrstuvwxyz.'];

function sentencePieceBpe() {
  const bytes = Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`);
  return {
    ...{ version: '1.0', added_tokens: [special(0, '<unk>'), special(1, '<s>'), special(2, '</s>')] },
    normalizer: { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: '▁' }, { type: 'Replace', pattern: { String: ' ' }, content: '▁' }] },
    pre_tokenizer: null,
    post_processor: {
      type: 'TemplateProcessing',
      single: [{ SpecialToken: { id: '<s>', type_id: 0 } }, { Sequence: { id: 'A', type_id: 0 } }],
      pair: [{ Sequence: { id: 'A', type_id: 0 } }, { Sequence: { id: 'B', type_id: 1 } }],
      special_tokens: { '<s>': { id: '<s>', ids: [1], tokens: ['<s>'] } },
    },
    decoder: { type: 'Sequence', decoders: [{ type: 'Replace', pattern: { String: '▁' }, content: ' ' }, { type: 'ByteFallback' }, { type: 'Fuse' }, { type: 'Strip', content: ' ', start: 1, stop: 0 }] },
    model: { type: 'BPE', unk_token: '<unk>', fuse_unk: true, byte_fallback: true, vocab: numbered([...kPieces, ...bytes, 'th', 'the']), merges: ['t h', 'th e'] },
  };
}

function unigram() {
  return {
    ...{ version: '1.0', added_tokens: [special(0, '<unk>'), special(1, '<s>'), special(2, '</s>')], normalizer: null },
    pre_tokenizer: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: true },
    post_processor: null,
    decoder: { type: 'Metaspace', replacement: '▁', prepend_scheme: 'always', split: true },
    model: { type: 'Unigram', unk_id: 0, vocab: kPieces.map((piece, i) => [piece, i < 3 ? 0 : -i]), byte_fallback: false },
  };
}

function wordPiece() {
  const tokens = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'the', 'cat', 'sat', '##s', '.', ...'abcdef'];
  return {
    ...{ version: '1.0', added_tokens: ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'].map((token, id) => special(id, token)) },
    normalizer: { type: 'BertNormalizer', clean_text: true, handle_chinese_chars: true, strip_accents: null, lowercase: true },
    pre_tokenizer: { type: 'BertPreTokenizer' },
    post_processor: { type: 'BertProcessing', cls: ['[CLS]', 2], sep: ['[SEP]', 3] },
    decoder: { type: 'WordPiece', prefix: '##', cleanup: true },
    model: { type: 'WordPiece', unk_token: '[UNK]', continuing_subword_prefix: '##', max_input_chars_per_word: 100, vocab: numbered(tokens) },
  };
}

/** A tokenizer.json and a tokenizer_config.json of each kind. */
export const kTokenizers = [
  ...[byteLevel, splitBpe, sentencePieceBpe, unigram].map((make) => ({
    json: make(),
    config: {
      ...{ bos_token: '<s>', eos_token: { content: '</s>', special: true }, pad_token: '</s>', clean_up_tokenization_spaces: false },
      chat_template: "{% for m in messages %}{{ bos_token + m['role'] + ': ' + m['content'] }}{% endfor %}",
    },
  })),
  { json: wordPiece(), config: { unk_token: '[UNK]', cls_token: '[CLS]', sep_token: '[SEP]', pad_token: '[PAD]', mask_token: '[MASK]' } },
];

/** The metadata of a vocabulary of so many tokens in a GGUF file. @param kind gpt2 or llama */
export function vocabulary(kind, size) {
  const own = kind === 'gpt2' ? [...kByteCharacters, ...kMerges.map((pair) => pair.join(''))] : kPieces;
  const tokens = Array.from({ length: size }, (_, id) => own[id] ?? `<extra_${id}>`);
  const list = (type, items) => ({ type: 9, value: { type, items } });
  const types = tokens.map((token, id) => (kind === 'llama' && id < 3 ? (id === 0 ? 2 : 3) : token.startsWith('<extra') ? 4 : 1));
  return [
    { key: 'tokenizer.ggml.model', type: 8, value: kind },
    ...(kind === 'gpt2' ? [{ key: 'tokenizer.ggml.pre', type: 8, value: 'gpt-2' }] : []),
    { key: 'tokenizer.ggml.tokens', ...list(8, tokens) },
    { key: 'tokenizer.ggml.token_type', ...list(5, types) },
    kind === 'gpt2'
      ? { key: 'tokenizer.ggml.merges', ...list(8, kMerges.map((pair) => pair.join(' '))) }
      : { key: 'tokenizer.ggml.scores', ...list(6, tokens.map((_, id) => -id)) },
    { key: 'tokenizer.ggml.bos_token_id', type: 4, value: 1 },
    { key: 'tokenizer.ggml.eos_token_id', type: 4, value: 2 },
    { key: 'tokenizer.chat_template', type: 8, value: '{% for m in messages %}{{ m.content }}{% endfor %}' },
  ];
}
