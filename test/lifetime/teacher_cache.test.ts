// A file of the teacher's outputs that processes share: after a SIGKILL the next one continues it, and one that runs beside its writer reads
// it; one that a full disk has cut off is continued, too. Every run ends in the bytes of a run with a cache of its own.
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdtempSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

const kMain = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));
const kSignals = new URL('programs/signal_at_size.mjs', import.meta.url).href;
const kRows = 60;
/** Bytes of the file's head, of a record's and of a row of it: 16 numbers in f32 and the entropy. */
const [kHead, kRecordHead, kRowBytes] = [512, 28, 4 * 16 + 8];

let folder: string;
const at = (name: string): string => join(folder, name);
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), 'balora-shared-'));
  await writeTinyCheckpoint(at('model'));
  const rows = Array.from({ length: kRows }, (_, i) =>
    JSON.stringify({ prompt: `a${i}`, response: 'bc'.repeat(1 + (i % 3)) }),
  );
  writeFileSync(at('data.jsonl'), rows.join('\n'));
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** A signal that a training sends itself, and the size of the cache at which it does. */
interface SignalAt {
  readonly bytes: number;
  readonly signal: 'SIGKILL' | 'SIGSTOP';
}

interface Training {
  readonly child: ChildProcess;
  /** Resolves when the training is about to send itself its signal. */
  readonly signalled: Promise<void>;
  readonly ended: Promise<{ code: number | null; signal: NodeJS.Signals | null; err: string }>;
}

function train(output: string, more: readonly string[], signal?: SignalAt): Training {
  if (signal === undefined) return start(output, more);
  const signalAt = JSON.stringify({ path: at('teacher.cache'), ...signal });
  return start(output, more, { env: { BALORA_SIGNAL_AT: signalAt }, node: ['--import', kSignals] });
}

/** Runs the command line with these variables in its environment and these arguments of Node.js. */
function start(
  output: string,
  more: readonly string[],
  { env = {}, node = [] }: { env?: Record<string, string>; node?: readonly string[] } = {},
): Training {
  const args = [
    ...['train', '--model', at('model'), '--data', at('data.jsonl'), '--output', at(output)],
    ...['--method', 'balora', '--r', '2', '--prompt-template', 'none', '--dtype', 'f32'],
    ...['--per-device-train-batch-size', '1', '--num-train-epochs', '1', ...more],
  ];
  const child = spawn(process.execPath, [...node, kMain, ...args], {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  let err = '';
  const signalled = new Promise<void>((resolve) => {
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      err += text;
      if (/^SIG(KILL|STOP)$/m.test(err)) resolve();
    });
  });
  const ended = once(child, 'close').then(([code, signal]) => ({ code, signal, err }));
  return { child, signalled, ended };
}

/** The end of the last complete record of a cache. */
function endOf(bytes: Buffer): number {
  for (let end = kHead; ; ) {
    if (end + kRecordHead > bytes.length) return end;
    const next = end + kRecordHead + bytes.readUInt32LE(end + 16) * kRowBytes;
    if (next > bytes.length) return end;
    end = next;
  }
}

const adapter = (output: string): Buffer =>
  readFileSync(join(at(output), 'adapter_model.safetensors'));

it('is continued after a SIGKILL, and read beside the process that appends', async () => {
  const cache = at('teacher.cache');
  const shared = ['--teacher-cache', cache];
  const own = await train('own', ['--cache-teacher']).ended;
  expect(own, own.err).toMatchObject({ code: 0 });

  const kill = { bytes: kHead + 2000, signal: 'SIGKILL' } as const;
  const killed = await train('killed', [...shared, '--seed', '7'], kill).ended;
  expect(killed, killed.err).toMatchObject({ signal: 'SIGKILL' });
  const left = readFileSync(cache);
  expect(existsSync(`${cache}.lock`)).toBe(true);
  expect(endOf(left)).toBeGreaterThan(kHead);

  const writer = train('writer', shared, { bytes: endOf(left) + 200, signal: 'SIGSTOP' });
  await Promise.race([writer.signalled, writer.ended]);
  const read = await train('reader', shared).ended;
  writer.child.kill('SIGCONT');
  const wrote = await writer.ended;
  expect(read, read.err).toMatchObject({ code: 0 });
  expect(read.err).toContain(`process ${writer.child.pid} on`);
  expect(wrote, wrote.err).toMatchObject({ code: 0 });
  expect(wrote.err).not.toContain('appends to this cache');
  const whole = readFileSync(cache);
  expect(whole.length).toBeGreaterThan(left.length);
  expect(whole.subarray(0, endOf(left)).equals(left.subarray(0, endOf(left)))).toBe(true);
  expect(endOf(whole)).toBe(whole.length);
  expect(existsSync(`${cache}.lock`)).toBe(false);
  for (const output of ['writer', 'reader']) {
    expect(adapter(output).equals(adapter('own')), output).toBe(true);
  }

  const last = await train('last', [...shared, '--seed', '9', '--r', '3']).ended;
  expect(last, last.err).toMatchObject({ code: 0 });
  expect(readFileSync(cache).equals(whole)).toBe(true);
});

/** A compiler, for a library that fills the disk. */
const compiler = ['cc', 'gcc', 'clang'].find((name) => spawnSync(name, ['--version']).status === 0);

it.skipIf(process.platform !== 'linux' || compiler === undefined)(
  'is continued after the disk was full, where the run ends by name with its last step (needs a C compiler)',
  async () => {
    const library = at('faulty_disk.so');
    const source = 'test/support/faulty_disk.c';
    execFileSync(compiler as string, ['-shared', '-fPIC', '-O1', '-o', library, source, '-ldl']);
    const cache = at('full.cache');
    const own = await train('own-full', ['--cache-teacher']).ended;
    expect(own, own.err).toMatchObject({ code: 0 });
    const none = `w 9 ${constants.errno.ENOSPC} ${Number.MAX_SAFE_INTEGER}`;
    const fault = {
      LD_PRELOAD: library,
      BALORA_FAULT: `${realpathSync(folder)}/full.cache ${none}`,
    };
    const full = await start('full', ['--teacher-cache', cache], { env: fault }).ended;
    expect(full, full.err).toMatchObject({ code: 1, signal: null });
    expect(full.err).toMatch(
      /^error: .*full\.cache: cannot write: no space left on the disk.*the last good checkpoint is .*step-\d+/m,
    );
    const left = readFileSync(cache);
    expect(existsSync(`${cache}.lock`)).toBe(false);
    const next = await train('after', ['--teacher-cache', cache]).ended;
    expect(next, next.err).toMatchObject({ code: 0 });
    expect(adapter('after').equals(adapter('own-full'))).toBe(true);
    expect(
      readFileSync(cache)
        .subarray(0, endOf(left))
        .equals(left.subarray(0, endOf(left))),
    ).toBe(true);
  },
);
