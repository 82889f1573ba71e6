// The meaning of tokenizer.ggml.pre: where each pre-tokenizer splits (no merge crosses a split), models that look up words before
// they merge, and the special tokens that a name implies.
import { describe, expect, it } from 'vitest';
import { kByteToChar } from '../../lib/text/byte_level.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';

const merges = ['a B', '1 2', '12 3', '123 4', "I '", "' m", '. Ċ'];
const kWhole = 'wörd'; // a word of the vocabulary that no merge produces
const kSpecial = ['<s>', '<pad>', '</s>', '<unk>', '<mask>'];
const tokens = [
  ...kSpecial,
  ...kByteToChar,
  ...merges.map((merge) => merge.replace(' ', '')),
  ...[kWhole].map((word) => Array.from(Buffer.from(word), (byte) => kByteToChar[byte]).join('')),
];

function tokenizer(pre: string, over: Record<string, unknown> = {}): Tokenizer {
  return Tokenizer.fromGguf({
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': pre,
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.token_type': tokens.map((_, id) => (id < kSpecial.length ? 3 : 1)),
    'tokenizer.ggml.merges': merges,
    'tokenizer.ggml.bos_token_id': 0,
    'tokenizer.ggml.padding_token_id': 1,
    'tokenizer.ggml.eos_token_id': 2,
    'tokenizer.ggml.seperator_token_id': 2,
    'tokenizer.ggml.cls_token_id': 0,
    'tokenizer.ggml.mask_token_id': 4,
    ...over,
  });
}

/** The tokens of a text without added special tokens. */
const cut = (pre: string, text: string): string => {
  const made = tokenizer(pre);
  const ids = made.encode(text, { addSpecialTokens: false });
  return ids.map((id) => Buffer.from(made.tokenBytes(id)).toString('latin1')).join('|');
};

describe('pre-tokenizers of GGUF files', () => {
  it.each([
    // pre, then the splits of digits, of a small letter before a capital, and of a contraction
    ['gpt-2', '1234', 'aB', "I|'m"],
    ['roberta-bpe', '1234', 'aB', "I|'m"],
    ['smollm', '1|2|3|4', 'aB', "I|'m"],
    ['llama-bpe', '123|4', 'aB', "I|'m"],
    ['falcon3', '123|4', 'aB', "I|'m"],
    ['dbrx', '123|4', 'aB', "I|'m"],
    ['smaug-bpe', '123|4', 'aB', "I|'m"],
    ['qwen2', '1|2|3|4', 'aB', "I|'m"],
    ['stablelm2', '1|2|3|4', 'aB', "I|'m"],
    ['megrez', '1|2|3|4', 'aB', "I|'m"],
    ['tekken', '1|2|3|4', 'a|B', "I|'m"],
    ['gpt-4o', '123|4', 'a|B', "I'|m"],
  ])('%s', (pre, digits, capital, contraction) => {
    expect(cut(pre, '1234')).toBe(digits);
    expect(cut(pre, 'aB')).toBe(capital);
    expect(cut(pre, "I'm")).toBe(contraction);
  });

  it('join punctuation with line breaks after it in newer versions', () => {
    expect(cut('gpt-2', '.\n')).toBe('.|\n');
    for (const pre of ['llama-bpe', 'dbrx', 'qwen2', 'tekken', 'gpt-4o']) {
      expect(cut(pre, '.\n'), pre).toBe('.\n');
    }
  });

  it('look up words before merging where the model does', () => {
    const whole = tokens.length - 1;
    for (const pre of ['llama-bpe', 'falcon3', 'tekken']) {
      expect(tokenizer(pre).encode(kWhole), pre).toEqual([0, whole]);
    }
    for (const pre of ['dbrx', 'gpt-4o', 'qwen2', 'gpt-2']) {
      expect(tokenizer(pre).encode(kWhole), pre).not.toContain(whole);
      expect(tokenizer(pre).encode('a'), pre).toHaveLength(1);
    }
  });

  it("add RoBERTa's special tokens around and between texts, and join <mask> with the space before it", () => {
    const roberta = tokenizer('roberta-bpe');
    const [a, b] = ['a', 'B'].map((text) => roberta.tokenId(text) as number);
    expect(roberta.encode('a')).toEqual([0, a, 2]);
    expect(roberta.encodePair('a', 'B')).toEqual({
      ids: [0, a, 2, 2, b, 2],
      typeIds: [0, 0, 0, 0, 0, 0],
      cut: 0,
    });
    expect(roberta.encode('a <mask>B')).toEqual([0, a, 4, b, 2]);
    expect([roberta.clsId, roberta.sepId, roberta.maskId, roberta.padId]).toEqual([0, 2, 4, 1]);
    const plain = tokenizer('roberta-bpe', {
      'tokenizer.ggml.add_sep_token': false,
      'tokenizer.ggml.add_bos_token': false,
    });
    expect(plain.encodePair('a', 'B').ids).toEqual([a, b, 2]);
  });
});
