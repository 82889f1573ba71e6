// The exit codes of the command line: one list, which the page shows and every command keeps.
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { EXIT_CODES } from '../../lib/cli/exit_codes.ts';
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
    data: ['train', 'evaluate', 'inspect'],
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
