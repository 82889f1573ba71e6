import { describe, expect, it } from 'vitest';
import { Batches } from '../../../lib/data/batches.ts';
import { arrayRows, type Row } from '../../../lib/data/rows.ts';
import { openChat } from '../../../lib/generate/chat.ts';
import { generate } from '../../../lib/generate/generate.ts';
import { checkRoles, misspeltRole } from '../../../lib/text/chat_template.ts';
import { Tokenizer } from '../../../lib/text/tokenizer.ts';
import { fixturePath } from '../../support/fixtures.ts';
import { shownExample, shownRows, withChatTemplate } from '../../support/shown_rows.ts';
import { TinyModel } from '../../support/tiny_model.ts';
import {
  tinyTokenizer,
  tinyTokenizerConfig,
  tinyTokenizerJson,
} from '../../support/tiny_tokenizer.ts';

const kUser = { role: 'user', content: 'hi' };
const kAnswer = { role: 'assistant', content: 'yo' };

async function shown(row: Row, options: object = {}, by = tinyTokenizer()): Promise<string> {
  const data = await Batches.create(arrayRows([row]), by, options);
  return shownExample(await data.example(0), by);
}

describe('messages', () => {
  it('of a file are trained on in the turns of the assistant that the row does not mask', async () => {
    expect(await shownRows('messages.jsonl')).toEqual([
      '<start>system\nBe brief.<end>\n<start>user\nName a colour.<end>\n<start>assistant\n[Red.<end>]\n' +
        '<start>user\nAnother one?<end>\n<start>assistant\n[Blau.<end>]\n',
      '<start>user\n2 + 2?<end>\n<start>assistant\nFive.<end>\n' +
        '<start>user\nSure?<end>\n<start>assistant\n[No: four.<end>]\n',
      '<start>user\nGrüße!<end>\n<start>assistant\n[Hello.\nWorld 🌍<end>]\n',
    ]);
  });

  it('of a Parquet file are lists of structures, whose nulls are left out', async () => {
    expect(await shownRows(fixturePath('data/messages.parquet'))).toEqual([
      '<start>user\nhi<end>\n<start>assistant\n[yo<end>]\n',
      '<start>user\nhi<end>\n<start>assistant\nno<end>\n' +
        '<start>user\nso?<end>\n<start>assistant\n[é<end>]\n',
    ]);
  });

  it('are trained on in the last turn only, or in all of their text', async () => {
    const [last] = await shownRows('messages.jsonl', { trainOnTurns: 'last' });
    expect(last).toMatch(/assistant\nRed\.<end>\n.*assistant\n\[Blau\.<end>\]\n$/s);
    const row = { messages: [kUser, kAnswer] };
    expect(await shown(row, { trainOnTurns: 'all' })).toBe(
      '[<start>user\nhi<end>\n<start>assistant\nyo<end>\n]',
    );
    const masked = { messages: [kUser, { ...kAnswer, train: false }] };
    await expect(shown(masked, { trainOnTurns: 'all' })).rejects.toThrow(
      "row 0: message 1 is marked not to be trained on, and trainOnTurns: 'all' trains on everything",
    );
  });

  it('stand in a field of another name, in CSV as JSON, and have roles of their own', async () => {
    const dialog = [{ role: 'poet', content: 'hi' }, kAnswer];
    const options = { messagesField: 'dialog', roleMap: { poet: 'user' } };
    const expected = '<start>user\nhi<end>\n<start>assistant\n[yo<end>]\n';
    expect(await shown({ dialog }, options)).toBe(expected);
    expect(await shown({ dialog: JSON.stringify(dialog) }, options)).toBe(expected);
    expect(await shown({ conversations: [kUser, kAnswer] })).toBe(expected);
  });

  it('show their tools to the chat template, a list or its JSON', async () => {
    const by = withChatTemplate(
      "{% if tools %}{{ '<start>tools' + tools|tojson + '<end>' }}{% endif %}" +
        "{% for m in messages %}{{ '<start>' + m.role + '\n' + m.content + '<end>\n' }}{% endfor %}" +
        "{% if add_generation_prompt %}{{ '<start>assistant\n' }}{% endif %}",
    );
    const messages = [kUser, kAnswer];
    for (const tools of [[{ name: 'add' }], '[{"name": "add"}]']) {
      expect(await shown({ messages, tools }, {}, by)).toMatch(
        /^<start>tools\[\{"name": "add"\}\]<end><start>user/,
      );
    }
    expect(await shown({ messages, tools: '' }, {}, by)).toMatch(/^<start>user/);
  });

  it('without one that is trained on are left out with a warning, and refused alone', async () => {
    const masked = { messages: [kUser, { ...kAnswer, weight: 0 }] };
    const messages: string[] = [];
    const data = await Batches.create(
      arrayRows([{ messages: [kUser, kAnswer] }, masked]),
      tinyTokenizer(),
      { onWarning: ({ code, message }) => messages.push(`${code}: ${message}`) },
    );
    expect(data.statistics).toMatchObject({ rows: 2, examples: 1, skipped: 1 });
    expect(messages).toEqual([
      'examples_masked: 1 of 2 examples have no message that is trained on and are left out (first: row 1)',
    ]);
    const refusal = 'row 0: no message of the row is trained on; mark one with train: true';
    await expect(shown(masked)).rejects.toThrow(refusal);
    await expect(
      Batches.create(arrayRows([masked, masked]), tinyTokenizer(), { onUnsupervised: 'error' }),
    ).rejects.toThrow(refusal);
  });

  it.each([
    [[], /^row 0: field 'messages' is empty; give it messages/],
    [[kUser, { role: 'assistant' }], /^row 0: messages\[1\] \(assistant\) has no content; give/],
    [[kUser, { content: 'a' }], /^row 0: messages\[1\] has no role; give it one/],
    [[kUser, { from: 'gpt', value: 'a' }], /messages\[1\] has from in the place of role: a conv/],
    [[kUser, { ...kAnswer, train: 1 }], /messages\[1\]\.train must be true or false, got 1/],
    [[kUser, { ...kAnswer, weight: 0.5 }], /messages\[1\]\.weight must be 0 .* or 1, got 0\.5/],
    [[kUser, { ...kAnswer, weight: 0, train: true }], /train and weight contradict each other/],
    [[{ ...kUser, train: true }, kAnswer], /messages\[0\] \(user\) is marked to be trained on/],
  ])('%j are refused', async (messages, refusal) => {
    await expect(shown({ messages })).rejects.toThrow(refusal);
  });
});

describe('a misspelt role', () => {
  const row = { messages: [kUser, { role: 'asistant', content: 'yo' }] };

  it('is refused with the one that is meant, and the row', async () => {
    await expect(shown(row)).rejects.toThrow(
      /^row 0: messages\[1\]\.role is "asistant", which is not known \(did you mean "assistant"\?\); correct it, or .* roleMap$/,
    );
  });

  it("is one of the data where roleMap names it, and others are the template's to know", () => {
    expect(misspeltRole('narrator')).toBeNull();
    expect(misspeltRole('tool')).toBeNull();
    expect(['asistant', 'Assistant', 'usr', 'sytem'].map(misspeltRole)).toEqual([
      'assistant',
      'assistant',
      'user',
      'system',
    ]);
    expect(() => checkRoles('chat: messages', row.messages, null)).toThrow(
      'chat: messages[1].role is "asistant", which is not known (did you mean "assistant"?); correct it, or name the role in the chat ' +
        'template, in quotes',
    );
  });

  it("is one of a model's where its chat template names it", () => {
    const source = `{% for m in messages %}{% if m.role == 'User' or m.role == "tools" %}{{ m.content }}{% endif %}{% endfor %}`;
    const tokenizer = Tokenizer.fromJson(tinyTokenizerJson(), {
      ...tinyTokenizerConfig(),
      chat_template: source,
    });
    const model = new TinyModel({ vocabulary: tokenizer.vocabSize });
    for (const role of ['User', 'tools']) {
      const messages = [{ role, content: 'hey' }];
      expect(() => generate(model, { tokenizer, messages })).not.toThrow();
      expect(() => openChat(model, { tokenizer, messages })).not.toThrow();
    }
    const messages = [{ role: 'Users', content: 'hey' }];
    const refusal = /messages\[0\]\.role is "Users", .* \(did you mean "user"\?\); correct it/;
    expect(() => generate(model, { tokenizer, messages })).toThrow(refusal);
    expect(() => openChat(model, { tokenizer, messages })).toThrow(refusal);
  });
});
