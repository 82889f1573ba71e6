import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { PromptTemplate } from '../../lib/data/prompt_template.ts';
import { generate } from '../../lib/generate/generate.ts';
import { AutoModelForCausalLM, type CausalLM, demoCheckpoint } from '../../lib/models/index.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { writeChatModel } from '../support/chat_model.ts';
import { balora } from '../support/run_cli.ts';
import { disturb } from '../support/tiny_adapters.ts';
import { writeTinySeq2Seq } from '../support/tiny_seq2seq.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-cli-generate-'));
const base = ['generate', '--model', demoCheckpoint, '--max-new-tokens', '8', '--threads', '1'];
let model: CausalLM;
let tokenizer: Tokenizer;
beforeAll(async () => {
  model = await AutoModelForCausalLM.fromPretrained(demoCheckpoint);
  tokenizer = await Tokenizer.fromPretrained(demoCheckpoint);
});
afterAll(() => {
  model.dispose();
  rmSync(folder, { recursive: true, force: true });
});

describe('balora generate', () => {
  it('writes the text of the library, and the speeds to stderr', async () => {
    const [expected] = await generate(model, { tokenizer, prompt: 'Call me', maxNewTokens: 8 })
      .result;
    const { code, out, err } = await balora([
      ...base,
      '--prompt',
      'Call me',
      '--raw',
      '--temperature',
      '0',
    ]);
    expect(code).toBe(0);
    expect(out).toBe(`${expected?.text}\n`);
    expect(err).toMatch(
      /\d+ prompt tokens \([\d.]+ tokens\/s\), 8 new tokens \([\d.]+ tokens\/s\), [\d.]+ MiB at most\n$/,
    );
  });

  it('prints JSON, of several texts as well', async () => {
    const args = [
      '--prompt',
      'Call me',
      '--raw',
      '--top-p',
      '0.9',
      '--num-return-sequences',
      '2',
      '--logprobs',
      '1',
    ];
    const { out } = await balora([...base, ...args, '--json', '--stop-strings', '["zzz", "qqq"]']);
    const results = JSON.parse(out);
    expect(results).toHaveLength(2);
    expect(results[0]).toMatchObject({
      finishReason: 'length',
      promptTokens: tokenizer.encode('Call me').length,
    });
    expect(results[0].tokens).toHaveLength(8);
    expect(results[0].logprobs).toHaveLength(8);
    expect(results[0].text).not.toBe(results[1].text);
    const plain = await balora([...base, ...args]);
    expect(plain.out).toBe(`--- 1 of 2\n${results[0].text}\n--- 2 of 2\n${results[1].text}\n`);
  });

  it('loads an adapter', async () => {
    const own = await AutoModelForCausalLM.fromPretrained(demoCheckpoint);
    const tuned = await AdapterModel.create(own, { r: 2 });
    disturb(tuned, 1, 0.5);
    const path = join(folder, 'adapter');
    await tuned.savePretrained(path);
    const [expected] = await generate(tuned, { tokenizer, prompt: 'Call me', maxNewTokens: 8 })
      .result;
    const { out } = await balora([...base, '--prompt', 'Call me', '--raw', '--adapter', path]);
    expect(out).toBe(`${expected?.text}\n`);
    const [before] = await generate(tuned, {
      tokenizer,
      prompt: 'Call me',
      maxNewTokens: 8,
      adapter: null,
    }).result;
    expect(before?.text).not.toBe(expected?.text);
    own.dispose();
  });

  it('puts the prompt into the template of the training', async () => {
    const file = join(folder, 'template.txt');
    writeFileSync(file, 'Q: {instruction}\nA:\n');
    const cases = [
      ['alpaca', new PromptTemplate('alpaca').fill({ prompt: 'Call me' }, 'prompt')],
      ['Ask: {prompt}\\n', 'Ask: Call me\n'],
      [file, 'Q: Call me\nA:'],
      ['Question: {question}', 'Question: Call me'],
      ['none', 'Call me'],
    ] as const;
    for (const [template, prompt] of cases) {
      const [expected] = await generate(model, { tokenizer, prompt, maxNewTokens: 8 }).result;
      const args = ['--prompt', 'Call me', '--prompt-template', template, '--json'];
      const { out } = await balora([...base, ...args]);
      const [result] = JSON.parse(out);
      expect(result.tokens).toEqual([...(expected?.tokens ?? [])]);
      expect(result.promptTokens).toBe(tokenizer.encode(prompt).length);
    }
  });

  it("uses the model's chat template unless another is named", async () => {
    const path = join(folder, 'chat-model');
    await writeChatModel(path);
    const counted = async (...args: string[]): Promise<number> => {
      const command = ['generate', '--model', path, '--max-new-tokens', '1', '--prompt', 'Call me'];
      const { out } = await balora([...command, '--json', ...args]);
      return JSON.parse(out)[0].promptTokens;
    };
    const chat = tokenizer.encode('user:Call me\nassistant:').length;
    expect(await counted()).toBe(chat);
    expect(await counted('--prompt-template', 'chat')).toBe(chat);
    const plain = tokenizer.encode('Call me').length;
    expect(plain).not.toBe(chat);
    expect(await counted('--prompt-template', 'none')).toBe(plain);
    expect(await counted('--raw')).toBe(plain);
  });

  it('answers with an encoder-decoder', async () => {
    const path = join(folder, 't5');
    await writeTinySeq2Seq(path);
    const args = [
      '--task',
      'seq2seq-lm',
      '--model',
      path,
      '--prompt',
      'the cat',
      '--max-new-tokens',
      '5',
      '--json',
    ];
    const { code, out } = await balora(['generate', ...args]);
    expect(code).toBe(0);
    expect(JSON.parse(out)[0]).toMatchObject({ promptTokens: 3 });
  });

  it.each<[string[], string]>([
    [
      ['--prompt', 'a', '--do-sample', '--temperature', '0'],
      '--temperature 0 is greedy decoding, which --do-sample excludes',
    ],
    [
      ['--prompt', 'a', '--no-do-sample', '--top-p', '0.5'],
      '--top-p would change nothing, since without --do-sample no token is drawn',
    ],
    [['--prompt', 'a', '--stop-strings', ''], '--stop-strings must be a text that is not empty'],
    [['--prompt', 'a', '--temp', '1'], 'unknown option --temp (did you mean "--temperature"?)'],
    [['--prompt', 'a', '--task', 'sequence-classification'], 'a classifier does not generate text'],
    [
      ['--prompt', 'a', '--raw', '--prompt-template', 'alpaca'],
      '--raw continues the prompt as it is, which leaves --prompt-template nothing to do',
    ],
    [
      ['--prompt', 'a', '--prompt-template', 'nowhere.txt'],
      'must be one of the names chat, alpaca, none, a text with a {field}, or a file',
    ],
    [
      ['--prompt', 'a', '--prompt-template', '{question} {input}'],
      'has the fields question, input, of which a prompt alone fills one',
    ],
    [['--prompt', 'a', '--prompt-template', 'chat'], 'has no chat template'],
    [[], '--prompt is required'],
  ])('refuses %j', async (args, message) => {
    const { code, err } = await balora([...base, ...args]);
    expect(err).toContain(message);
    expect(code).toBe(2);
  });
});
