/** A WordPiece tokenizer.json as llama.cpp's converter writes it into a GGUF file, in its current and its former version. */
import type { GgufValue } from './write_gguf.ts';

type Json = Record<string, unknown>;

/**
 * Metadata with the prefix tokenizer.ggml. Words begin with U+2581, continuations lose their ##, and control tokens are unchanged.
 * `former` is the first version of the converter, which recognised special tokens by their brackets and wrote no id of [CLS].
 */
export function wordPieceFields(
  tokenizerJson: Json,
  { former = false }: { former?: boolean } = {},
): Record<string, GgufValue> {
  const { model, added_tokens: added } = tokenizerJson as {
    model: { vocab: Record<string, number> };
    added_tokens: { content: string; special: boolean }[];
  };
  const names = Object.entries(model.vocab).sort((a, b) => a[1] - b[1]);
  const special = new Set(added.filter((token) => token.special).map(({ content }) => content));
  const tokens = names.map(([token]) => {
    const stays = former ? /^\[.*\]$/.test(token) : special.has(token);
    if (stays) return token;
    return token.startsWith('##') ? token.slice(2) : `▁${token}`;
  });
  const id = (token: string) => model.vocab[token] as number;
  return {
    'tokenizer.ggml.model': 'bert',
    'tokenizer.ggml.pre': 'jina-v2-en',
    'tokenizer.ggml.token_type_count': 2,
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.token_type': names.map(([token]) => (special.has(token) ? 3 : 1)),
    'tokenizer.ggml.unknown_token_id': id('[UNK]'),
    'tokenizer.ggml.seperator_token_id': id('[SEP]'),
    'tokenizer.ggml.padding_token_id': id('[PAD]'),
    'tokenizer.ggml.mask_token_id': id('[MASK]'),
    ...(former
      ? {}
      : {
          'tokenizer.ggml.bos_token_id': id('[CLS]'),
          'tokenizer.ggml.eos_token_id': id('[SEP]'),
          'tokenizer.ggml.cls_token_id': id('[CLS]'),
          'tokenizer.ggml.add_bos_token': true,
          'tokenizer.ggml.add_eos_token': true,
          'tokenizer.ggml.add_sep_token': false,
        }),
  };
}
