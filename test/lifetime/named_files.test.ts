// Files that a user names and that are no regular files, may not be read, or are on a disk that fails: the process ends with one message
// that names the file, and neither hangs nor prints a stack.
import { execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { Batches } from '../../lib/data/batches.ts';
import { arrayRows } from '../../lib/data/rows.ts';
import { AutoModelForCausalLM } from '../../lib/models/index.ts';
import { Tokenizer } from '../../lib/text/tokenizer.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import { type ChildOptions, type ChildResult, runProgram } from '../support/child.ts';
import { writeTinyCheckpoint } from '../support/tiny_checkpoint.ts';

const kMain = 'dist/cli/main.js';
const kGeneration = 'generation_config.json';
const kPath = '/usr/bin:/bin';
const isRoot = process.geteuid?.() === 0;

const folder = mkdtempSync(join(tmpdir(), 'balora-named-'));
chmodSync(folder, 0o755);
const at = (...names: string[]): string => join(folder, ...names);
const data = at('data.jsonl');

beforeAll(async () => {
  await writeTinyCheckpoint(at('model'));
  writeFileSync(data, '{"prompt": "a", "response": "bc"}\n'.repeat(8));
  execFileSync('mkfifo', [at('pipe')]);
  const tuned = await AdapterModel.create(await AutoModelForCausalLM.fromPretrained(at('model')), {
    ...{ r: 2, loraAlpha: 2 },
  });
  const tokenizer = await Tokenizer.fromPretrained(at('model'));
  const rows = arrayRows([{ prompt: 'a', response: 'bc' }]);
  const batches = await Batches.create(rows, tokenizer, { promptTemplate: 'none' });
  await new Trainer({ tuned, data: batches, maxSteps: 1, output: at('adapter') }).train();
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface Said {
  what: string;
  name: string;
  code: string | null;
  message: string;
}

describe('a file of any kind', () => {
  it.each([
    ['a pipe', 'pipe'],
    ['a device', '/dev/zero'],
    ['a socket or a terminal', '/dev/tty'],
  ])('that is %s is refused by name', async (_, bad) => {
    const path = bad.startsWith('/') ? bad : at(bad);
    const own = mkdtempSync(at('own-'));
    for (const name of ['model', 'adapter']) {
      execFileSync('cp', ['-r', at(name), own]);
    }
    const result = await runProgram('test/lifetime/programs/named_files.mjs', {
      ...{ args: [own, path], hangMs: 20_000 },
    });
    expect(result, result.stderr).toMatchObject({ code: 0, stopped: null, stderr: '' });
    const lines = result.stdout.trim().split('\n');
    expect(lines.length).toBeGreaterThan(30);
    for (const line of lines) {
      const said = JSON.parse(line) as Said;
      expect(['ERR_FORMAT', 'ERR_ARGUMENT'], line).toContain(said.code);
      expect(said.message, line).toContain(own);
      expect(said.message, line).toMatch(
        /is (a pipe|a device|a socket|a folder), not a regular file|is a link that leads out of the folder|is not a regular file|neither a model folder nor|must be a folder or|ENXIO|No such device/,
      );
    }
  });
});

/** Runs the command line as a process. */
const balora = (args: string[], options: ChildOptions = {}): Promise<ChildResult> =>
  runProgram(kMain, { args, hangMs: 20_000, ...options });

const evaluate = (model: string, file = data): string[] => [
  ...['evaluate', '--model', model, '--data', file, '--prompt-template', 'none'],
];

const generate = (model: string): string[] => [
  ...['generate', '--model', model, '--prompt', 'a', '--max-new-tokens', '1'],
];

/** One line of a message, without a stack. */
function expectMessage(result: ChildResult, message: RegExp): void {
  expect(result.stopped).toBeNull();
  expect(result.signal).toBeNull();
  expect([1, 2]).toContain(result.code);
  expect(result.stderr).toMatch(message);
  expect(result.stderr.trimEnd().split('\n').at(-1)).toMatch(/^error: /);
  expect(result.stderr).not.toMatch(/^\s+at |node:internal/m);
}

/** Waits until a process has started one of its own, as that which encodes long texts. */
async function startOfChild(pid: number): Promise<void> {
  for (;;) {
    const parents = execFileSync('ps', ['-A', '-o', 'ppid='], { encoding: 'utf8' });
    if (parents.split('\n').map(Number).includes(pid)) return;
    await sleep(50);
  }
}

describe('the command line', () => {
  it('refuses a pipe as data, from the shell too', async () => {
    expectMessage(
      await balora(evaluate(at('model'), at('pipe'))),
      /^error: .*pipe: is a pipe, not a regular file; write what comes through it to a file/m,
    );
    const words = [process.execPath, kMain, ...evaluate(at('model'))].map((word) => `'${word}'`);
    words[words.indexOf(`'${data}'`)] = `<(cat '${data}')`;
    const { status, stderr } = spawnSync('bash', ['-c', words.join(' ')], { encoding: 'utf8' });
    expect(status).toBe(1);
    expect(stderr).toMatch(/\/dev\/fd\/\d+: is a pipe, not a regular file/);
  });

  it('ends at a signal while it encodes a row of megabytes', async () => {
    const long = at('long.jsonl');
    writeFileSync(long, `{"prompt": "a", "response": "${'ab'.repeat(6 * 2 ** 20)}"}\n`);
    const child = spawn(process.execPath, [kMain, ...evaluate(at('model'), long)], {
      stdio: 'ignore',
    });
    const ended = once(child, 'exit');
    await startOfChild(child.pid as number);
    const asked = performance.now();
    child.kill('SIGINT');
    expect(await ended).toEqual([130, null]);
    expect(performance.now() - asked).toBeLessThan(2000);
  });

  it('refuses YAML whose aliases stand for a huge value, lists of any depth, and a file that is no configuration', async () => {
    const bomb = ['a: &a [x, x, x, x, x, x, x, x, x]'];
    for (const [i, name] of [...'bcdefghi'].entries()) {
      const before = 'abcdefghi'.charAt(i);
      bomb.push(`${name}: &${name} [${Array(9).fill(`*${before}`).join(', ')}]`);
    }
    const texts = {
      bomb: [bomb.join('\n'), /bomb\.yaml: more than 100 aliases; write the values themselves/],
      deep: ['['.repeat(100_000), /deep\.yaml.*: /],
      large: ['#'.repeat(2 ** 18 + 1), /large\.yaml: has 256\.0 KiB, and .* may have 256\.0 KiB/],
    } as const;
    for (const [name, [text, message]] of Object.entries(texts)) {
      const path = at(`${name}.yaml`);
      writeFileSync(path, text);
      expectMessage(await balora(['train', '--config', path]), message);
    }
  });
});

describe('a file that may not be read', () => {
  // Root reads everything, so it runs the commands as somebody else.
  const program = 'test/lifetime/programs/cli_as_nobody.mjs';
  const asNobody = (args: string[]): Promise<ChildResult> =>
    runProgram(isRoot ? program : kMain, { args, hangMs: 20_000 });

  it('is named with the reason, whatever it is', async () => {
    const denied = /permission denied|Permission denied/;
    for (const name of ['config.json', 'model.safetensors', 'tokenizer.json']) {
      const model = at(`closed-${name}`);
      execFileSync('cp', ['-r', at('model'), model]);
      chmodSync(join(model, name), 0);
      const result = await asNobody(evaluate(model));
      expectMessage(result, new RegExp(`${name}.*(${denied.source})`));
    }
    writeFileSync(at('model', kGeneration), '{}');
    execFileSync('cp', ['-r', at('model'), at('closed-generation')]);
    chmodSync(at('closed-generation', kGeneration), 0);
    expectMessage(
      await asNobody(generate(at('closed-generation'))),
      new RegExp(`${kGeneration}.*${denied.source}`),
    );
    for (const name of ['closed.jsonl', 'closed.tsv', 'closed.parquet']) {
      writeFileSync(at(name), 'x');
      chmodSync(at(name), 0);
      expectMessage(
        await asNobody(evaluate(at('model'), at(name))),
        /permission denied \(EACCES\)/,
      );
    }
    mkdirSync(at('closed'));
    execFileSync('cp', ['-r', at('model'), at('closed')]);
    chmodSync(at('closed'), 0);
    expectMessage(await asNobody(evaluate(at('closed', 'model'))), /permission denied \(EACCES\)/);
    expectMessage(await asNobody(evaluate(at('closed'))), /permission denied \(EACCES\)/);
    const output = ['--output', at('closed', 'out'), '--method', 'lora', '--max-steps', '1'];
    const train = ['train', ...evaluate(at('model')).slice(1), ...output];
    expectMessage(await asNobody(train), /closed.*permission denied \(EACCES\)/);
    chmodSync(at('closed'), 0o755);
  });
});

/** A compiler, for a library that makes reading fail. */
const compiler = ['cc', 'gcc', 'clang'].find((name) => spawnSync(name, ['--version']).status === 0);

describe('a disk that fails', () => {
  it.skipIf(process.platform !== 'linux' || compiler === undefined)(
    'while a file is read is an error of the file (needs a C compiler)',
    async () => {
      const library = at('faulty_disk.so');
      const source = 'test/support/faulty_disk.c';
      execFileSync(compiler as string, ['-shared', '-fPIC', '-O1', '-o', library, source, '-ldl']);
      const failing = (file: string, args: string[]): Promise<ChildResult> => {
        const every = `d 1 ${constants.errno.EIO} ${Number.MAX_SAFE_INTEGER}`;
        const env = { LD_PRELOAD: library, BALORA_FAULT: `${realpathSync(file)} ${every}` };
        return balora(args, { env });
      };
      const failed =
        /cannot read: the disk reports an error \(EIO\); check the permission to read it, and/;
      const names = ['config.json', 'tokenizer.json', 'tokenizer_config.json'];
      for (const file of [...names.map((name) => at('model', name)), data]) {
        const result = await failing(file, evaluate(at('model')));
        expectMessage(result, new RegExp(`${basename(file)}: ${failed.source}`));
      }
      writeFileSync(at('model', kGeneration), '{}');
      const generation = await failing(at('model', kGeneration), generate(at('model')));
      expectMessage(generation, new RegExp(`${kGeneration}: ${failed.source}`));
      writeFileSync(at('data.tsv'), 'prompt\tresponse\na\tb\n');
      for (const file of [at('data.tsv'), 'test/fixtures/data/rows.parquet']) {
        expectMessage(await failing(file, evaluate(at('model'), file)), failed);
      }
      writeFileSync(at('options.yaml'), 'r: 4\n');
      expectMessage(
        await failing(at('options.yaml'), ['train', '--config', at('options.yaml')]),
        failed,
      );
      const adapter = [...evaluate(at('model')), '--adapter', at('adapter')];
      expectMessage(await failing(at('adapter', 'adapter_config.json'), adapter), failed);
    },
  );
});

/** Runs work beside an empty file system that can only be read; false where this process may not mount one. */
async function withReadOnly(path: string, work: () => Promise<void>): Promise<boolean> {
  if (process.platform !== 'linux' || !isRoot) return false;
  mkdirSync(path, { recursive: true });
  const env = { PATH: `${kPath}:/sbin:/usr/sbin` };
  const { status } = spawnSync('mount', ['-t', 'tmpfs', '-o', 'ro', 'tmpfs', path], { env });
  if (status !== 0) return false;
  try {
    await work();
  } finally {
    spawnSync('umount', [path], { env });
  }
  return true;
}

const canMount = await withReadOnly(at('mounted'), async () => {});

describe('a file system that is read-only', () => {
  it.skipIf(!canMount)('is named as the place of the output (needs root)', async () => {
    await withReadOnly(at('mounted'), async () => {
      const train = [
        ...['train', ...evaluate(at('model')).slice(1), '--method', 'lora', '--max-steps', '1'],
        ...['--r', '2', '--output', at('mounted', 'out')],
      ];
      expectMessage(await balora(train), /mounted.*: the file system is read-only \(EROFS\)/);
      const merge = ['merge', '--model', at('model'), '--adapter', at('adapter')];
      const result = await balora([...merge, '--output', at('mounted', 'merged')]);
      expectMessage(result, /mounted.*: the file system is read-only \(EROFS\)/);
      expect(existsSync(at('mounted', 'merged'))).toBe(false);
    });
  });
});
