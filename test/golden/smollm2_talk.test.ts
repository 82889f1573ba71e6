// A model that balora has tuned on GSM8K gives the same greedy tokens in f32 in each way of talking to it: generate(), a conversation,
// balora chat and the server, in a second turn, too.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import OpenAI from 'openai';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { openChat } from '../../lib/generate/chat.ts';
import { generate } from '../../lib/generate/generate.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { openServer } from '../../lib/serve/server.ts';
import type { ChatMessage } from '../../lib/text/chat_template.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { balora } from '../support/run_cli.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

const kModel = 'models/smollm2-135m-instruct-gguf';
const kData = 'data/gsm8k/train.jsonl';
const kNewTokens = 24;

const folder = mkdtempSync(join(tmpdir(), 'balora-talk-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

describeShared('SmolLM2-135M tuned on GSM8K', [kModel, kData], () => {
  const model = sharedPath(kModel);
  const adapter = join(folder, 'run');
  const questions: string[] = [];

  beforeAll(async () => {
    const rows = readFileSync(sharedPath(kData), 'utf8')
      .split('\n', 6)
      .map((line) => JSON.parse(line) as { question: string; answer: string });
    const messages = rows.map(({ question, answer }) => ({
      messages: [
        { role: 'user', content: question },
        { role: 'assistant', content: answer },
      ],
    }));
    questions.push(rows[4]?.question as string, 'And twice as many?');
    const data = join(folder, 'gsm8k.jsonl');
    writeFileSync(data, messages.map((row) => `${JSON.stringify(row)}\n`).join(''));
    const { code, err } = await balora([
      ...['train', '--model', model, '--data', data, '--method', 'lora', '--r', '2'],
      ...['--learning-rate', '2e-3', '--max-steps', '4', '--per-device-train-batch-size', '1'],
      ...['--output', adapter],
    ]);
    expect(code, err).toBe(0);
  });

  it('answers in each way with the same tokens', { timeout: 900_000 }, async () => {
    using base = await AutoModelForCausalLM.fromPretrained(model, { dtype: 'f32' });
    const tokenizer = await Tokenizer.fromPretrained(model);
    const tuned = await AdapterModel.fromPretrained(base, adapter);
    const own = { tokenizer, maxNewTokens: kNewTokens };

    // generate() on the whole conversation at every turn.
    const messages: ChatMessage[] = [];
    const expected: { text: string; tokens: readonly number[] }[] = [];
    for (const content of questions) {
      messages.push({ role: 'user', content });
      const [result] = await generate(tuned, { ...own, messages }).result;
      const { text, tokens } = result as { text: string; tokens: readonly number[] };
      messages.push({ role: 'assistant', content: text });
      expected.push({ text, tokens });
    }
    // The adapter has an effect.
    const first = [{ role: 'user', content: questions[0] as string }];
    const [before] = await generate(tuned, { ...own, messages: first, adapter: null }).result;
    expect(before?.tokens).not.toEqual(expected[0]?.tokens);

    const chat = openChat(tuned, own);
    for (const [turn, content] of questions.entries()) {
      const { tokens, cachedTokens } = await chat.send(content).result;
      expect(tokens, `turn ${turn} of the conversation`).toEqual(expected[turn]?.tokens);
      expect(cachedTokens > 0).toBe(turn > 0);
    }
    chat.dispose();

    const server = await openServer({
      ...{ host: '127.0.0.1', port: 0, apiKey: null, maxConcurrent: 2, maxWaiting: 2 },
    });
    server.serve({
      ...{ generator: tuned, model: base, tokenizer },
      models: [{ id: 'gsm8k', adapter: 'default' }],
    });
    const client = new OpenAI({ apiKey: 'none', baseURL: `${server.url}/v1` });
    for (const turn of [0, 1]) {
      const { choices } = await client.chat.completions.create({
        ...{ model: 'gsm8k', max_completion_tokens: kNewTokens, logprobs: true },
        messages: messages.slice(0, 2 * turn + 1) as never,
      });
      const bytes = choices[0]?.logprobs?.content?.flatMap((token) => token.bytes ?? []);
      const wanted = expected[turn]?.tokens.flatMap((id) => [...tokenizer.tokenBytes(id)]);
      expect(bytes, `turn ${turn} by the server`).toEqual(wanted);
      expect(choices[0]?.message.content).toBe(expected[turn]?.text);
    }
    await server.close();
    tuned.dispose();

    const stdin = new PassThrough();
    stdin.end(questions.map((question) => `${question}\n`).join(''));
    const { code, out } = await balora(
      [
        ...['chat', '--model', model, '--adapter', adapter],
        ...['--max-new-tokens', String(kNewTokens)],
      ],
      { stdin },
    );
    expect(code).toBe(0);
    expect(out).toBe(expected.map(({ text }) => `${text}\n`).join(''));
  });
});
