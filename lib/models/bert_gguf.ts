/**
 * GGUF files of the bert architecture. llama.cpp's converter writes BERT, DistilBERT and RoBERTa under this one name and does
 * not say which; the kind of the vocabulary and the token types do. It drops the pooler, names a head's two layers cls and
 * cls.output, and cuts off the rows of RoBERTa's position table that no token reads. Names: gguf-py/gguf/tensor_mapping.py.
 */
import { FormatError, UnsupportedError } from '../errors.ts';
import type { GgufFile } from '../io/index.ts';
import { shown } from '../shown.ts';
import { type BlockPaths, kBertBlock } from './encoder.ts';
import { type GgufKeys, type GgufNames, type GgufTable, tokenIds, vocabSize } from './gguf.ts';

/** model_types that the architecture stands for. */
export type BertLike = 'bert' | 'distilbert' | 'roberta';

/**
 * Determines the model_type of a file. RoBERTa has a byte-level BPE; of those with WordPiece, DistilBERT has no token types and BERT
 * two or more.
 * @throws UnsupportedError for a file of which neither is true
 */
export function bertLikeOf({ metadata, tensors, path }: GgufFile): BertLike {
  const vocabulary = metadata.get('tokenizer.ggml.model') ?? 'none';
  const types = tensors.get('token_types.weight')?.shape[0];
  if (vocabulary === 'gpt2' && types !== undefined) return 'roberta';
  if (vocabulary === 'bert' && types === undefined) return 'distilbert';
  if (vocabulary === 'bert' && (types as number) > 1) return 'bert';
  throw new UnsupportedError(
    `${path}: which model the architecture bert stands for is not clear: tokenizer.ggml.model is ` +
      `${shown(vocabulary)} and token_types.weight ${types === undefined ? 'missing' : `of ${types} row(s)`}; known: ` +
      'bert: "bert" with 2 rows or more, distilbert: "bert" without, roberta: "gpt2" with',
  );
}

const kEmbeddings = {
  'token_embd.weight': 'embeddings.word_embeddings.weight',
  'position_embd.weight': 'embeddings.position_embeddings.weight',
  'token_types.weight': 'embeddings.token_type_embeddings.weight',
  'token_embd_norm.weight': 'embeddings.LayerNorm.weight',
  'token_embd_norm.bias': 'embeddings.LayerNorm.bias',
};

/** The two layers of a head. */
const head = (inner: string, outer: string): Record<string, string> =>
  Object.fromEntries(
    ['weight', 'bias'].flatMap((kind) => [
      [`cls.${kind}`, `${inner}.${kind}`],
      [`cls.output.${kind}`, `${outer}.${kind}`],
    ]),
  );

const kBertNames: GgufNames = { top: kEmbeddings, layers: 'encoder.layer', block: kBertBlock };

/** Paths of the modules of DistilBERT's block. */
export const kDistilBertBlock: BlockPaths = {
  attn_q: 'attention.q_lin',
  attn_k: 'attention.k_lin',
  attn_v: 'attention.v_lin',
  attn_output: 'attention.out_lin',
  attn_output_norm: 'sa_layer_norm',
  ffn_up: 'ffn.lin1',
  ffn_down: 'ffn.lin2',
  layer_output_norm: 'output_layer_norm',
};

const kDistilBertNames: GgufNames = {
  top: { ...kEmbeddings, ...head('pre_classifier', 'classifier') },
  layers: 'transformer.layer',
  block: kDistilBertBlock,
};

const kCommon = {
  architecture: 'bert',
  keys: [
    'attention.layer_norm_epsilon',
    'attention.causal',
    'pooling_type', // of embeddings, which are not computed here
    'classifier.output_labels',
  ],
} satisfies Partial<GgufTable>;

/** Rows of a table of embeddings. */
function rowsOf({ file }: GgufKeys, name: string): number {
  const rows = file.tensors.get(name)?.shape[0];
  if (rows !== undefined) return rows;
  const { path } = file;
  throw new FormatError(`${path}: ${name} is missing`, { path });
}

/** Keys of config.json that bert, distilbert and roberta name alike. */
function commonJson(keys: GgufKeys): Record<string, unknown> {
  const { path } = keys.file;
  if (keys.flag('attention.causal') === true) {
    throw new UnsupportedError(
      `${path}: bert.attention.causal true is not supported; choose a model that is an encoder`,
    );
  }
  const labels = keys.texts('classifier.output_labels');
  return {
    vocab_size: vocabSize(keys.file),
    max_position_embeddings: rowsOf(keys, 'position_embd.weight'),
    ...(labels && {
      id2label: { ...labels },
      label2id: Object.fromEntries(labels.map((label, id) => [label, id])),
    }),
  };
}

function bertJson(keys: GgufKeys): Record<string, unknown> {
  return {
    ...commonJson(keys),
    hidden_size: keys.required('embedding_length'),
    intermediate_size: keys.required('feed_forward_length'),
    num_hidden_layers: keys.required('block_count'),
    num_attention_heads: keys.required('attention.head_count'),
    layer_norm_eps: keys.required('attention.layer_norm_epsilon'),
    type_vocab_size: rowsOf(keys, 'token_types.weight'),
    hidden_act: 'gelu',
  };
}

const paddingOf = (keys: GgufKeys): { pad_token_id?: number } => {
  const { pad_token_id } = tokenIds(keys.file);
  return pad_token_id === undefined ? {} : { pad_token_id };
};

/** The table of BERT. It ignores a head in the file, which was trained on a pooler that the file lacks. */
export const bertGguf: GgufTable = {
  ...kCommon,
  names: kBertNames,
  ignoredTensors: Object.keys(head('', '')),
  configJson: (keys) => ({ model_type: 'bert', ...bertJson(keys), ...paddingOf(keys) }),
};

export const robertaGguf: GgufTable = {
  ...kCommon,
  names: {
    ...kBertNames,
    top: { ...kEmbeddings, ...head('classifier.dense', 'classifier.out_proj') },
  },
  configJson(keys) {
    const ids = tokenIds(keys.file);
    if (ids.pad_token_id === undefined) {
      const { path } = keys.file;
      throw new FormatError(
        `${path}: tokenizer.ggml.padding_token_id is missing, and positions begin behind it`,
        { path },
      );
    }
    const json = bertJson(keys);
    checkPadding(ids.pad_token_id, keys);
    const positions = json.max_position_embeddings as number;
    return {
      model_type: 'roberta',
      ...json,
      ...ids,
      max_position_embeddings: missingRows(ids) + positions,
    };
  },
  stored: (name, json) =>
    name === kEmbeddings['position_embd.weight'] ? { leadingRows: missingRows(json) } : {},
};

/** Checks the id from which the rows of the position table are counted. @throws FormatError for one outside the vocabulary */
function checkPadding(id: number, { file }: GgufKeys): void {
  const vocabulary = vocabSize(file);
  if (Number.isInteger(id) && id >= 0 && id < vocabulary) return;
  throw new FormatError(
    `${file.path}: tokenizer.ggml.padding_token_id must be 0 to ${vocabulary - 1}, an id of the vocabulary, got ${id}`,
    { path: file.path },
  );
}

/** Number of rows of the position table up to the padding id's, which the file lacks. */
const missingRows = ({ pad_token_id }: Readonly<Record<string, unknown>>): number =>
  (pad_token_id as number) + 1;

export const distilBertGguf: GgufTable = {
  ...kCommon,
  names: kDistilBertNames,
  configJson(keys) {
    keys.expect('attention.layer_norm_epsilon', Math.fround(1e-12), "DistilBERT's");
    return {
      model_type: 'distilbert',
      ...commonJson(keys),
      dim: keys.required('embedding_length'),
      hidden_dim: keys.required('feed_forward_length'),
      n_layers: keys.required('block_count'),
      n_heads: keys.required('attention.head_count'),
      activation: 'gelu',
      ...paddingOf(keys),
    };
  },
};
