// Prompts of rows whose responses are not needed: the same texts as in training.
import { describe, expect, it } from 'vitest';
import { rowPrompts } from '../../lib/data/example_format.ts';
import { kRecipeTemplate } from '../../lib/data/prompt_template.ts';

const decoder = { isSource: false };

describe('rowPrompts', () => {
  it('fills the template that training has', () => {
    const rows = [{ question: 'a' }, { question: 'b', answer: 'c' }];
    const filled = (text: string): string => kRecipeTemplate.replace('{instruction}', text);
    expect(rowPrompts(rows, decoder)).toEqual({ prompt: [filled('a'), filled('b')] });
    expect(rowPrompts(rows, { ...decoder, promptTemplate: 'Q: {question}' })).toEqual({
      prompt: ['Q: a', 'Q: b'],
    });
    expect(
      rowPrompts([{ x: 'a' }], { ...decoder, promptField: 'x', promptTemplate: 'none' }),
    ).toEqual({
      prompt: ['a'],
    });
    expect(rowPrompts([{ x: 'a', y: 1 }], { ...decoder, promptTemplate: '{x} {y}' })).toEqual({
      prompt: ['a 1'],
    });
  });

  it('takes sources as they are', () => {
    const rows = [{ prompt: 'a' }];
    expect(rowPrompts(rows, { isSource: true })).toEqual({ prompt: ['a'] });
    expect(rowPrompts(rows, { isSource: true, promptTemplate: 'x {prompt}' })).toEqual({
      prompt: ['x a'],
    });
  });

  it('leaves the answer of a conversation out', () => {
    const user = { role: 'user', content: 'a' };
    const rows = [{ messages: [user] }, { messages: [user, { role: 'assistant', content: 'b' }] }];
    expect(rowPrompts(rows, decoder)).toEqual({ messages: [[user], [user]] });
    expect(() =>
      rowPrompts([{ messages: [{ role: 'assistant', content: 'b' }] }], decoder),
    ).toThrow("field 'messages' has no message that could be answered");
  });

  it('names the fields that there are', () => {
    expect(() => rowPrompts([{ x: 'a' }], decoder)).toThrow(
      'cannot tell which field holds the prompt (fields: x); name it with promptField',
    );
    expect(() => rowPrompts([{ question: 'a' }, { x: 'b' }], decoder)).toThrow(
      "no field 'question'",
    );
  });
});
