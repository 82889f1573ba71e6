// The executable as a process of its own: a closed pipe, a terminal that hangs up, a machine without a binary.
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { runProgram } from '../support/child.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

const kMain = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

let folder: string;
let model: string;
let data: string;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'balora-executable-'));
  [model, data] = [join(folder, 'model'), join(folder, 'data.jsonl')];
  await writeTinyCheckpoint(model);
  writeFileSync(data, '{"prompt": "a", "response": "bc"}\n'.repeat(40));
});
afterAll(() => rmSync(folder, { recursive: true }));

const train = (output: string, steps: number) => [
  ...['train', '--model', model, '--data', data, '--output', join(folder, output)],
  ...['--r', '2', '--max-steps', String(steps), '--prompt-template', 'none'],
];

/** Runs balora in a shell pipeline: its exit status, and the output of the pipeline. */
function piped(args: string[], pipe: string): { status: number | null; out: string; err: string } {
  const words = [process.execPath, kMain, ...args].map((word) => `'${word}'`).join(' ');
  const script = `${words} ${pipe}; exit \${PIPESTATUS[0]}`;
  const { status, stdout, stderr } = spawnSync('bash', ['-c', script], { encoding: 'utf8' });
  return { status, out: stdout, err: stderr };
}

it('continues the training and saves when its output pipe is closed', () => {
  const { status, out } = piped(train('piped', 30), '2>&1 | head -n 2');
  expect(out.split('\n')).toHaveLength(3);
  expect(status).toBe(0);
  expect(existsSync(join(folder, 'piped', 'adapter_model.safetensors'))).toBe(true);
});

it('prints no stack trace when the pipe of its result is closed', () => {
  const { status, err } = piped(
    ['evaluate', '--model', model, '--data', data, '--prompt-template', 'none', '--json'],
    '| true',
  );
  expect(err).toBe('');
  expect(status).toBe(0);
});

it('keeps a checkpoint when the terminal hangs up', async () => {
  const child = spawn(process.execPath, [kMain, ...train('hung', 100_000)], {
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    if (!/^step /m.test(text)) return;
    // The pipe is closed, and the signal comes twice, as from the kernel and from the shell.
    child.stderr.destroy();
    child.kill('SIGHUP');
    child.kill('SIGHUP');
  });
  expect(await once(child, 'exit')).toEqual([129, null]);
  expect(readdirSync(join(folder, 'hung', 'run', 'checkpoints'))).toEqual([
    expect.stringMatching(/^step-/),
  ]);
});

it('resolves BALORA_BINARY relative to the current folder', async () => {
  const env = { BALORA_BINARY: 'build/release/balora.node' };
  expect(await runProgram(kMain, { args: ['--version'], env })).toMatchObject({
    code: 0,
    stderr: '',
  });
});

it('names the supported platforms where no binary loads', async () => {
  const env = { BALORA_BINARY: join(folder, 'none.node') };
  const { code, stdout, stderr } = await runProgram(kMain, { args: ['--help'], env });
  expect(stderr).toMatch(/^error: balora has no usable native binary for /);
  expect(stderr).toContain(
    'The npm package has binaries for Linux on x64 with glibc 2.38 or newer',
  );
  expect(stderr).not.toMatch(/^ +at /m);
  expect([code, stdout]).toEqual([1, '']);
});

it('refuses products in int8 by name where the processor has no instructions for them', async () => {
  const args = [...train('without-vnni', 1), '--compute', 'dx'];
  const env = { ONEDNN_MAX_CPU_ISA: 'AVX2' };
  expect(await runProgram(kMain, { args, env })).toMatchObject({
    code: 1,
    stderr: expect.stringMatching(
      /compute: products in int8 need AVX512-VNNI, AVX-VNNI or AMX, and this process has (avx2|plain) without them/,
    ),
  });
  expect(existsSync(join(folder, 'without-vnni', 'adapter_model.safetensors'))).toBe(false);
});
