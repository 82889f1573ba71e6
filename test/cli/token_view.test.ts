import { describe, expect, it } from 'vitest';
import { ShownStream } from '../../lib/cli/terminal.ts';
import { colouredTokens, tokenTable, tokenText } from '../../lib/cli/token_view.ts';
import { encodePromptResponse } from '../../lib/data/example.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';

const tokenizer = tinyTokenizer();
const example = encodePromptResponse(tokenizer, 'q\n', 'é');

describe('token view', () => {
  it('escapes white space and shows broken characters as bytes', () => {
    const [ab] = tokenizer.encode('ab');
    expect(tokenText(tokenizer, ab as number)).toBe('ab');
    expect(tokenText(tokenizer, 10)).toBe('\\n');
    expect(tokenText(tokenizer, 0xc3)).toBe('\\xc3');
    expect(tokenText(tokenizer, 0x22)).toBe('"');
  });

  it('marks supervised tokens in a table', () => {
    const lines = tokenTable(tokenizer, example).split('\n');
    expect(lines.map((line) => line.trim().replace(/ +/g, ' '))).toEqual([
      '0 113 q',
      '1 10 \\n',
      '2 195 * \\xc3',
      '3 169 * \\xa9',
      `4 ${tokenizer.eosId} * <end>`,
    ]);
  });

  it('marks them by colour', () => {
    let text = '';
    new ShownStream({ write: (some) => (text += some) }).write(colouredTokens(tokenizer, example));
    expect(text).toContain('\u001b[2mq\u001b[22m');
    expect(text).toContain('\u001b[32m\\xc3\u001b[39m');
  });
});
