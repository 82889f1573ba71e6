// The server as a command: adapters as models, its start, its log, and its end by a signal.
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { generate } from '../../lib/generate/generate.ts';
import { AutoModelForCausalLM, type CausalLM, demoCheckpoint } from '../../lib/models/index.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { balora } from '../support/run_cli.ts';
import { disturb } from '../support/tiny_adapters.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-cli-serve-'));
const base = ['serve', '--model', demoCheckpoint, '--port', '0'];
let model: CausalLM;
let tuned: AdapterModel;
beforeAll(async () => {
  model = await AutoModelForCausalLM.fromPretrained(demoCheckpoint);
  tuned = await AdapterModel.create(model, { r: 2 });
  disturb(tuned, 1, 0.05);
  await tuned.savePretrained(join(folder, 'first'));
  disturb(tuned, 50, 0.05);
  await tuned.savePretrained(join(folder, 'second'));
});
afterAll(() => {
  tuned.dispose();
  model.dispose();
  rmSync(folder, { recursive: true, force: true });
});

/** Runs the server while `use` sends requests to it, and stops it. */
async function serving(
  more: readonly string[],
  use: (url: string) => Promise<void>,
): ReturnType<typeof balora> {
  let using: Promise<void> | null = null;
  const run = balora([...base, ...more], (err) => {
    const [, url] = /ready at (\S+)/.exec(err) ?? [];
    if (url === undefined || using !== null) return;
    using = use(url).finally(() => process.emit('SIGTERM', 'SIGTERM'));
    using.catch(() => {});
  });
  const result = await run;
  await using;
  return result;
}

describe('balora serve', () => {
  it('serves the model and its adapters by their names', async () => {
    const tokenizer = await Tokenizer.fromPretrained(demoCheckpoint);
    const adapters = [
      '--adapter',
      `one=${join(folder, 'first')}`,
      '--adapter',
      join(folder, 'second'),
    ];
    const before = process.listenerCount('SIGTERM');
    const { code, err } = await serving(
      [...adapters, '--served-model-name', 'base'],
      async (url) => {
        const list = await (await fetch(`${url}/models`)).json();
        expect((list as { data: { id: string }[] }).data.map(({ id }) => id)).toEqual([
          ...['base', 'one', 'second'],
        ]);
        const complete = async (name: string): Promise<unknown> => {
          const response = await fetch(`${url}/completions`, {
            ...{ method: 'POST', headers: { 'Content-Type': 'application/json' } },
            body: JSON.stringify({ model: name, prompt: 'Call me', max_tokens: 8 }),
          });
          const { choices } = (await response.json()) as { choices: { text: string }[] };
          return choices[0]?.text;
        };
        const [second] = await generate(tuned, { tokenizer, prompt: 'Call me', maxNewTokens: 8 })
          .result;
        const [own] = await generate(tuned, {
          tokenizer,
          prompt: 'Call me',
          maxNewTokens: 8,
          adapter: null,
        }).result;
        const found = [await complete('base'), await complete('one'), await complete('second')];
        expect(found[0]).toBe(own?.text);
        expect(found[2]).toBe(second?.text);
        expect(new Set(found).size).toBe(3);
      },
    );
    expect(err).toContain('models: base, one, second\n');
    expect(err).toMatch(
      /POST \/v1\/completions 200 {2}[\d.]+ s {2}one: \d+ prompt tokens, 8 new ones\n/,
    );
    expect(err).toContain('stopping (interrupt again to quit at once)\n');
    expect(code).toBe(0);
    expect(process.listenerCount('SIGTERM')).toBe(before);
  });

  it('takes its key from the environment', async () => {
    process.env.BALORA_API_KEY = 'secret';
    try {
      const { code } = await serving(['--host', '0.0.0.0'], async (url) => {
        const local = url.replace('0.0.0.0', '127.0.0.1');
        expect((await fetch(`${local}/models`)).status).toBe(401);
        const headers = { Authorization: 'Bearer secret' };
        expect((await fetch(`${local}/models`, { headers })).status).toBe(200);
      });
      expect(code).toBe(0);
    } finally {
      delete process.env.BALORA_API_KEY;
    }
  });

  it('names a port that is in use before it loads the model', async () => {
    const other = createServer();
    await new Promise<void>((resolve) => other.listen(0, '127.0.0.1', resolve));
    const { port } = other.address() as { port: number };
    const { code, err } = await balora([
      ...base,
      '--model',
      'no/such/model',
      '--port',
      String(port),
    ]);
    expect(err).toBe(
      `error: port ${port} of 127.0.0.1 is in use by another program; choose another one with --port\n`,
    );
    expect(code).toBe(2);
    other.close();
  });

  it.each<[string[], string]>([
    [
      ['--host', '0.0.0.0'],
      'at 0.0.0.0 other machines may reach the server, so that it needs a key',
    ],
    [['--api-key', ''], 'the API key must not be empty'],
    [['--port', '70000'], '--port must be a whole number >= 0 and <= 65535, got 70000'],
    [['--grace', '3000000'], '--grace must be a whole number >= 0 and <= 2147483, got 3000000'],
    [['--max-concurrent', '0'], '--max-concurrent must be a whole number >= 1'],
    [['--adapter', 'a=x', '--adapter', 'a=y'], '--adapter must be name=path, each name once'],
    [['--adapter', 'a=x', '--served-model-name', 'a'], 'two models have the name "a"'],
    [['--task', 'sequence-classification'], 'a classifier does not generate text'],
    [['--parallel', '2'], 'unknown option --parallel (did you mean "--max-concurrent"?)'],
  ])('refuses %j', async (more, message) => {
    const { code, err } = await balora([...base, ...more]);
    expect(err).toContain(message);
    expect(code).toBe(2);
  });

  it('ends where the model cannot be loaded', async () => {
    const { code, err } = await balora([...base, '--model', join(folder, 'none')]);
    expect(err).toContain('none');
    expect(code).not.toBe(0);
  });
});
