import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  encodeConversation,
  encodePromptResponse,
  supervisedCount,
  truncate,
} from '../../lib/data/example.ts';
import { chooseFormat } from '../../lib/data/example_format.ts';
import { kRecipeTemplate, PromptTemplate } from '../../lib/data/prompt_template.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import {
  tinyTokenizer,
  tinyTokenizerConfig,
  tinyTokenizerJson,
} from '../support/tiny_tokenizer.ts';

const tokenizer = tinyTokenizer();
const withTemplate = (chat_template: string) =>
  Tokenizer.fromJson(tinyTokenizerJson(), { ...tinyTokenizerConfig(), chat_template });

/** The text of an example, with each run of supervised tokens in brackets. */
function shown(example: { ids: Int32Array; supervised: Uint8Array }, by = tokenizer): string {
  let text = '';
  let inside = false;
  example.ids.forEach((id, t) => {
    const supervised = example.supervised[t] === 1;
    if (supervised !== inside) text += supervised ? '[' : ']';
    inside = supervised;
    text += Buffer.from(by.tokenBytes(id)).toString('latin1');
  });
  return text + (inside ? ']' : '');
}

describe('encodePromptResponse', () => {
  it('supervises the response and EOS only', () => {
    expect(shown(encodePromptResponse(tokenizer, 'say ', 'hi'))).toBe('say [hi<end>]');
  });

  it.each(['', ' \n'])('does not supervise the end of the empty response %j', (response) => {
    const example = encodePromptResponse(tokenizer, 'say ', response);
    expect(shown(example)).toBe(`say ${response}<end>`);
    expect(example.emptyAnswers).toBe(1);
  });

  it('supervises a token that merges across the border', () => {
    // "a" and "b" are one token in the joined text.
    expect(shown(encodePromptResponse(tokenizer, 'xa', 'by'))).toBe('x[aby<end>]');
  });

  it('does not add EOS twice', () => {
    expect(shown(encodePromptResponse(tokenizer, 'a', 'b<end>'))).toBe('[ab<end>]');
  });

  it('never supervises a token of the prompt alone, and always EOS', () => {
    fc.assert(
      fc.property(
        fc.string({ unit: 'binary' }),
        fc.string({ unit: 'binary' }).filter((response) => response.trim() !== ''),
        (prompt, response) => {
          const { ids, supervised } = encodePromptResponse(tokenizer, prompt, response);
          const first = supervised.indexOf(1);
          expect(ids.slice(0, first)).toEqual(
            Int32Array.from(tokenizer.encode(prompt)).slice(0, first),
          );
          expect(supervised.slice(first).every((s) => s === 1)).toBe(true);
          expect(ids.at(-1)).toBe(tokenizer.eosId);
          // The unsupervised tokens are the beginning of the prompt.
          const head = Buffer.concat(
            [...ids.slice(0, first)].map((id) => tokenizer.tokenBytes(id)),
          );
          expect(Buffer.from(prompt).subarray(0, head.length).equals(head)).toBe(true);
        },
      ),
    );
  });

  it('needs an EOS token', () => {
    const without = Tokenizer.fromJson(tinyTokenizerJson());
    expect(() => encodePromptResponse(without, 'a', 'b')).toThrow(
      /without an end-of-sequence token, .* eos_token in tokenizer_config/,
    );
  });
});

describe('encodeConversation', () => {
  const chat = [
    { role: 'user', content: 'hi' },
    { role: 'assistant', content: 'yo' },
    { role: 'user', content: 'more' },
    { role: 'assistant', content: ' a ' },
  ];

  it('supervises every assistant turn up to its end-of-turn token', () => {
    expect(shown(encodeConversation(tokenizer, chat))).toBe(
      '<start>user\nhi<end>\n<start>assistant\n[yo<end>]\n' +
        '<start>user\nmore<end>\n<start>assistant\n[ a <end>]\n',
    );
  });

  it('supervises an assistant turn that comes first, and not an empty one', () => {
    const start = [{ role: 'assistant', content: 'x' }];
    expect(shown(encodeConversation(tokenizer, start))).toBe('<start>assistant\n[x<end>]\n');
    const empty = [
      { role: 'user', content: 'x' },
      { role: 'assistant', content: '' },
    ];
    expect(shown(encodeConversation(tokenizer, empty))).toBe(
      '<start>user\nx<end>\n<start>assistant\n<end>\n',
    );
  });

  it('follows a template that writes the last turn differently', () => {
    const by = withTemplate(
      "{% for m in messages %}{{ '<start>' + m.role + '\n' }}{% if loop.last and m.role == 'assistant' %}" +
        "{{ '<think></think>' }}{% endif %}{{ m.content | trim + '<end>\n' }}{% endfor %}" +
        "{% if add_generation_prompt %}{{ '<start>assistant\n' }}{% endif %}",
    );
    expect(shown(encodeConversation(by, chat), by)).toBe(
      '<start>user\nhi<end>\n<start>assistant\n[yo<end>]\n' +
        '<start>user\nmore<end>\n<start>assistant\n[<think></think>a<end>]\n',
    );
  });

  it('works without an end-of-turn token', () => {
    const by = withTemplate(
      "{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}",
    );
    expect(shown(encodeConversation(by, chat.slice(0, 2)), by)).toBe('user:hi\nassistant:[yo\n]');
  });

  it('refuses conversations without an assistant, and templates that hide the turn', () => {
    expect(() => encodeConversation(tokenizer, chat.slice(0, 1))).toThrow(/no assistant message/);
    const hiding = withTemplate(
      '{% for m in messages %}{{ loop.index ~ loop.length }}{% endfor %}',
    );
    expect(() => encodeConversation(hiding, chat)).toThrow(
      /does not show where assistant message 1/,
    );
  });
});

describe('PromptTemplate', () => {
  it('fills the prompt field into {instruction} and {prompt}, other fields by name', () => {
    const row = { question: 'Q?', hint: 7 };
    expect(new PromptTemplate('{prompt} ({hint}) {{x}}').fill(row, 'question')).toBe('Q? (7) {x}');
    expect(new PromptTemplate(kRecipeTemplate).fill(row, 'question')).toContain(
      '### Instruction:\nQ?\n\n### Response:',
    );
    expect(new PromptTemplate('none').fill(row, 'question')).toBe('Q?');
    expect(new PromptTemplate('{instruction}').fill({ instruction: 'own', q: 'x' }, 'q')).toBe(
      'own',
    );
  });

  it('does not read a field value as a template', () => {
    expect(new PromptTemplate('{prompt}').fill({ q: '{hint}}' }, 'q')).toBe('{hint}}');
  });

  it('names the existing fields, and the error in a template', () => {
    expect(() => new PromptTemplate('{nope}').fill({ a: 1, b: 2 }, null)).toThrow(
      "no field 'nope' (fields: a, b)",
    );
    expect(() => new PromptTemplate('{toString}').fill({ a: 1 }, null)).toThrow(
      /no field 'toString'/,
    );
    expect(() => new PromptTemplate('{a}').fill({ a: null }, null)).toThrow(
      /must be text, got null/,
    );
    expect(() => new PromptTemplate('{a')).toThrow(/'{' at 0 opens no field/);
    expect(() => new PromptTemplate('x}')).toThrow(/'}' at 1 closes nothing/);
    expect(() => new PromptTemplate('alpacca')).toThrow(
      /one of the names alpaca, none, got "alpacca"/,
    );
  });
});

describe('chooseFormat', () => {
  it.each([
    [{ question: 'q', answer: 'r' }, 'question -> answer'],
    [{ query: 'q', response: 'r', answer: 'x' }, 'query -> response'],
    [{ type: 't', instruction: 'q', output: 'r' }, 'instruction -> output'],
    [{ human: 'q', assistant: 'r' }, 'human -> assistant'],
  ])('knows the public data sets: %o', (row, description) => {
    expect(chooseFormat(tokenizer, row).description).toBe(description);
  });

  it('takes the pair of fields of which one is named', () => {
    const row = { messages: [{ role: 'assistant', content: 'x' }], question: 'q', answer: 'r' };
    const named = chooseFormat(tokenizer, row, { promptField: 'question' });
    expect(named.description).toBe('question -> answer');
  });

  it('allows a custom template with its own fields', () => {
    const format = chooseFormat(
      tokenizer,
      { a: 'A', b: 'B', c: 'C' },
      { promptTemplate: '{a}{b}', responseField: 'c' },
    );
    expect(shown(format.encode({ a: 'x', b: 'y', c: 'z' }))).toBe('xy[z<end>]');
  });

  it('lists the existing fields where it cannot choose', () => {
    expect(() => chooseFormat(tokenizer, { body: 'x', id: 1 })).toThrow(/\(fields: body, id\)/);
  });
});

describe('truncate', () => {
  it('cuts ids and supervision together', () => {
    const example = encodePromptResponse(tokenizer, 'pq', 'rs');
    const cut = truncate(example, 3);
    expect(shown(cut)).toBe('pq[r]');
    expect(supervisedCount(cut)).toBe(1);
    expect(truncate(example, 99)).toBe(example);
  });

  it('does not count the first id, which no row predicts', () => {
    expect(supervisedCount({ ids: Int32Array.of(5, 6), supervised: Uint8Array.of(1, 1) })).toBe(1);
  });
});

describe('a conversation', () => {
  const user = { role: 'user', content: 'hi' };
  const chat = (messages: unknown[], more: object = {}, by = tokenizer) =>
    chooseFormat(by, { messages, ...more }).encode({ messages, ...more });
  const kTools = withTemplate(
    "{% if tools %}{{ '<start>tools' + tools|tojson + '<end>' }}{% endif %}" +
      "{% for m in messages %}{{ '<start>' + m.role + '\n' + m.content + '<end>\n' }}{% endfor %}" +
      "{% if add_generation_prompt %}{{ '<start>assistant\n' }}{% endif %}",
  );

  it('shows its tools to the template, and is refused where the template ignores them', () => {
    const messages = [user, { role: 'assistant', content: 'ok' }];
    const tools = [{ name: 'add' }];
    expect(shown(chat(messages, { tools }, kTools), kTools)).toMatch(
      /^<start>tools\[\{"name": "add"\}\]<end><start>user\nhi<end>\n<start>assistant\n\[ok<end>\]\n$/,
    );
    for (const none of [null, []]) {
      expect(chat(messages, { tools: none })).toEqual(chat(messages));
    }
    expect(() => chat(messages, { tools })).toThrow(
      /^tools: the model's chat template does not use/,
    );
    expect(() => chat(messages, { tools: 'add' })).toThrow(
      /^field 'tools' must be a list of descriptions, got "add"/,
    );
  });

  it('is refused with a message without content, unless that calls a tool', () => {
    for (const content of [null, undefined]) {
      expect(() => chat([user, { role: 'assistant', content }])).toThrow(
        /^messages\[1\] \(assistant\) has no content; give it a text, or remove/,
      );
    }
    const calls = { role: 'assistant', content: null, tool_calls: [{ name: 'add' }] };
    expect(shown(chat([user, calls]))).toBe('<start>user\nhi<end>\n<start>assistant\n[<end>]\n');
  });

  it('does not supervise an empty answer', () => {
    const messages = [user, { role: 'assistant', content: '' }, user];
    const example = chat([...messages, { role: 'assistant', content: 'ok' }]);
    expect(shown(example).match(/\[/g)).toHaveLength(1);
    expect(shown(example)).toContain('[ok<end>]');
    expect(example.emptyAnswers).toBe(1);
    expect(supervisedCount(chat(messages))).toBe(0);
  });
});
