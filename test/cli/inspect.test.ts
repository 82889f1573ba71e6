import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { addInspect } from '../../lib/cli/inspect_command.ts';
import { runCli } from '../../lib/cli/program.ts';
import { tinyTokenizerConfig, tinyTokenizerJson } from '../support/tiny_tokenizer.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'balora-inspect-'));
  await writeFile(join(folder, 'tokenizer.json'), JSON.stringify(tinyTokenizerJson()));
  await writeFile(join(folder, 'tokenizer_config.json'), JSON.stringify(tinyTokenizerConfig()));
  await writeFile(join(folder, 'data.jsonl'), '{"q": "a", "a": "b"}\n{"q": "x", "a": "yz"}\n');
});
afterAll(() => rm(folder, { recursive: true }));

async function balora(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  let [out, err] = ['', ''];
  const code = await runCli(
    args,
    {
      stdout: { write: (text) => (out += text) },
      stderr: { write: (text) => (err += text) },
    },
    [addInspect],
  );
  return { code, out, err };
}

const kFields = ['--prompt-field', 'q', '--response-field', 'a', '--prompt-template', 'none'];

describe('balora inspect --data', () => {
  it('shows which tokens are supervised', async () => {
    const data = join(folder, 'data.jsonl');
    const { code, out } = await balora('inspect', folder, '--data', data, '--row', '1', ...kFields);
    expect(code).toBe(0);
    expect(out).toContain(`${data}:2 (q -> a): 4 tokens, 3 supervised`);
    const marks = out
      .trim()
      .split('\n')
      .slice(1)
      .map((line) => line.includes(' *  '));
    expect(marks).toEqual([false, true, true, true]);
  });

  it('tells what is cut off', async () => {
    const data = join(folder, 'data.jsonl');
    const args = ['--data', data, '--row', '1', '--max-length', '3', ...kFields];
    expect((await balora('inspect', folder, ...args)).out).toContain('2 supervised, 1 cut off');
  });
});

describe('exit codes', () => {
  it('0 for help and version, 2 for wrong use, 1 for damaged files', async () => {
    expect(await balora('--version')).toMatchObject({ code: 0 });
    const help = await balora('inspect', '--help');
    expect(help.code).toBe(0);
    expect(help.out).toMatch(/--max-length <n> +tokens of an example.*\(default: 512\)/s);
    const unknown = await balora('inspekt');
    expect(unknown.code).toBe(2);
    expect(unknown.err).toMatch(/unknown command 'inspekt'/);
    const missing = await balora('inspect', folder, '--data', join(folder, 'none.jsonl'));
    expect(missing).toMatchObject({ code: 2 });
    expect(missing.err).toMatch(/^error: data: cannot open .*none\.jsonl: no such file\n$/);
    await writeFile(join(folder, 'bad.jsonl'), '{"a": }\n');
    const damaged = await balora('inspect', folder, '--data', join(folder, 'bad.jsonl'));
    expect(damaged.code).toBe(1);
    expect(damaged.err).toMatch(/bad\.jsonl:1:7: not valid JSON/);
  });
});
