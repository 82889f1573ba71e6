import { describe, expect, it } from 'vitest';
import { Batches } from '../../../lib/data/batches.ts';
import { rowPrompts } from '../../../lib/data/example_format.ts';
import { kInputTemplate, kRecipeTemplate } from '../../../lib/data/prompt_template.ts';
import { arrayRows, type Row } from '../../../lib/data/rows.ts';
import { Seq2SeqBatches } from '../../../lib/data/seq2seq_batches.ts';
import { shownExample, shownRows } from '../../support/shown_rows.ts';
import { tinyTokenizer } from '../../support/tiny_tokenizer.ts';

async function shown(row: Row, options: object = {}): Promise<string> {
  const data = await Batches.create(arrayRows([row]), tinyTokenizer(), options);
  return shownExample(await data.example(0));
}

const filled = (instruction: string, input?: string): string =>
  (input === undefined ? kRecipeTemplate : kInputTemplate)
    .replace('{instruction}', instruction)
    .replace('{input}', input ?? '');

describe('Alpaca', () => {
  it('through the chat template: system, history, instruction with input, output', async () => {
    expect(await shownRows('alpaca.json', { promptTemplate: 'chat' })).toEqual([
      '<start>user\nGive the capital.\nFrance<end>\n<start>assistant\n[Paris<end>]\n',
      '<start>user\nSay hello.<end>\n<start>assistant\n[Hello!<end>]\n',
      '<start>system\nYou translate.<end>\n<start>user\nSay hello in French.<end>\n<start>assistant\n[Bonjour !<end>]\n' +
        '<start>user\nIn Spanish?<end>\n<start>assistant\n[¡Hola!<end>]\n' +
        '<start>user\nAnd in German?<end>\n<start>assistant\n[Hallo!<end>]\n',
    ]);
    const last = await shownRows('alpaca.json', { promptTemplate: 'chat', trainOnTurns: 'last' });
    expect(last[2]?.match(/\[/g)).toHaveLength(1);
  });

  it("has Alpaca's two templates, for rows with and without an input, also from CSV", async () => {
    expect(await shownRows('alpaca.csv')).toEqual([
      `${filled('Sort: 3, 1, 2')}[1, 2, 3<end>]`,
      `${filled('Quote "it"', 'two\r\nlines')}["it"<end>]`,
    ]);
  });

  it('never loses what a row has: a template names it, or it is refused', async () => {
    const row = { instruction: 'Add.', input: '1 2', output: '3' };
    const templates = { '{prompt} =': 'Add.\n1 2 =', '{input}: {instruction}': '1 2: Add.' };
    for (const [promptTemplate, prompt] of Object.entries(templates)) {
      expect(await shown(row, { promptTemplate })).toBe(`${prompt}[3<end>]`);
    }
    expect(await shown(row, { promptTemplate: 'none' })).toBe('Add.\n1 2[3<end>]');
    await expect(shown(row, { promptTemplate: '{instruction}' })).rejects.toThrow(
      "row 0: field 'input' would be left out by the prompt template; use promptTemplate: 'chat', or a template with {input}",
    );
    const more = { ...row, system: 'Be brief.', history: [['a', 'b']] };
    await expect(shown(more)).rejects.toThrow(
      /field 'system', 'history' would be left out .* use promptTemplate: 'chat'$/,
    );
    await expect(shown({ ...row, tools: [{}] })).rejects.toThrow(/field 'tools' would be left out/);
    await expect(shown({ ...row, history: [['a']] })).rejects.toThrow(
      /field 'history' must be a list of pairs of texts/,
    );
  });

  it('is a source of an encoder-decoder with its input, and a prompt without its output', async () => {
    const row = { instruction: 'Add.', input: '1 2', output: '3' };
    const options = { decoderStartTokenId: 0 };
    const data = await Seq2SeqBatches.create(arrayRows([row]), tinyTokenizer(), options);
    const { source } = await data.example(0);
    expect(tinyTokenizer().decode([...source])).toBe('Add.\n1 2<end>');
    expect(data.format).toBe('instruction + input -> output');
    const { output: _, ...asked } = row;
    expect(await rowPrompts([asked], { isSource: false })).toEqual({
      prompt: [filled('Add.', '1 2')],
    });
    expect(await rowPrompts([row], { isSource: false, promptTemplate: 'chat' })).toEqual({
      messages: [[{ role: 'user', content: 'Add.\n1 2' }]],
    });
  });
});
