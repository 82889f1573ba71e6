// Conversations: every turn equals a generation of the whole conversation, computes only what is new, and goes back where the template
// changes what came before.
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { ArgumentError, UnsupportedError } from '../../lib/errors.ts';
import { type Chat, type ChatOptions, openChat } from '../../lib/generate/chat.ts';
import { generate } from '../../lib/generate/generate.ts';
import { ContextLengthError } from '../../lib/generate/prompts.ts';
import type { GeneratedText } from '../../lib/generate/sequence.ts';
import {
  AutoModelForCausalLM,
  AutoModelForSeq2SeqLM,
  type CausalLM,
  demoCheckpoint,
} from '../../lib/models/index.ts';
import { copy_, mul } from '../../lib/ops/index.ts';
import { memoryStats, synchronize } from '../../lib/runtime.ts';
import { noGrad, scope } from '../../lib/tensor.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { chatTokenizer } from '../support/chat_model.ts';
import { disturb } from '../support/tiny_adapters.ts';
import { TinyModel } from '../support/tiny_model.ts';
import { kTinyT5 } from '../support/tiny_seq2seq.ts';
import { tinyTokenizer } from '../support/tiny_tokenizer.ts';

const tokenizer = chatTokenizer();
const kAnswer = { maxNewTokens: 12 };
let model: CausalLM;
let tuned: AdapterModel;
beforeAll(async () => {
  model = await AutoModelForCausalLM.fromPretrained(demoCheckpoint, { dtype: 'f32' });
  tuned = await AdapterModel.create(model, { r: 2 });
  disturb(tuned, 1, 0.05);
});
afterAll(() => {
  tuned.dispose();
  model.dispose();
});

const open = (options: Partial<ChatOptions> = {}): Chat =>
  openChat(tuned, { tokenizer, ...kAnswer, ...options });

/** The answer that a generation of the whole conversation gives. */
async function fresh(
  { messages }: Chat,
  content: string,
  options: { adapter?: string | null; tokenizer?: Tokenizer } = {},
): Promise<GeneratedText> {
  const all = [...messages, { role: 'user', content }];
  const [result] = await generate(tuned, { tokenizer, messages: all, ...kAnswer, ...options })
    .result;
  return result as GeneratedText;
}

/** Sends a message, and compares the answer with {@link fresh}. */
async function sendAndCompare(
  chat: Chat,
  content: string,
  options: Parameters<typeof fresh>[2] = {},
): Promise<GeneratedText> {
  const expected = await fresh(chat, content, options);
  const before = chat.messages;
  const answer = chat.send(content);
  let text = '';
  for await (const token of answer) text += token.text;
  const result = await answer.result;
  expect(text).toBe(result.text);
  expect(result).toMatchObject({ text: expected.text, tokens: expected.tokens });
  expect(result.promptTokens).toBe(expected.promptTokens);
  expect(chat.messages).toEqual([
    ...before,
    { role: 'user', content },
    { role: 'assistant', content: text },
  ]);
  return result;
}

describe('a conversation', () => {
  it('gives what a generation of all its messages gives, and computes only what is new', async () => {
    const chat = open({ system: 'Be brief.' });
    const first = await sendAndCompare(chat, 'What is the state of the Union?');
    expect(first.cachedTokens).toBe(0);
    const after = chat.cachedTokens;
    expect(after).toBe(first.promptTokens + first.tokens.length - 1);
    const second = await sendAndCompare(chat, 'And the navy?');
    // The last token of an answer has never been an input.
    expect(second.cachedTokens).toBe(after);
    const third = await sendAndCompare(chat, 'Call me Ishmael.');
    expect(third.cachedTokens).toBe(second.promptTokens + second.tokens.length - 1);
    expect(third.promptTokens - third.cachedTokens).toBeLessThan(20);
    chat.dispose();
  });

  it('goes back to what is the same where the template changes what came before', async () => {
    // Only the beginning of answers before the last message stays, as with those that think aloud.
    const shortening = chatTokenizer(
      "{% for m in messages %}{{ m['role'] + ':' + (m['content'] if m['role'] == 'user' else m['content'][:9]) + '\n' }}" +
        '{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}',
    );
    const chat = open({ tokenizer: shortening });
    const own = { tokenizer: shortening };
    const first = await sendAndCompare(chat, 'What is the state of the Union?', own);
    expect(first.text.length).toBeGreaterThan(20);
    const second = await sendAndCompare(chat, 'And the navy?', own);
    expect(second.cachedTokens).toBeGreaterThanOrEqual(first.promptTokens);
    expect(second.cachedTokens).toBeLessThan(first.promptTokens + first.tokens.length - 1);
    // One that begins with the number of messages keeps nothing.
    const counting = chatTokenizer(
      `{{ messages | length }}${"{% for m in messages %} {{ m['content'] }}{% endfor %}"}`,
    );
    const other = open({ tokenizer: counting });
    await sendAndCompare(other, 'What is the state of the Union?', { tokenizer: counting });
    const changed = await sendAndCompare(other, 'And the navy?', { tokenizer: counting });
    expect(changed.cachedTokens).toBe(0);
    chat.dispose();
    other.dispose();
  });

  it('has a cache for each adapter, in which the turns that it missed are computed', async () => {
    const chat = open();
    expect(chat.adapter).toBe('default');
    const first = await sendAndCompare(chat, 'What is the state of the Union?');
    chat.adapter = null;
    const second = await sendAndCompare(chat, 'And the navy?', { adapter: null });
    expect(second.cachedTokens).toBe(0);
    chat.adapter = 'default';
    const third = await sendAndCompare(chat, 'And the army?');
    expect(third.cachedTokens).toBe(first.promptTokens + first.tokens.length - 1);
    const base = open({ adapter: null });
    const other = await base.send('What is the state of the Union?').result;
    expect(other.tokens).not.toEqual(first.tokens);
    expect(() => {
      chat.adapter = 'none';
    }).toThrow('there is no adapter "none"');
    chat.dispose();
    base.dispose();
  });

  it('refuses a misspelt role with the one that is meant, as a generation of messages does', () => {
    const messages = [
      { role: 'user', content: 'a' },
      { role: 'asistant', content: 'b' },
      { role: 'user', content: 'c' },
    ];
    const said = 'messages[1].role is "asistant", which is not known (did you mean "assistant"?)';
    expect(() => open({ messages })).toThrow(`chat: ${said}`);
    expect(() => generate(tuned, { tokenizer, messages, ...kAnswer })).toThrow(`generate: ${said}`);
  });

  it('takes another system message, and begins anew', async () => {
    const chat = open({
      messages: [
        { role: 'user', content: 'a' },
        { role: 'assistant', content: 'b' },
      ],
    });
    expect(chat.system).toBeNull();
    await sendAndCompare(chat, 'one');
    chat.system = 'Speak of whales.';
    const second = await sendAndCompare(chat, 'two');
    expect(second.cachedTokens).toBeLessThan(3);
    expect(chat.messages[0]).toEqual({ role: 'system', content: 'Speak of whales.' });
    chat.reset();
    expect(chat.cachedTokens).toBe(0);
    expect(chat.messages).toHaveLength(3);
    await sendAndCompare(chat, 'one');
    chat.system = null;
    expect(chat.messages[0]).toEqual({ role: 'user', content: 'a' });
    chat.dispose();
  });

  it('keeps what an answer has when it is stopped, and goes on', async () => {
    const chat = open({ maxNewTokens: 200 });
    const stop = new AbortController();
    const answer = chat.send('What is the state of the Union?', { signal: stop.signal });
    let count = 0;
    for await (const _ of answer) if (++count === 4) stop.abort();
    const stopped = await answer.result;
    expect(stopped).toMatchObject({ finishReason: 'abort' });
    expect(stopped.tokens.length).toBeLessThan(8);
    expect(chat.messages.at(-1)).toEqual({ role: 'assistant', content: stopped.text });
    for await (const _ of chat.send('And the navy?')) break;
    expect(chat.messages).toHaveLength(4);
    const expected = await fresh(chat, 'Go on.');
    const { tokens } = await openChat(tuned, {
      tokenizer,
      ...kAnswer,
      messages: chat.messages,
    }).send('Go on.').result;
    expect(tokens).toEqual(expected.tokens);
    // One that is stopped before its first token is as if it had not been asked for.
    const none = await chat.send('What?', { signal: AbortSignal.abort() }).result;
    expect(none).toMatchObject({ finishReason: 'abort', text: '' });
    expect(chat.messages).toHaveLength(4);
    chat.dispose();
  });

  it('draws others in its next turn, and the same in another conversation', async () => {
    const drawn = { temperature: 1, seed: 3 };
    const [one, two] = [open(drawn), open(drawn)];
    const [first] = await generate(tuned, {
      ...{ tokenizer, ...kAnswer, ...drawn, messages: [{ role: 'user', content: 'Hear!' }] },
    }).result;
    for (const chat of [one, two]) {
      expect((await chat.send('Hear!').result).tokens).toEqual(first?.tokens);
    }
    const second = await one.send('Hear!').result;
    expect((await two.send('Hear!').result).tokens).toEqual(second.tokens);
    one.reset();
    expect((await one.send('Hear!').result).tokens).toEqual(first?.tokens);
    one.dispose();
    two.dispose();
  });

  it('frees its memory', async () => {
    await synchronize();
    const before = memoryStats().byTag['kv cache'] ?? 0;
    const chat = open();
    await chat.send('one').result;
    expect(chat.cacheBytes).toBeGreaterThan(0);
    chat.dispose();
    chat.dispose();
    await synchronize();
    expect(memoryStats().byTag['kv cache'] ?? 0).toBe(before);
    expect(() => chat.send('two')).toThrow('chat: it has been disposed of');
  });

  it('is had with a model of one’s own, which keeps nothing', async () => {
    const own = new TinyModel({ vocabulary: 262 });
    const chat = openChat(own, { tokenizer: tinyTokenizer(), maxNewTokens: 4 });
    for (const content of ['a', 'b']) {
      const messages = [...chat.messages, { role: 'user', content }];
      const [expected] = await generate(own, {
        ...{ tokenizer: tinyTokenizer(), messages, maxNewTokens: 4 },
      }).result;
      expect(await chat.send(content).result).toMatchObject({
        tokens: expected?.tokens,
        cachedTokens: 0,
      });
    }
    chat.dispose();
    own.dispose();
  });
});

describe('an error', () => {
  it('for a conversation that is too long leaves it as it was', async () => {
    const chat = open();
    await sendAndCompare(chat, 'one');
    const { messages, cachedTokens } = chat;
    const answer = chat.send('whale '.repeat(600));
    await expect(answer.result).rejects.toThrow(ContextLengthError);
    await expect(
      (async () => {
        for await (const _ of answer) expect.unreachable();
      })(),
    ).rejects.toThrow(
      /^chat: the conversation with this message has \d+ tokens, but the context of this llama model has 512, .*reset\(\)/,
    );
    expect(chat.messages).toEqual(messages);
    expect(chat.cachedTokens).toBe(cachedTokens);
    await sendAndCompare(chat, 'two');
    chat.dispose();
  });

  it('for logits that are NaN leaves the conversation, and forgets the cache', async () => {
    using own = await AutoModelForCausalLM.fromPretrained(demoCheckpoint, { dtype: 'f32' });
    const spoilt = await AdapterModel.create(own, { r: 2 });
    const chat = openChat(spoilt, { tokenizer, ...kAnswer });
    const first = await chat.send('one').result;
    for (const { tensor: parameter } of spoilt.parameters()) {
      scope(() => noGrad(() => copy_(parameter, mul(parameter, Number.NaN))));
    }
    await expect(chat.send('two').result).rejects.toMatchObject({ code: 'ERR_NOT_FINITE' });
    expect(chat.messages).toHaveLength(2);
    chat.adapter = null;
    expect((await chat.send('two').result).finishReason).not.toBe('abort');
    expect(first.tokens.length).toBeGreaterThan(0);
    chat.dispose();
    spoilt.dispose();
  });

  it('tells of a template that refuses the messages, or does not end', async () => {
    const refusing = chatTokenizer(
      "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}x",
    );
    const chat = open({ tokenizer: refusing, system: 'a' });
    await expect(chat.send('b').result).rejects.toThrow(/it refuses the messages \(.*no system/);
    chat.dispose();
    const looping = chatTokenizer(
      '{% for i in range(10**7) %}{% for j in range(10**7) %}x{% endfor %}{% endfor %}',
    );
    const endless = open({ tokenizer: looping });
    await expect(endless.send('b').result).rejects.toMatchObject({ code: 'ERR_FORMAT' });
    endless.dispose();
    const empty = open({ tokenizer: chatTokenizer('{{ "" }}') });
    await expect(empty.send('b').result).rejects.toThrow('has no tokens');
    empty.dispose();
  });

  it('comes at once for what is wrong', async () => {
    const plain = await Tokenizer.fromPretrained(demoCheckpoint);
    const bad =
      (options: object): (() => Chat) =>
      () =>
        open(options as ChatOptions);
    expect(bad({ tokenizer: undefined })).toThrow("chat: it needs the model's tokenizer");
    expect(bad({ tokenizer: plain })).toThrow('chat: the model has no chat template');
    expect(bad({ system: '' })).toThrow('chat: system must be a text that is not empty, or null');
    expect(bad({ batchSize: 2 })).toThrow('chat: it has one answer at a time; leave batchSize out');
    expect(bad({ stopStrings: '' })).toThrow('stopStrings must be a text that is not empty');
    expect(bad({ temp: 1 })).toThrow(ArgumentError);
    expect(bad({ adapter: 'none' })).toThrow('there is no adapter "none"');
    expect(bad({ adapter: 7 })).toThrow('chat: adapter must be text or null, got 7');
    for (const messages of [null, 'a', [7]]) {
      expect(bad({ messages })).toThrow('chat: messages must be a list of messages');
    }
    using t5 = await AutoModelForSeq2SeqLM.fromPretrained(kTinyT5);
    expect(() => openChat(t5 as never, { tokenizer })).toThrow(UnsupportedError);
    const chat = open();
    expect(() => chat.send('')).toThrow('chat: the message must be a text that is not empty');
    expect(() => chat.send('a', { signal: 7 as never })).toThrow('chat: signal must be');
    expect(() => {
      chat.adapter = 7 as never;
    }).toThrow('chat: adapter must be text or null, got 7');
    const running = chat.send('a');
    for (const act of [() => chat.send('b'), () => chat.reset(), () => chat.dispose()]) {
      expect(act).toThrow('chat: the answer before has not ended');
    }
    await running.result;
    chat.dispose();
  });
});
