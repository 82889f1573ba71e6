// The chat program: lines of a pipe and of a terminal, what can be typed, interrupts, and errors after which it goes on.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { kCommands } from '../../lib/cli/commands.ts';
import { runCli } from '../../lib/cli/program.ts';
import { generate } from '../../lib/generate/generate.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import type { ChatMessage } from '../../lib/text/chat_template.ts';
import { chatTokenizer, writeChatModel } from '../support/chat_model.ts';
import { balora } from '../support/run_cli.ts';
import { disturb } from '../support/tiny_adapters.ts';

const tokenizer = chatTokenizer();
const folder = mkdtempSync(join(tmpdir(), 'balora-cli-chat-'));
const path = join(folder, 'model');
const adapterPath = join(folder, 'adapter');
const base = ['chat', '--model', path, '--max-new-tokens', '8'];
let model: CausalLM;
let tuned: AdapterModel;
beforeAll(async () => {
  await writeChatModel(path);
  model = await AutoModelForCausalLM.fromPretrained(path);
  tuned = await AdapterModel.create(model, { r: 2 });
  disturb(tuned, 1, 0.05);
  await tuned.savePretrained(adapterPath);
});
afterAll(() => {
  tuned.dispose();
  model.dispose();
  rmSync(folder, { recursive: true, force: true });
});

/** The answers to messages that are sent one after the other. */
async function answers(
  contents: readonly string[],
  { system, adapter = null }: { system?: string; adapter?: string | null } = {},
): Promise<string[]> {
  const first = system === undefined ? [] : [{ role: 'system', content: system }];
  const messages: ChatMessage[] = [...first];
  const texts: string[] = [];
  for (const content of contents) {
    messages.push({ role: 'user', content });
    const [result] = await generate(tuned, {
      ...{ tokenizer, messages, adapter, maxNewTokens: 8 },
    }).result;
    const text = result?.text as string;
    messages.push({ role: 'assistant', content: text });
    texts.push(text);
  }
  return texts;
}

/** Runs the program with lines that come through a pipe. */
function pipe(lines: readonly string[], more: readonly string[] = []): ReturnType<typeof balora> {
  const stdin = new PassThrough();
  stdin.end(lines.map((line) => `${line}\n`).join(''));
  return balora([...base, ...more], { stdin });
}

const shown = (texts: readonly string[]): string =>
  texts.map((text) => (text.endsWith('\n') ? text : `${text}\n`)).join('');

describe('balora chat', () => {
  it('answers the lines of a pipe in one conversation', async () => {
    const lines = ['What is the state of the Union?', '', 'And the navy?'];
    const { code, out, err } = await pipe(
      [...lines, '/exit', 'not read'],
      ['--system', 'Be brief.'],
    );
    expect(out).toBe(
      shown(await answers([lines[0] as string, lines[2] as string], { system: 'Be brief.' })),
    );
    expect(err).toBe(
      'stopped after 8 tokens; --max-new-tokens sets how many there may be\n'.repeat(2),
    );
    expect(code).toBe(0);
  });

  it('has commands', async () => {
    const lines = [
      ...['one', '/adapter off', 'two', '/adapter on', '/reset', 'one', '/system Be kind.', 'two'],
      ...['/system', '/adapter', '/help', '/what', '//etc'],
    ];
    const { code, out, err } = await pipe(lines, ['--adapter', adapterPath]);
    const [first] = await answers(['one'], { adapter: 'default' });
    const parts = out.split('\n');
    expect(parts[0]).toBe(first);
    expect(parts[2]).toBe(first);
    const notes = err.split('\n').filter((line) => !line.startsWith('stopped after'));
    expect(notes.slice(0, 6)).toEqual([
      'the model before tuning answers',
      'the adapter answers',
      'the conversation begins anew',
      'the system message is set',
      'there is no system message',
      '/adapter is followed by on or off',
    ]);
    expect(err).toMatch(/\/reset +begin the conversation anew/);
    expect(err).toContain('error: there is no /what; /help lists what can be typed');
    expect(code).toBe(1); // since a line was not understood
  });

  it('says that there is no adapter', async () => {
    const { code, err } = await pipe(['/adapter off']);
    expect(err).toBe('there is no adapter; start with --adapter FOLDER\n');
    expect(code).toBe(0);
  });

  it('goes on after a message that is too long', async () => {
    const { code, out, err } = await pipe(['whale '.repeat(600), 'two']);
    expect(err).toMatch(
      /^error: the conversation would have \d+ tokens, and the context of this model has 512, .*; \/reset begins anew/,
    );
    expect(out).toBe(shown(await answers(['two'])));
    expect(code).toBe(1);
  });

  it('says when the context is full', async () => {
    const { err } = await pipe(['whale '.repeat(164)], ['--max-new-tokens', '400']);
    expect(err).toBe('the context of 512 tokens is full; /reset begins anew\n');
  });

  it.each<[string[], string, number]>([
    [['--temperature', '0', '--do-sample'], '--temperature 0 is greedy decoding', 2],
    [['--num-return-sequences', '2'], 'unknown option', 2],
    [['--stop-strings', ''], '--stop-strings must be a text that is not empty', 2],
    [['--system-prompt', 'a'], 'unknown option --system-prompt (did you mean "--system"?)', 2],
  ])('refuses %j', async (more, message, expected) => {
    const { code, err } = await pipe(['one'], more);
    expect(err).toContain(message);
    expect(code).toBe(expected);
  });

  it('needs a chat template', async () => {
    const stdin = new PassThrough();
    stdin.end('one\n');
    const demo = 'examples/demo/checkpoint';
    const { code, err } = await balora(['chat', '--model', demo], { stdin });
    expect(err).toContain('error: chat: the model has no chat template');
    expect(code).toBe(2);
  });
});

describe('an interrupt of balora chat', () => {
  it('stops the answer, and one between answers the program', async () => {
    const stdin = new PassThrough();
    stdin.write('one\n');
    let isStopped = false;
    const running = balora([...base, '--max-new-tokens', '400'], {
      stdin,
      onOut: (out) => {
        if (isStopped || out === '') return;
        isStopped = true;
        process.emit('SIGINT', 'SIGINT');
      },
      onErr: (err) => {
        if (err !== 'stopped\n') return;
        // It is ready for the next line; the second signal of one key press has no effect.
        process.emit('SIGINT', 'SIGINT');
        setTimeout(() => process.emit('SIGINT', 'SIGINT'), 400);
      },
    });
    const { code, out, err } = await running;
    expect(err).toBe('stopped\n');
    expect(out.length).toBeGreaterThan(1);
    expect(code).toBe(130);
  });

  it('that is no Ctrl-C ends it, also within an answer', async () => {
    const stdin = new PassThrough();
    stdin.write('one\ntwo\n');
    const before = process.listenerCount('SIGTERM');
    let sent = false;
    const { code } = await balora([...base, '--max-new-tokens', '400'], {
      stdin,
      onOut: (out) => {
        if (sent || out === '') return;
        sent = true;
        process.emit('SIGTERM', 'SIGTERM');
      },
    });
    expect(code).toBe(143);
    expect(process.listenerCount('SIGTERM')).toBe(before);
  });

  it('quits at once where the answer does not stop', async () => {
    const exit = vi.spyOn(process, 'exit').mockImplementation((() => {}) as never);
    const stdin = new PassThrough();
    stdin.write('one\n');
    let sent = false;
    await balora([...base, '--max-new-tokens', '400'], {
      stdin,
      onOut: (out) => {
        if (sent || out === '') return;
        sent = true;
        process.emit('SIGINT', 'SIGINT');
        process.emit('SIGTERM', 'SIGTERM');
        stdin.end();
      },
    });
    expect(exit).toHaveBeenCalledExactlyOnceWith(143);
    exit.mockRestore();
  });
});

describe('on a terminal', () => {
  /** Runs the program on a terminal on which keys are pressed when it shows its prompt for the n-th time. */
  async function type(keys: readonly string[]): ReturnType<typeof balora> {
    const stdin = Object.assign(new PassThrough(), { isTTY: true, setRawMode: () => stdin });
    const stdout = Object.assign(new PassThrough(), { isTTY: true, columns: 80 });
    let [out, err, next] = ['', '', 0];
    stdout.setEncoding('utf8').on('data', (text: string) => {
      out += text;
      if (next < keys.length && out.split('> ').length > next + 1) stdin.write(keys[next++]);
    });
    const stderr = { write: (text: string) => (err += text) };
    const code = await runCli(base, { stdin, stdout, stderr }, async () => kCommands);
    return { code, out, err };
  }

  it('lines are edited, several may be pasted, and Ctrl-D leaves', async () => {
    const { code, out, err } = await type([
      ...['onx\u007fe\r', '/system Be kind.\r/system\r/he', 'lp\r', '\u0004'],
    ]);
    expect(err).toContain('/help lists what can be typed; Ctrl-C stops an answer\n');
    expect(err).toContain('the system message is set\nthere is no system message\n');
    expect(err).toContain('begin the conversation anew');
    const [answer] = await answers(['one']);
    expect(out).toContain(answer);
    expect(out.endsWith('\n')).toBe(true);
    expect(code).toBe(0);
  });

  it('Ctrl-C clears a line, and leaves on an empty one', async () => {
    const { code, out, err } = await type(['some text\u0003\u0003']);
    expect(err).toBe('/help lists what can be typed; Ctrl-C stops an answer\n');
    expect(out.endsWith('\n')).toBe(true);
    expect(code).toBe(130);
  });
});
