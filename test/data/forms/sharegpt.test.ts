import { describe, expect, it } from 'vitest';
import { Batches } from '../../../lib/data/batches.ts';
import { arrayRows, type Row } from '../../../lib/data/rows.ts';
import { shownExample, shownRows, withChatTemplate } from '../../support/shown_rows.ts';
import { tinyTokenizer } from '../../support/tiny_tokenizer.ts';

const kHuman = { from: 'human', value: 'hi' };
const kGpt = { from: 'gpt', value: 'yo' };

async function shown(row: Row, options: object = {}): Promise<string> {
  const data = await Batches.create(arrayRows([row]), tinyTokenizer(), options);
  return shownExample(await data.example(0));
}

describe('ShareGPT', () => {
  it('of a JSON array with a byte-order mark and Windows line ends, with system, tools and calls', async () => {
    const by = withChatTemplate(
      "{% if tools %}{{ '<start>tools ' + tools[0].name + '<end>\n' }}{% endif %}" +
        "{% for m in messages %}{{ '<start>' + m.role + '\n' }}" +
        "{% if m.tool_calls %}{{ 'call ' + m.tool_calls[0].function.name + m.tool_calls[0].function.arguments|tojson }}{% endif %}" +
        "{{ m.content + '<end>\n' }}{% endfor %}" +
        "{% if add_generation_prompt %}{{ '<start>assistant\n' }}{% endif %}",
    );
    expect(await shownRows('sharegpt.json', {}, by)).toEqual([
      '<start>user\nWhat is a prime?<end>\n<start>assistant\n[A number with two divisors.<end>]\n' +
        '<start>user\nIs 9 one?<end>\n<start>assistant\n[No, 3 divides it.<end>]\n',
      '<start>tools add<end>\n<start>system\nYou are a calculator.<end>\n<start>user\nAdd 1 and 2.<end>\n' +
        '<start>assistant\n[call add{"a": 1, "b": 2}<end>]\n<start>tool\n3<end>\n<start>assistant\n[It is 3.<end>]\n',
    ]);
  });

  it('has the roles of a map beside the known ones, and marks of messages', async () => {
    const conversations = [{ from: 'narrator', value: 'hi' }, { ...kGpt, weight: 0 }, kHuman, kGpt];
    expect(await shown({ conversations }, { roleMap: { narrator: 'user' } })).toBe(
      '<start>user\nhi<end>\n<start>assistant\nyo<end>\n<start>user\nhi<end>\n<start>assistant\n[yo<end>]\n',
    );
    await expect(shown({ conversations })).rejects.toThrow(
      /^row 0: conversations\[0\]: "narrator" is no known role; name .* with roleMap/,
    );
  });

  it.each([
    [{ conversations: [kHuman, { role: 'assistant', content: 'a' }] }, /\[1\] has no from but a/],
    [{ conversations: [kHuman, { from: 'gpt', value: null }] }, /\[1\]\.value must be text, got/],
    [{ conversations: [kHuman, { from: 'function_call', value: 'add' }] }, /must be JSON of a too/],
    [{ conversations: [{ from: 'system', value: 'a' }, kGpt], system: 'b' }, /both give the syst/],
  ])('%j is refused', async (row, refusal) => {
    await expect(shown(row)).rejects.toThrow(refusal);
  });
});
