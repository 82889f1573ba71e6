// The choice of a form by the columns of rows, rows that mix forms, and prompts of rows whose responses are not needed.
import { describe, expect, it } from 'vitest';
import { Batches } from '../../lib/data/batches.ts';
import { chooseFormat, rowPrompts } from '../../lib/data/example_format.ts';
import { DATA_FORMATS } from '../../lib/data/forms/list.ts';
import { kRecipeTemplate } from '../../lib/data/prompt_template.ts';
import { arrayRows, type Row } from '../../lib/data/rows.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';

const decoder = { isSource: false };

describe('rowPrompts', () => {
  it('fills the template that training has', async () => {
    const rows = [{ question: 'a' }, { question: 'b', answer: 'c' }];
    const filled = (text: string): string => kRecipeTemplate.replace('{instruction}', text);
    expect(await rowPrompts(rows, decoder)).toEqual({ prompt: [filled('a'), filled('b')] });
    expect(await rowPrompts(rows, { ...decoder, promptTemplate: 'Q: {question}' })).toEqual({
      prompt: ['Q: a', 'Q: b'],
    });
    expect(
      await rowPrompts([{ x: 'a' }], { ...decoder, promptField: 'x', promptTemplate: 'none' }),
    ).toEqual({
      prompt: ['a'],
    });
    expect(await rowPrompts([{ x: 'a', y: 1 }], { ...decoder, promptTemplate: '{x} {y}' })).toEqual(
      {
        prompt: ['a 1'],
      },
    );
  });

  it('takes sources as they are', async () => {
    const rows = [{ prompt: 'a' }];
    expect(await rowPrompts(rows, { isSource: true })).toEqual({ prompt: ['a'] });
    expect(await rowPrompts(rows, { isSource: true, promptTemplate: 'x {prompt}' })).toEqual({
      prompt: ['x a'],
    });
  });

  it('leaves the answer of a conversation out', async () => {
    const user = { role: 'user', content: 'a' };
    const rows = [{ messages: [user] }, { messages: [user, { role: 'assistant', content: 'b' }] }];
    expect(await rowPrompts(rows, decoder)).toEqual({ messages: [[user], [user]] });
    await expect(
      rowPrompts([{ messages: [{ role: 'assistant', content: 'b' }] }], decoder),
    ).rejects.toThrow("field 'messages' has no message that could be answered");
  });

  it('names the fields that there are', async () => {
    await expect(rowPrompts([{ x: 'a' }], decoder)).rejects.toThrow(
      'cannot tell which field holds the prompt (fields: x); name it with promptField',
    );
    await expect(rowPrompts([{ question: 'a' }, { x: 'b' }], decoder)).rejects.toThrow(
      "no field 'question'",
    );
  });
});

const kMessages = [
  { role: 'user', content: 'a' },
  { role: 'assistant', content: 'b' },
];
const kTurns = [
  { from: 'human', value: 'a' },
  { from: 'gpt', value: 'b' },
];
/** A row of each form. */
const kRows: Record<string, Row> = {
  messages: { messages: kMessages },
  sharegpt: { conversations: kTurns },
  alpaca: { instruction: 'a', output: 'b' },
  'prompt-completion': { prompt: 'a', completion: 'b' },
  text: { text: 'a' },
};
const create = (rows: Row[], options = {}) =>
  Batches.create(arrayRows(rows), tinyTokenizer(), options);

describe('the form of rows', () => {
  it('is each of the list, found by the columns or named', () => {
    expect(Object.keys(kRows)).toEqual(DATA_FORMATS);
    for (const [dataFormat, row] of Object.entries(kRows)) {
      const found = chooseFormat(tinyTokenizer(), row);
      const named = chooseFormat(tinyTokenizer(), row, { dataFormat });
      expect(named.encode(row)).toEqual(found.encode(row));
    }
  });

  it('is refused where a row has several, unless it is named; a text beside another form is ignored', () => {
    const both = { ...kRows.messages, ...kRows['prompt-completion'] };
    const of = (row: Row, options = {}) => chooseFormat(tinyTokenizer(), row, options).description;
    expect(() => of(both)).toThrow(
      "the row mixes the forms messages (messages) and prompt-completion (prompt -> completion); name the one to read with dataFormat: 'messages'",
    );
    expect(of(both, { dataFormat: 'prompt-completion' })).toBe('prompt -> completion');
    expect(of(both, { promptField: 'prompt' })).toBe('prompt -> completion');
    expect(of({ ...kRows.alpaca, ...kRows.text })).toBe('instruction -> output');
    // A column without a value is none.
    expect(of({ ...kRows['prompt-completion'], messages: null })).toBe('prompt -> completion');
  });

  it('is the same in all rows of a file', async () => {
    const [pair, chat, alpaca] = ['prompt-completion', 'messages', 'alpaca'].map(
      (name) => kRows[name],
    ) as [Row, Row, Row];
    await expect(create([pair, pair, chat])).rejects.toThrow(
      /^row 2: the row has fields of the form messages \(messages\), and the first row of the file is of the form prompt-completion \(prompt -> completion\); write all rows in one form/,
    );
    await expect(create([chat, { ...chat, ...alpaca }])).rejects.toThrow(
      /^row 1: the row has fields of the form alpaca \(instruction -> output\)/,
    );
    await expect(create([pair, { prompt: 'a' }])).rejects.toThrow(
      "row 1: no field 'completion' (fields: prompt)",
    );
    const data = await create([chat, { ...chat, ...alpaca }], { dataFormat: 'messages' });
    expect(data.statistics.examples).toBe(2);
  });

  it('that is named names the fields that a row lacks', async () => {
    await expect(create([kRows.text as Row], { dataFormat: 'alpaca' })).rejects.toThrow(
      "row 0: dataFormat: 'alpaca' needs instruction and output (fields: text); name the fields, or another form",
    );
    await expect(create([kRows.text as Row], { dataFormat: 'csv' })).rejects.toThrow(
      /dataFormat must be one of messages, sharegpt, alpaca, prompt-completion, text, got "csv"/,
    );
    await expect(create([{ x: 1 }])).rejects.toThrow(
      /^row 0: cannot tell which fields hold prompt and response, or which of the forms .* \(fields: x\); name the fields with promptField/,
    );
    await expect(create([kRows.text as Row], { promptTemplate: 'chat' })).rejects.toThrow(
      /rows of the form text are no conversations; leave promptTemplate: 'chat' out/,
    );
  });
});
