// The exit codes of the command line: one list, which the page shows and every command keeps.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { EXIT, EXIT_CODES } from '../../lib/cli/exit_codes.ts';
import { demoCheckpoint } from '../../lib/models/index.ts';
import { balora } from '../support/run_cli.ts';

let folder: string;
let [missing, odd, data, output] = ['', '', '', ''];
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-exit-'));
  [missing, odd, data, output] = ['missing', 'odd', 'rows.jsonl', 'out'].map((name) =>
    join(folder, name),
  ) as [string, string, string, string];
  writeFileSync(data, '{"prompt": "a", "response": "b"}\n');
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

it('are those of the page', () => {
  const page = readFileSync('docs/command-line.md', 'utf8');
  const found: Record<string, number> = {};
  for (const [, code, errors] of page.matchAll(/^\| (\d) \| .* \| (.*) \|$/gm)) {
    for (const [, name] of (errors as string).matchAll(/`(ERR_\w+)`/g)) {
      found[name as string] = Number(code);
    }
  }
  expect(found).toEqual(EXIT_CODES);
});

it.each([
  'train',
  'calibrate',
  'evaluate',
  'generate',
  'chat',
  'serve',
  'merge',
  'export',
  'convert',
  'quantize',
])('a model of a type that is not known is a failure of %s', async (name) => {
  mkdirSync(odd, { recursive: true });
  writeFileSync(join(odd, 'config.json'), '{"model_type": "unheard-of"}');
  const own: Readonly<Record<string, string[]>> = {
    train: ['--data', data, '--prompt-template', 'none'],
    calibrate: [
      ...['--data', data, '--prompt-template', 'none', '--method', 'eva', '--calibration', output],
    ],
    evaluate: ['--data', data, '--prompt-template', 'none'],
    generate: ['--prompt', 'a'],
    chat: [],
    serve: ['--port', '0'],
    merge: ['--adapter', missing, '--output', output],
    export: ['--output', output, '--to', 'safetensors'],
    convert: ['--adapter', missing, '--rank', '2', '--output', output],
    quantize: ['--output', output],
  };
  const { code, err } = await balora([name, '--model', odd, ...(own[name] as string[])]);
  expect(code, err).toBe(EXIT_CODES.ERR_UNSUPPORTED);
});

describe('a missing file', () => {
  const model = ['--model', demoCheckpoint];
  const plain = ['--prompt-template', 'none'];
  const commands: Readonly<Record<string, (its: Record<string, string>) => string[]>> = {
    train: (its) => [...model, '--data', data, ...plain, '--max-steps', '1', ...flags(its)],
    calibrate: (its) => [
      ...[...model, '--data', data, ...plain, '--method', 'eva', '--calibration', output],
      ...flags(its),
    ],
    evaluate: (its) => [...model, '--data', data, ...plain, ...flags(its)],
    generate: (its) => [...model, '--prompt', 'a', '--raw', ...flags(its)],
    chat: (its) => [...model, ...flags(its)],
    merge: (its) => [...model, '--output', output, ...flags(its)],
    export: (its) => [...model, '--output', output, ...flags(its)],
    convert: (its) => [...model, '--rank', '2', '--output', output, ...flags(its)],
    quantize: (its) => [...model, '--output', output, ...flags(its)],
    inspect: (its) => [demoCheckpoint, ...flags(its)],
  };
  const flags = (its: Record<string, string>) =>
    Object.entries(its).flatMap(([name, value]) => [`--${name}`, value]);
  const having: Readonly<Record<string, readonly string[]>> = {
    data: ['train', 'calibrate', 'evaluate', 'inspect'],
    adapter: ['train', 'evaluate', 'generate', 'chat', 'merge', 'export', 'convert'],
  };

  it.each(
    Object.entries(having).flatMap(([option, names]) =>
      names.map((name) => [option, name] as const),
    ),
  )('for --%s of %s is a failure', async (option, name) => {
    const args = commands[name]?.({ [option]: missing }) as string[];
    const { code, err } = await balora([name, ...args]);
    expect([code, err.includes(missing)], err).toEqual([EXIT_CODES.ERR_FORMAT, true]);
  });
});

describe('balora push', () => {
  beforeEach(() => {
    vi.stubEnv('HF_TOKEN', 'hf_x');
    vi.stubEnv('HF_ENDPOINT', 'http://127.0.0.1:9'); // where nobody listens
  });
  afterEach(() => vi.unstubAllEnvs());
  const push = async (from: string, ...args: string[]) => {
    const { code, err } = await balora(['push', from, ...args]);
    return { code, err };
  };

  it.each([
    ['no repository', 'usage', (own: string) => [own]],
    ['a repository of no owner', 'usage', (own: string) => [own, '--repo', 'tuned']],
    ['an option that is not known', 'usage', (own: string) => [own, '--repo', 'm/t', '--x']],
    ['a server that does not answer', 'failure', (own: string) => [own, '--repo', 'm/t']],
  ] as const)('with %s is %s', async (_, kind, args) => {
    const own = join(folder, 'pushed');
    mkdirSync(own, { recursive: true });
    writeFileSync(join(own, 'README.md'), 'mine');
    const [from, ...rest] = args(own) as [string, ...string[]];
    const { code, err } = await push(from, ...rest);
    expect(code, err).toBe(EXIT[kind]);
    expect(err).toContain('error: ');
  });

  it('of a link that leads out of the folder is a failure', async () => {
    const own = join(folder, 'linked');
    mkdirSync(own);
    symlinkSync(data, join(own, 'key'));
    const { code, err } = await push(own, '--repo', 'm/t');
    expect(code, err).toBe(EXIT_CODES.ERR_FORMAT);
  });
});

it('balora schema succeeds, and is wrong usage with an option', async () => {
  const { code, out } = await balora(['schema']);
  expect([code, JSON.parse(out).title]).toEqual([EXIT.success, 'Options of balora train']);
  expect((await balora(['schema', '--model', 'm'])).code).toBe(EXIT.usage);
});

it('calibrate with a method that reads no data is wrong usage', async () => {
  const { code, err } = await balora([
    ...['calibrate', '--model', demoCheckpoint, '--data', data, '--prompt-template', 'none'],
    ...['--method', 'pissa', '--calibration', output],
  ]);
  expect(code, err).toBe(EXIT.usage);
  expect(err).toContain('calibrate needs a start that is computed from data');
});

describe('a path where nothing is', () => {
  const owned: Readonly<Record<string, (out: string) => string[]>> = {
    train: () => ['--data', data, '--prompt-template', 'none'],
    evaluate: () => ['--data', data, '--prompt-template', 'none'],
    generate: () => ['--prompt', 'a'],
    chat: () => [],
    serve: () => ['--port', '0'],
    export: (out) => ['--output', out, '--to', 'safetensors'],
    quantize: (out) => ['--output', out],
  };

  it.each(
    Object.keys(owned).flatMap((name) =>
      ['./missing/model', '/missing/model', 'missing', './missing/model.gguf'].map(
        (path) => [path, name] as const,
      ),
    ),
  )('%s as --model of %s is a failure', async (path, name) => {
    const args = owned[name]?.(output) as string[];
    const { code, err } = await balora([name, '--model', path, ...args]);
    expect(err).toMatch(
      `error: "${path}" is no file or folder here, and no model id (owner/name) either; check the spelling\n`,
    );
    expect(code).toBe(EXIT_CODES.ERR_FORMAT);
  });

  it('is a failure of inspect', async () => {
    const { code, err } = await balora(['inspect', './missing/model']);
    expect(err).toMatch('error: "./missing/model" is no file or folder here, and no model id');
    expect(code).toBe(EXIT_CODES.ERR_FORMAT);
  });

  it('as --config is a failure', async () => {
    const { code, err } = await balora(['train', '--config', missing]);
    expect(err).toBe(
      `error: cannot read the configuration ${missing}: no such file; check the path\n`,
    );
    expect(code).toBe(EXIT_CODES.ERR_FORMAT);
  });

  it('as the folder or the file of a task is a failure', async () => {
    const scored = (tasks: string, folder: string) =>
      balora(['evaluate', '--model', demoCheckpoint, '--tasks', tasks, '--data', folder]);
    const noFolder = await scored('mmlu', missing);
    expect(noFolder.err).toBe(
      `error: ${missing}: no such folder; check the path, or name the file: mmlu=FILE\n`,
    );
    expect(noFolder.code).toBe(EXIT_CODES.ERR_FORMAT);
    const noTask = await scored(`${missing}.yaml`, folder);
    expect(noTask.err).toBe(
      `error: cannot read the task ${missing}.yaml: no such file; check the path\n`,
    );
    expect(noTask.code).toBe(EXIT_CODES.ERR_FORMAT);
    // A folder that is there, without a file of the task, is a wrong use of it.
    const empty = await scored('mmlu', folder);
    expect(empty.err).toMatch(/has no items of the task mmlu/);
    expect(empty.code).toBe(EXIT_CODES.ERR_ARGUMENT);
  });
});
