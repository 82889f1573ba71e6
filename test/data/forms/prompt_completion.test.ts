import { describe, expect, it } from 'vitest';
import { Batches } from '../../../lib/data/batches.ts';
import { arrayRows, type Row } from '../../../lib/data/rows.ts';
import { shownExample, shownRows } from '../../support/shown_rows.ts';
import { tinyTokenizer } from '../../support/tiny_tokenizer.ts';

async function shown(row: Row, options: object = {}): Promise<string> {
  const data = await Batches.create(arrayRows([row]), tinyTokenizer(), options);
  return shownExample(await data.example(0));
}

describe('prompt and completion', () => {
  it('are texts: through a template, as they stand, or as messages', async () => {
    expect(await shownRows('pairs.tsv', { promptTemplate: 'none' })).toEqual([
      'The sky is[ blue.<end>]',
      '"Quotes"[ are text.<end>]',
    ]);
    expect((await shownRows('pairs.tsv', { promptTemplate: 'chat' }))[0]).toBe(
      '<start>user\nThe sky is<end>\n<start>assistant\n[ blue.<end>]\n',
    );
    const all = { promptTemplate: 'none', trainOnTurns: 'all' } as const;
    expect((await shownRows('pairs.tsv', all))[0]).toBe('[The sky is blue.<end>]');
  });

  it('are messages, of which the completion alone is trained on', async () => {
    expect(await shownRows('conversational.jsonl')).toEqual([
      '<start>user\nWhat is the sky?<end>\n<start>assistant\n[It is blue.<end>]\n',
      '<start>user\nHi<end>\n<start>assistant\nHi!<end>\n<start>user\nBye<end>\n<start>assistant\n[Bye!<end>]\n',
    ]);
  });

  it('are trained on with their prompts where everything is', async () => {
    const [first] = await shownRows('conversational.jsonl', { trainOnTurns: 'all' });
    expect(first).toMatch(/^\[<start>user\n.*blue\.<end>\n\]$/s);
  });

  it('is not taken for messages where the text happens to be JSON', async () => {
    expect(await shown({ prompt: '[1, 2]', completion: '3' }, { promptTemplate: 'none' })).toBe(
      '[1, 2][3<end>]',
    );
  });

  it('is refused where the prompt is marked to be trained on, or has tools without a chat template', async () => {
    const prompt = [
      { role: 'user', content: 'a' },
      { role: 'assistant', content: 'b', train: true },
    ];
    const completion = [{ role: 'assistant', content: 'c' }];
    await expect(shown({ prompt, completion })).rejects.toThrow(
      /^row 0: field 'prompt' has a message that is marked .* move it to 'completion'/,
    );
    await expect(shown({ prompt: 'a', completion: 'b', tools: [{ name: 'f' }] })).rejects.toThrow(
      /field 'tools' is for a chat template; use promptTemplate: 'chat'/,
    );
  });
});
