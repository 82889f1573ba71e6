// The files of a model that is in use: whatever happens to their bytes is a named error and never a result, and never ends the
// process; what leaves the bytes alone changes nothing.
import { cpSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { demoCheckpoint } from '../../lib/models/demo_checkpoint.ts';
import { runProgram } from '../support/child.ts';

const kRoot = mkdtempSync(join(tmpdir(), 'balora-changed-'));
afterAll(() => rmSync(kRoot, { recursive: true, force: true }));
const kGguf = 'test/fixtures/quant/tiny_llama.gguf';

interface Outcome {
  seen: number;
  result: string | null;
  code: string | null;
  message: string;
}

interface Use {
  activity: string;
  /** A shell command, in which F stands for the model's file and N for a name beside it. */
  change: string;
  dtype?: string;
  gguf?: boolean;
}

let count = 0;

/** Runs the program on a copy of the model. Its end by a signal, or of its own accord without an outcome, fails the test. */
async function use({ activity, change, dtype = 'bf16', gguf = false }: Use) {
  const folder = join(kRoot, String(count++));
  const model = join(folder, gguf ? 'model.gguf' : 'model');
  const file = gguf ? model : join(model, 'model.safetensors');
  cpSync(gguf ? kGguf : demoCheckpoint, model, { recursive: true });
  const output = join(folder, 'output');
  const command = `F='${file}'; N='${folder}/new'; set -e; ${change}`;
  const ended = await runProgram('test/lifetime/programs/changed_weights.mjs', {
    args: [activity, model, output, command, dtype],
  });
  expect(ended, ended.stderr).toMatchObject({ code: 0, signal: null, stopped: null });
  return { ...(JSON.parse(ended.stdout) as Outcome), file, output };
}

/** Changes of the bytes, and the part of the message that says how each is known. */
const kDamage: Record<string, [change: string, how: RegExp]> = {
  truncated: ['truncate -s 1000 "$F"', /its size went from 5145664 to 1000 bytes/],
  'truncated to nothing': [': > "$F"', /its size went from 5145664 to 0 bytes/],
  'grown by a page': ['truncate -s +4096 "$F"', /its size went from 5145664 to 5149760 bytes/],
  'written in place': [
    'dd if=/dev/zero of="$F" bs=64 seek=1000 count=1 conv=notrunc',
    /its time of modification went from \d{4}-\S+Z to \d{4}-\S+Z/,
  ],
  'written in place, with the time put back': [
    'touch -r "$F" "$N"; dd if=/dev/zero of="$F" bs=64 seek=1000 count=1 conv=notrunc; touch -r "$N" "$F"',
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

const entries = <T>(record: Record<string, T>) =>
  Object.entries(record).map(([name, value]) => [name, value] as const);

const refused = (file: string, how: RegExp) => ({
  result: null,
  code: 'ERR_FILE_CHANGED',
  message: expect.stringMatching(
    new RegExp(`${file}: was changed while its contents were in use: .*${how.source}.*restore the file`),
  ),
});

describe('a base in bf16, which is the pages of its file', () => {
  let whole: Outcome;
  beforeAll(async () => {
    whole = await use({ activity: 'train', change: ':' });
    expect(whole).toMatchObject({ seen: 6, code: null });
  }, 60_000);

  it.each(entries(kDamage))('in training: %s', async (_, [change, how]) => {
    const { file, output, ...outcome } = await use({ activity: 'train', change });
    expect(outcome).toMatchObject({ seen: 3, ...refused(file, how) });
    expect(outcome.message).toMatch(/the last good checkpoint is .*step-3, and resume: true/);
    expect(existsSync(join(output, 'adapter_model.safetensors'))).toBe(false);
    expect(readdirSync(join(output, 'run/checkpoints')).sort()).toEqual([
      ...['step-1', 'step-2', 'step-3'],
    ]);
    expect(readFileSync(join(output, 'run/metrics.jsonl'), 'utf8').split('\n')).toHaveLength(4);
  });

  it.each(entries(kHarmless))('in training: %s', async (_, change) => {
    const { seen, result, code, message } = await use({ activity: 'train', change });
    expect({ seen, result, code, message }).toEqual(whole);
  });

  it.each(['evaluate', 'merge', 'load', 'worker-train', 'worker-evaluate'])(
    'in %s: all of these',
    async (activity) => {
      const { result: expected } = await use({ activity, change: ':' });
      expect(expected).not.toBeNull();
      for (const [change, how] of Object.values(kDamage)) {
        const { file, output, ...outcome } = await use({ activity, change });
        expect(outcome, change).toMatchObject(refused(file, how));
        expect(existsSync(join(output, 'model.safetensors')), change).toBe(false);
      }
      for (const change of Object.values(kHarmless)) {
        const { result, message } = await use({ activity, change });
        expect({ result, message }, change).toEqual({ result: expected, message: '' });
      }
    },
    120_000,
  );
});

describe('a base that is converted into memory', () => {
  const kBases = [{ dtype: 'f32' }, { dtype: 'f32', gguf: true }, { dtype: 'bf16', gguf: true }];

  it.each(kBases)('while it is loaded, $dtype, GGUF: $gguf', async (base) => {
    const { result: expected } = await use({ activity: 'load', change: ':', ...base });
    expect(expected).not.toBeNull();
    for (const change of ['truncate -s 8000 "$F"', kDamage['written in place']?.[0] as string]) {
      const { file, output: _, ...outcome } = await use({ activity: 'load', change, ...base });
      expect(outcome, change).toMatchObject(refused(file, /went from/));
    }
    for (const change of Object.values(kHarmless)) {
      const { result, message } = await use({ activity: 'load', change, ...base });
      expect({ result, message }, change).toEqual({ result: expected, message: '' });
    }
  });

  it('once it is loaded, f32', async () => {
    const { result: expected } = await use({ activity: 'evaluate', change: ':', dtype: 'f32' });
    for (const [change] of Object.values(kDamage)) {
      const outcome = await use({ activity: 'evaluate', change, dtype: 'f32' });
      expect(outcome, change).toMatchObject({ seen: 6, result: expected, code: null });
    }
  });
});

it('a SIGBUS of another origin ends the process as ever', async () => {
  const { signal } = await runProgram('test/lifetime/programs/changed_weights.mjs', {
    args: ['evaluate', demoCheckpoint, '', 'kill -BUS $PPID'],
  });
  expect(signal).toBe('SIGBUS');
});
