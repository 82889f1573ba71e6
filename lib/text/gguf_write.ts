/**
 * The vocabulary of a tokenizer.json as the metadata of a GGUF file: byte-level BPE whose pre-tokenizer llama.cpp has a name for, and
 * SentencePiece BPE with bytes. Everything else is refused by name, never guessed; the caller compares ids before it uses the result.
 */
import { UnsupportedError } from '../errors.ts';
import type { GgufTypedValue } from '../io/gguf_writer.ts';
import { TokenType } from './gguf_metadata.ts';
import { ggufNameOfPreTokenizer } from './pre_tokenizers.ts';
import { type AddedToken, withType } from './tokenizer_checks.ts';
import type { TokenizerParts } from './tokenizer_parts.ts';

type Json = Record<string, unknown>;
type Entries = [string, GgufTypedValue][];

const kAdvice = 'give the GGUF file of the model as the base, whose vocabulary is kept';

/**
 * The metadata tokenizer.*.
 * @param rows of the model's embedding, at least as many as tokens; the rest become unused tokens
 * @param ids of special tokens by their names in tokenizer.ggml.*_token_id
 * @param adds whether the tokenizer puts these around a text
 * @throws UnsupportedError for a kind that is not written, or more tokens than rows
 */
export function vocabularyMetadata(
  parts: TokenizerParts,
  options: {
    rows: number;
    ids: Readonly<Record<string, number | null>>;
    adds: { bos: boolean; eos: boolean };
  },
): Entries {
  const { tokenizerJson, tokenizerConfig } = parts;
  const model = withType(tokenizerJson.model as Json);
  if (model.type !== 'BPE' || parts.merges !== undefined) throw unknownKind(String(model.type));
  const tokens = tokensOf(model, (tokenizerJson.added_tokens ?? []) as AddedToken[], options.rows);
  const kind =
    model.byte_fallback === true
      ? sentencePiece(tokenizerJson, tokens)
      : byteLevel(tokenizerJson, model);
  return [
    ...kind,
    ['tokenizer.ggml.tokens', { type: 'ARRAY STRING', value: tokens.map(({ text }) => text) }],
    ['tokenizer.ggml.token_type', { type: 'ARRAY INT32', value: tokens.map(({ type }) => type) }],
    ...Object.entries(options.ids).flatMap(
      ([name, id]): Entries =>
        id === null ? [] : [[`tokenizer.ggml.${name}_token_id`, { type: 'UINT32', value: id }]],
    ),
    ['tokenizer.ggml.add_bos_token', { type: 'BOOL', value: options.adds.bos }],
    ['tokenizer.ggml.add_eos_token', { type: 'BOOL', value: options.adds.eos }],
    ...chatTemplates(tokenizerConfig.chat_template),
  ];
}

function unknownKind(kind: string): UnsupportedError {
  return new UnsupportedError(
    `gguf: a tokenizer of kind ${kind} is not written from a tokenizer.json; ${kAdvice}`,
  );
}

interface Token {
  readonly text: string;
  readonly type: number;
}

function tokensOf(model: Json, added: readonly AddedToken[], rows: number): Token[] {
  const vocab = Object.entries(model.vocab as Record<string, number>);
  const byId = new Map<number, Token>(
    vocab.map(([text, id]) => [id, { text, type: typeOf(text, model) }]),
  );
  for (const { id, content, special } of added) {
    const isUnknown = typeOf(content, model) === TokenType.unknown;
    const control = isUnknown ? TokenType.unknown : TokenType.control;
    byId.set(id, { text: content, type: special ? control : TokenType.userDefined });
  }
  const most = [...byId.keys()].reduce((most, id) => Math.max(most, id), -1);
  if (most >= rows) {
    throw new UnsupportedError(
      `gguf: the tokenizer has the id ${most}, and the model's embedding ${rows} rows: its vocabulary was resized for another ` +
        'model; use the tokenizer of this one',
    );
  }
  return Array.from(
    { length: rows },
    (_, id) => byId.get(id) ?? { text: `[PAD${id}]`, type: TokenType.unused },
  );
}

function typeOf(text: string, { byte_fallback: bytes, unk_token: unknown }: Json): number {
  if (bytes !== true) return TokenType.normal;
  if (text === unknown) return TokenType.unknown;
  return /^<0x[0-9A-F]{2}>$/.test(text) ? TokenType.byte : TokenType.normal;
}

const mergesOf = ({ merges }: Json): readonly (readonly [string, string])[] =>
  (merges as readonly (string | readonly [string, string])[]).map((merge) =>
    typeof merge === 'string' ? (merge.split(' ') as [string, string]) : merge,
  );

/** Byte-level BPE, with the name of its pre-tokenizer. */
function byteLevel(tokenizerJson: Json, model: Json): Entries {
  const { normalizer, pre_tokenizer: preTokenizer } = tokenizerJson;
  const isPlain = normalizer === null || normalizer === undefined || isNfc(normalizer);
  const pre = isPlain
    ? ggufNameOfPreTokenizer(preTokenizer, { ignoreMerges: model.ignore_merges === true })
    : null;
  if (pre === null)
    throw unknownKind('BPE with a normalizer or a pre-tokenizer that llama.cpp has no name for');
  const merges = mergesOf(model).map(([a, b]) => `${a} ${b}`);
  return [
    ['tokenizer.ggml.model', { type: 'STRING', value: 'gpt2' }],
    ['tokenizer.ggml.pre', { type: 'STRING', value: pre }],
    ['tokenizer.ggml.merges', { type: 'ARRAY STRING', value: merges }],
  ];
}

/** Qwen's normalizer, which llama.cpp leaves out: texts are in this form as a rule. */
export const isNfc = (normalizer: unknown): boolean =>
  (normalizer as Json | null | undefined)?.type === 'NFC';

/** SentencePiece BPE: llama.cpp merges the pair whose token has the highest score, so the scores are the ranks of the merges. */
function sentencePiece(tokenizerJson: Json, tokens: readonly Token[]): Entries {
  const model = tokenizerJson.model as Json;
  const ranks = new Map<string, number>();
  for (const [rank, [a, b]] of mergesOf(model).entries()) {
    if (!ranks.has(a + b)) ranks.set(a + b, rank);
  }
  const scores = tokens.map(({ text, type }) =>
    type === TokenType.normal ? -(ranks.get(text) ?? ranks.size) : 0,
  );
  return [
    ['tokenizer.ggml.model', { type: 'STRING', value: 'llama' }],
    ['tokenizer.ggml.pre', { type: 'STRING', value: 'default' }],
    ['tokenizer.ggml.scores', { type: 'ARRAY FLOAT32', value: scores }],
    ['tokenizer.ggml.add_space_prefix', { type: 'BOOL', value: addsSpace(tokenizerJson) }],
  ];
}

/** Whether a space is put before a text: by a normalizer, or by Metaspace unless it says never. */
function addsSpace({ normalizer, pre_tokenizer: preTokenizer }: Json): boolean {
  const [normal, pre] = [JSON.stringify(normalizer ?? null), JSON.stringify(preTokenizer ?? null)];
  return (
    normal.includes('"Prepend"') ||
    (pre.includes('"Metaspace"') &&
      !pre.includes('"never"') &&
      !pre.includes('"add_prefix_space":false'))
  );
}

function chatTemplates(template: unknown): Entries {
  const named = typeof template === 'string' ? [{ name: 'default', template }] : (template ?? []);
  const list = named as readonly { name: string; template: string }[];
  return list.map(({ name, template: source }) => [
    `tokenizer.chat_template${name === 'default' ? '' : `.${name}`}`,
    { type: 'STRING', value: source },
  ]);
}
