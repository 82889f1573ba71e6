// Names and texts that would forge lines of a log or control a terminal, in each kind of file, through the readers and the front ends.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { readAdapterConfig } from '../../lib/adapters/peft_folder.ts';
import { runCli } from '../../lib/cli/program.ts';
import { Progress } from '../../lib/cli/progress.ts';
import { writeAnswer } from '../../lib/cli/terminal.ts';
import { openRows } from '../../lib/data/open_rows.ts';
import { PromptTemplate } from '../../lib/data/prompt_template.ts';
import type { Row } from '../../lib/data/rows.ts';
import { ArgumentError, BaloraError, errorFromCode } from '../../lib/errors.ts';
import { GgufFile } from '../../lib/io/gguf.ts';
import { readSafetensorsIndex, SafetensorsFile } from '../../lib/io/safetensors.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { type RequestLine, requestText } from '../../lib/serve/request_line.ts';
import { isPrintable } from '../../lib/shown.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { answers, scriptedServer, send } from '../support/api_server.ts';
import { balora } from '../support/run_cli.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';
import { tinyTokenizerConfig, tinyTokenizerJson } from '../support/tiny_tokenizer.ts';
import { writeGguf } from '../support/write_gguf.ts';

const kName = 'x\u001b[2J\u001b[32m\nerror: forged\u202e\u009b1m\u2028y';
const kForged = new RegExp(`[${'\u001b\u009b\u202e\u2028'}]|^error: forged`, 'm');
const folder = mkdtempSync(join(tmpdir(), 'balora-hostile-'));
const model = join(folder, 'model');
beforeAll(() => writeTinyCheckpoint(model));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** Writes a file into the folder. @returns its path */
function file(name: string, contents: string | Uint8Array): string {
  writeFileSync(join(folder, name), contents);
  return join(folder, name);
}

const json = (value: unknown): string => JSON.stringify(value);

/** A safetensors file with this header. */
function safetensors(header: object): string {
  const text = Buffer.from(json(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return file('x.safetensors', Buffer.concat([length, text]));
}

/** A folder with a file. */
function folderWith(name: string, contents: string): string {
  const at = mkdtempSync(join(folder, 'f-'));
  writeFileSync(join(at, name), contents);
  writeFileSync(join(at, 'model.safetensors'), '');
  return at;
}

/** A row of a data file. */
async function row(index: number, path: string): Promise<Row> {
  const rows = await openRows(path);
  try {
    return await rows.row(index);
  } finally {
    await rows.close();
  }
}

const readers: Record<string, () => unknown> = {
  'a tensor in safetensors': () => SafetensorsFile.open(safetensors({ [kName]: 5 })),
  'metadata in safetensors': () =>
    SafetensorsFile.open(safetensors({ __metadata__: { [kName]: 5 } })),
  'a tensor in GGUF': () => {
    const path = join(folder, 'x.gguf');
    writeGguf(path, {}, [{ name: kName, shape: [64], data: new Float32Array(1) }]);
    return GgufFile.open(path);
  },
  'an index of shards': () =>
    readSafetensorsIndex(file('index.json', json({ weight_map: { [kName]: 5 } }))),
  'config.json': () =>
    AutoModelForCausalLM.fromPretrained(folderWith('config.json', json({ model_type: kName }))),
  'config.json that is no JSON': () =>
    AutoModelForCausalLM.fromPretrained(folderWith('config.json', `{"model_type": ${kName}}`)),
  'adapter_config.json': () =>
    readAdapterConfig(folderWith('adapter_config.json', json({ peft_type: kName }))),
  'adapter_config.json that is no JSON': () =>
    readAdapterConfig(folderWith('adapter_config.json', `{"r": ${kName}}`)),
  'tokenizer.json': () =>
    Tokenizer.fromPretrained(folderWith('tokenizer.json', json({ model: { type: kName } }))),
  'tokenizer.json that is no JSON': () =>
    Tokenizer.fromPretrained(folderWith('tokenizer.json', `{"model": ${kName}}`)),
  'a chat template': () =>
    Tokenizer.fromJson(tinyTokenizerJson(), {
      ...tinyTokenizerConfig(),
      chat_template: `{{ raise_exception(${json(kName)}) }}`,
    }).encodeChat([{ role: 'user', content: 'x' }]),
  'JSON Lines': () => row(0, file('x.jsonl', `{"a": ${kName}}\n`)),
  'a list in JSON': () => row(1, file('x.json', `[{"a": "b"}, {"a": ${kName}]]}]`)),
  'a prompt template': () => new PromptTemplate(`{a\u001b[2J\u009b}`).fill({ b: 'x' }, 'b'),
  "a file's name": () => SafetensorsFile.open(join(folder, kName)),
  'an error of the addon': () => {
    throw errorFromCode('ERR_FORMAT', `${kName}: holds no tensor; take another`, kName);
  },
};

describe('the message of an error is one line of visible characters', () => {
  it.each(Object.entries(readers))('%s', async (_, read) => {
    const error: unknown = await (async () => read())().then(
      () => null,
      (thrown: unknown) => thrown,
    );
    expect(error).toBeInstanceOf(BaloraError);
    const { message, stack } = error as BaloraError;
    expect(message).toContain('\\u001b[2J');
    expect([isPrintable(message), message]).toEqual([true, message]);
    expect(stack).not.toMatch(kForged);
  });

  it('has further lines only where the library adds them', () => {
    const error = errorFromCode('ERR_NATIVE', `add: ${kName}\n  enqueued at f (x.ts:1)`);
    expect(error.message.split('\n')).toEqual([
      expect.stringContaining('add: x\\u001b[2J\\u001b[32m\\nerror: forged'),
      '  enqueued at f (x.ts:1)',
    ]);
    expect(new ArgumentError('a\nb', { lines: ['c\nd'] }).message).toBe('a\\nb\nc\\nd');
  });
});

describe('the command line', () => {
  it.each<[string, () => string[]]>([
    ['an error', () => ['inspect', join(folder, kName)]],
    ['a file of options', () => ['train', '--config', file('run.yaml', `${json(kName)}: 1\n`)]],
    ['an option', () => ['evaluate', '--model', kName, '--data', 'x']],
  ])('shows them in %s', async (_, args) => {
    const { code, err, out } = await balora(args());
    expect(code).not.toBe(0);
    expect(err).toContain('\\u001b[2J');
    expect(err + out).not.toMatch(kForged);
  });

  it.each([true, false])(
    'shows them in a table of tensors, each in its row (terminal: %s)',
    async (isTTY) => {
      const path = safetensors({ [kName]: { dtype: 'F32', shape: [0], data_offsets: [0, 0] } });
      vi.stubEnv('FORCE_COLOR', isTTY ? '1' : '0');
      vi.stubEnv('NO_COLOR', '');
      const { code, out } = await balora(['inspect', path], { isTTY });
      vi.unstubAllEnvs();
      expect([code, out.match(kForged)]).toEqual([0, null]);
      expect(out).toMatch(
        /^x\\u001b\[2J\\u001b\[32m\\nerror: forged\\u202e\\u009b1m\\u2028y +F32/m,
      );
    },
  );

  it('shows what is left of them in an error that is a bug, without forged calls', async () => {
    let err = '';
    const stderr = { write: (text: string) => (err += text) };
    const bug = () => Promise.reject(new TypeError(`${kName}\n    at forged (x.js:1:1)`));
    expect(await runCli([], { stdout: stderr, stderr }, bug)).toBe(1);
    expect(err).not.toMatch(kForged);
    expect(err).not.toMatch(/^ +at forged/m);
    expect(err).toMatch(/^error: TypeError: x\\u001b/);
  });

  it.each([true, false])('writes warnings and progress of one line (terminal: %s)', (isTTY) => {
    let all = '';
    const progress = new Progress({ write: (text) => (all += text), isTTY, columns: 200 });
    progress.warn(kName);
    progress.message(kName, kName);
    progress.status(kName);
    const own = all
      .replaceAll('\r\u001b[K', '')
      .replaceAll('\u001b[33mwarning:\u001b[39m', 'warning:');
    expect(own).not.toMatch(kForged);
    expect(own.split('\n')).toHaveLength(4);
  });

  it("gives a model's text to a pipe as it is, and to a terminal without what controls it", () => {
    const written = (isTTY: boolean): string => {
      let all = '';
      writeAnswer({ write: (text) => (all += text), isTTY }, `${kName}\u{1f468}\u200d\u{1f469}`);
      return all;
    };
    expect(written(false)).toBe(`${kName}\u{1f468}\u200d\u{1f469}`);
    expect(written(true)).toBe(
      'x\\u001b[2J\\u001b[32m\nerror: forged\\u202e\\u009b1m\u2028y\u{1f468}\u200d\u{1f469}',
    );
  });
});

describe('the server', () => {
  it('shows them in its log and in its answers', async () => {
    const lines: RequestLine[] = [];
    const { server } = await scriptedServer(answers('x'), {
      onRequest: (line) => lines.push(line),
    });
    try {
      const path = `/${encodeURIComponent(kName)}%20200%20%200.00%20s`;
      const bodies = [
        await send(server, path),
        await send(server, '/v1/completions', { body: { model: kName, prompt: 'x' } }),
        await send(server, '/v1/completions', { body: { model: 'tiny', prompt: 'x', [kName]: 1 } }),
      ];
      for (const { status, text } of bodies) {
        expect(status).toBeGreaterThanOrEqual(400);
        expect([isPrintable(text), text]).toEqual([true, text]);
        expect(isPrintable(JSON.parse(text).error.message)).toBe(true);
      }
      // The field for programs is as it was sent.
      expect(JSON.parse(bodies[2]?.text as string).error.param).toBe(kName);
    } finally {
      await server.close();
    }
    const log = lines.map(requestText);
    expect(log.map(isPrintable)).toEqual([true, true, true]);
    expect(log[0]).toMatch(/^GET \/x\\u001b\[2J\S* 404 {2}[\d.]+ s$/);
  });

  it('logs them as a command', async () => {
    let using: Promise<unknown> | null = null;
    const { err } = await balora(['serve', '--model', model, '--port', '0'], (text) => {
      const [, url] = /ready at (\S+)\/v1/.exec(text) ?? [];
      if (url === undefined || using !== null) return;
      using = fetch(`${url}/${encodeURIComponent(kName)}`).finally(() =>
        process.emit('SIGTERM', 'SIGTERM'),
      );
    });
    await using;
    expect(err).toMatch(/^GET \/x\\u001b\[2J\\u001b\[32m\\nerror:%20forged\S+ 404/m);
    expect(err).not.toMatch(kForged);
  });
});
