// The files of a model that is in use: whatever happens to their bytes is a named error and never a result, and never ends the
// process; what leaves the bytes alone changes nothing.
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { demoCheckpoint } from '../../lib/models/demo_checkpoint.ts';
import { runProgram } from '../support/child.ts';

const kRoot = mkdtempSync(join(tmpdir(), 'balora-changed-'));
afterAll(() => rmSync(kRoot, { recursive: true, force: true }));
const kProgram = 'test/lifetime/programs/changed_weights.mjs';
/** Copies of weights on a busy disk take a while. */
const kHangMs = 60_000;
const kGguf = 'test/fixtures/quant/tiny_llama.gguf';

interface Outcome {
  seen: number;
  result: string | null;
  code: string | null;
  message: string;
}

interface Use {
  activity: 'load' | 'train' | 'evaluate' | 'merge';
  dtype?: 'bf16' | 'f32';
  gguf?: boolean;
  worker?: boolean;
  baseOffload?: boolean;
}

/** The outcome of an activity with a copy of the model, and its files. */
interface Ended extends Outcome {
  file: string;
  output: string;
}

let count = 0;

/**
 * Runs the program on one copy of the model for each shell command, in which F stands for the model's file and N for a name beside
 * it. An end by a signal, or without an outcome, fails the test.
 */
async function use(
  { activity, dtype = 'bf16', gguf = false, worker = false, baseOffload = false }: Use,
  changes: readonly string[],
): Promise<Ended[]> {
  const cases = changes.map((change) => {
    const folder = join(kRoot, String(count++));
    const path = join(folder, gguf ? 'model.gguf' : 'model');
    const file = gguf ? path : join(path, 'model.safetensors');
    cpSync(gguf ? kGguf : demoCheckpoint, path, { recursive: true });
    const command = `F='${file}'; N='${folder}/new'; set -e; ${change}`;
    const given = { activity, worker, dtype, baseOffload };
    return { ...given, path, file, command, output: join(folder, 'output') };
  });
  const ended = await runProgram(kProgram, { args: [JSON.stringify(cases)], hangMs: kHangMs });
  expect(ended, ended.stderr).toMatchObject({ code: 0, signal: null, stopped: null });
  const outcomes = JSON.parse(ended.stdout) as Outcome[];
  return outcomes.map((outcome, i) => ({ ...outcome, ...(cases[i] as (typeof cases)[number]) }));
}

const kWritten = 'dd if=/dev/zero of="$F" bs=64 seek=1000 count=1 conv=notrunc';

/** Changes of the bytes, and the part of the message that says how each is known. */
const kDamage: Record<string, [change: string, how: RegExp]> = {
  truncated: ['truncate -s 1000 "$F"', /its size went from 5145664 to 1000 bytes/],
  'truncated to nothing': [': > "$F"', /its size went from 5145664 to 0 bytes/],
  'grown by a page': ['truncate -s +4096 "$F"', /its size went from 5145664 to 5149760 bytes/],
  'written in place': [kWritten, /its time of modification went from \d{4}-\S+Z to \d{4}-\S+Z/],
  'written in place, with the time put back': [
    `touch -r "$F" "$N"; ${kWritten}; touch -r "$N" "$F"`,
    /bytes \d+ to \d+ are others, under the same time/,
  ],
  'copied over': [
    'head -c 5145664 /dev/zero > "$N"; cp "$N" "$F"',
    /its time of modification went from/,
  ],
};

/** Changes of everything but the bytes that are in use. */
const kHarmless: Record<string, string> = {
  'replaced by rename': 'head -c 1000 /dev/zero > "$N"; mv "$N" "$F"',
  removed: 'rm "$F"',
  renamed: 'mv "$F" "$N"',
  linked: 'ln "$F" "$N"',
  'of another mode': 'chmod 400 "$F"',
  'read, with a new time of access': 'touch -a "$F"; cat "$F" > "$N"',
};

/** The outcome of a use in which the file's change was noticed. */
const refused = ({ file }: Ended, how: RegExp) => ({
  result: null,
  code: 'ERR_FILE_CHANGED',
  message: expect.stringMatching(
    new RegExp(`${file}: was changed while its contents were in use: .*${how.source}.*; restore`),
  ),
});

const kUndisturbed = ':';
/** Which of the changes a use goes through: all of them, or one that is harmless, one known by SIGBUS and one by the bytes. */
interface Changes {
  readonly harmless: readonly string[];
  readonly damages: readonly string[];
}
const kAll: Changes = { harmless: Object.keys(kHarmless), damages: Object.keys(kDamage) };
const kSome: Changes = {
  harmless: ['replaced by rename'],
  damages: ['truncated to nothing', 'written in place, with the time put back'],
};

/** Checks a use of a base whose file is watched: in all cases of damage it is refused, in all others nothing changes. */
async function checkWatched(given: Use, { harmless: names, damages }: Changes): Promise<Ended[]> {
  const kinds = damages.map((name) => kDamage[name] as (typeof kDamage)[string]);
  const changes = [
    kUndisturbed,
    ...names.map((name) => kHarmless[name] as string),
    ...kinds.map(([change]) => change),
  ];
  const [whole, ...ended] = await use(given, changes);
  expect(whole).toMatchObject({ result: expect.any(String), code: null });
  const harmless = ended.splice(0, names.length);
  for (const [i, { seen, result, message }] of harmless.entries()) {
    const name = names[i];
    expect({ name, seen, result, message }).toEqual({
      ...{ name, seen: whole?.seen, result: whole?.result, message: '' },
    });
  }
  for (const [i, each] of ended.entries()) {
    const [name, [, how]] = [damages[i], kinds[i] as (typeof kinds)[number]];
    expect(each, name).toMatchObject(refused(each, how));
    expect(existsSync(join(each.output, 'model.safetensors')), name).toBe(false);
  }
  return ended;
}

describe('a base in bf16, which is the pages of its file', () => {
  it.each([false, true])('in training, in a worker: %s', async (worker) => {
    const ended = await checkWatched({ activity: 'train', worker }, kSome);
    for (const { output, seen, message } of ended) {
      expect(seen).toBe(3);
      expect(message).toMatch(/the last good checkpoint is .*step-3, and resume: true/);
      expect(existsSync(join(output, 'adapter_model.safetensors'))).toBe(false);
      const checkpoints = readdirSync(join(output, 'run/checkpoints')).sort();
      expect(checkpoints).toEqual(['step-1', 'step-2', 'step-3']);
      const metrics = readFileSync(join(output, 'run/metrics.jsonl'), 'utf8').split('\n');
      expect(metrics).toHaveLength(4);
    }
  });

  it('in evaluate, whatever happens to the file', async () => {
    await checkWatched({ activity: 'evaluate' }, kAll);
  });

  it.each(['merge', 'load'] as const)('in %s', async (activity) => {
    await checkWatched({ activity }, kSome);
  });
});

describe('a base that is read from its file as it is used', () => {
  it.each([
    { activity: 'train' },
    { activity: 'train', worker: true },
    { activity: 'evaluate' },
    { activity: 'load' },
  ] as const)('in %o', async (given) => {
    await checkWatched(
      { ...given, baseOffload: true },
      given.activity === 'evaluate' ? kAll : kSome,
    );
  });

  it('does not depend on its file where it is in a cache of its own', async () => {
    const changes = [kUndisturbed, ...kSome.damages.map((name) => kDamage[name]?.[0] as string)];
    const ended = await use({ activity: 'evaluate', dtype: 'f32', baseOffload: true }, changes);
    for (const { seen, result, message } of ended) {
      expect({ seen, result, message }).toEqual({
        seen: 6,
        result: ended[0]?.result,
        message: '',
      });
    }
  });
});

describe('a base that is converted into memory', () => {
  it.each([{ dtype: 'f32' }, { dtype: 'f32', gguf: true }, { dtype: 'bf16', gguf: true }] as const)(
    'while it is loaded: %o',
    async (base) => {
      const changes = [kUndisturbed, ...kSome.harmless.map((name) => kHarmless[name] as string)];
      const damages = ['truncate -s 8000 "$F"', kWritten];
      const ended = await use({ activity: 'load', ...base }, [...changes, ...damages]);
      for (const each of ended.splice(-damages.length)) {
        expect(each).toMatchObject(refused(each, /went from/));
      }
      const results = new Set(ended.map(({ result }) => result));
      expect(results).toEqual(new Set([expect.any(String)]));
    },
  );

  it('once it is loaded', async () => {
    const damages = kSome.damages.map((name) => kDamage[name]?.[0] as string);
    const changes = [kUndisturbed, ...damages];
    const ended = await use({ activity: 'evaluate', dtype: 'f32' }, changes);
    for (const { seen, result, message } of ended) {
      expect({ seen, result, message }).toEqual({
        seen: 6,
        result: ended[0]?.result,
        message: '',
      });
    }
  });
});

it('a SIGBUS of another origin ends the process as ever', async () => {
  const given = {
    activity: 'evaluate',
    dtype: 'bf16',
    path: demoCheckpoint,
    command: 'kill -BUS $PPID',
  };
  const { signal } = await runProgram(kProgram, {
    args: [JSON.stringify([given])],
    hangMs: kHangMs,
  });
  expect(signal).toBe('SIGBUS');
});
