import { describe, expect, it } from 'vitest';
import { Batches } from '../../../lib/data/batches.ts';
import { arrayRows } from '../../../lib/data/rows.ts';
import { Seq2SeqBatches } from '../../../lib/data/seq2seq_batches.ts';
import { shownRows } from '../../support/shown_rows.ts';
import { tinyTokenizer } from '../../support/tiny_tokenizer.ts';

describe('text', () => {
  it('is trained on as a whole, with its end', async () => {
    expect(await shownRows('text.jsonl')).toEqual([
      '[The first document.<end>]',
      '[Der zweite.\n\nMit Absatz.<end>]',
    ]);
  });

  it('may have another name, and is left out where it is empty', async () => {
    const rows = arrayRows([{ body: 'a' }, { body: '' }]);
    const codes: string[] = [];
    const data = await Batches.create(rows, tinyTokenizer(), {
      textField: 'body',
      onWarning: ({ code }) => codes.push(code),
    });
    expect(data.format).toBe('body');
    expect(data.statistics).toMatchObject({ examples: 1, supervisedTokens: 1 });
    expect(codes).toEqual(['answers_empty']);
  });

  it('has no prompt for a template, a chat or an encoder-decoder', async () => {
    const rows = arrayRows([{ text: 'a' }]);
    const options = { decoderStartTokenId: 0 };
    await expect(Seq2SeqBatches.create(rows, tinyTokenizer(), options)).rejects.toThrow(
      /^row 0: rows with 'text' are texts without a prompt/,
    );
    const template = { promptTemplate: '{prompt}' };
    await expect(Batches.create(rows, tinyTokenizer(), template)).rejects.toThrow(
      /^row 0: the rows are of the form text \(fields: text\), and a prompt template is for prompts/,
    );
  });
});
