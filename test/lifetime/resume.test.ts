// A training run that is killed (SIGKILL) at random moments and resumed ends in the same bytes as one that was not, and so does one
// that ran out of disk space.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { runProgram } from '../support/child.ts';
import { testRandom } from '../support/gradcheck.ts';

const kProgram = 'test/lifetime/programs/train_run.mjs';
const kSeed = Number(process.env.BALORA_TEST_SEED ?? Date.now() % 1_000_000);

const folder = mkdtempSync(join(tmpdir(), 'balora-kill-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface Line {
  step: number;
  loss: number;
  gradNorm: number;
  terms: Record<string, { value: number; weight: number }>;
}

const metrics = (name: string): Pick<Line, 'step' | 'loss' | 'gradNorm' | 'terms'>[] =>
  readFileSync(join(folder, name, 'run/metrics.jsonl'), 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => {
      const { step, loss, gradNorm, terms } = JSON.parse(line) as Line;
      return { step, loss, gradNorm, terms };
    });

/** Step and loss of each evaluation. */
const evaluations = (name: string): [number, number][] =>
  readFileSync(join(folder, name, 'run/evaluations.jsonl'), 'utf8')
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as { step: number; loss: number })
    .map(({ step, loss }) => [step, loss]);

it.each([
  { source: 'arithmetic', steps: 300, maxKills: 12 },
  // Each epoch has an order of its own, so that the position to resume at is one in a permutation.
  { source: 'shuffled', steps: 90, maxKills: 4 },
  { source: 'seq2seq', steps: 60, maxKills: 4 },
  { source: 'evaluated', steps: 90, maxKills: 6 },
])(`ends in the same bytes, $source (seed ${kSeed})`, async ({ source, steps, maxKills }) => {
  const argumentsOf = (name: string) => [join(folder, `${source}-${name}`), String(steps), source];
  const straight = await runProgram(kProgram, { args: argumentsOf('a') });
  expect(straight.code, straight.stderr).toBe(0);
  const random = testRandom(kSeed);
  let [kills, last] = [0, ''];
  for (;;) {
    const delayMs = 2 + 120 * ((random() + 1) / 2);
    const allowed = kills < maxKills;
    const run = await runProgram(kProgram, {
      args: argumentsOf('b'),
      onLine: (line, kill) => {
        last = line;
        // The kill comes after a step, so that each process makes progress.
        if (allowed) setTimeout(() => kill('SIGKILL'), delayMs);
      },
    });
    if (run.signal === 'SIGKILL') {
      kills++;
      continue;
    }
    expect(run.code, run.stderr).toBe(0);
    break;
  }
  expect(kills, 'the run was too fast to be killed').toBeGreaterThan(0);
  const digest = straight.stdout.trimEnd().split('\n').at(-1);
  expect(digest).toMatch(/^done [0-9a-f]{64}$/);
  expect(last).toBe(digest);
  expect(metrics(`${source}-b`)).toEqual(metrics(`${source}-a`));
  expect(evaluations(`${source}-b`)).toEqual(evaluations(`${source}-a`));
});

const hasPrlimit = spawnSync('prlimit', ['--version']).status === 0;

it.skipIf(!hasPrlimit)(
  'reports a full disk at every kind of write, and resumes once there is space',
  async () => {
    const kFullSteps = '8';
    const straight = await runProgram(kProgram, { args: [join(folder, 'space'), kFullSteps] });
    expect(straight.code, straight.stderr).toBe(0);
    const done = straight.stdout.trimEnd().split('\n').at(-1);
    for (const { at, event, step, seen, message, saved } of [
      {
        ...{ at: 'metrics', event: 'step', step: 4, seen: 4, saved: ['step-3'] },
        message:
          /metrics\.jsonl: cannot write: the file is larger than the system allows \(EFBIG\); free space.*; step 5 could not be saved \(.*\); the last good .*step-3,/,
      },
      {
        ...{ at: 'checkpoint', event: 'step', step: 6, seen: 6, saved: ['step-3'] },
        message:
          /run\/checkpoints\/.*: cannot (be written|write): .*(needs \d+ bytes|EFBIG).*; the last good .*step-3,/,
      },
      {
        ...{ at: 'export', event: 'checkpoint', step: 8, seen: 8, saved: ['step-6', 'step-8'] },
        message:
          /adapter_\w+\.\w+: cannot (be written|write): .*(needs \d+ bytes|EFBIG).*; the last good .*step-8,/,
      },
    ]) {
      const output = join(folder, at);
      const full = await runProgram('test/lifetime/programs/full_disk.mjs', {
        args: [output, kFullSteps, event, String(step)],
      });
      expect(full, full.stderr).toMatchObject({ code: 0, stopped: null });
      const failure = JSON.parse(full.stdout) as { seen: number; code: string; message: string };
      expect(failure, at).toEqual({
        seen,
        code: 'ERR_DISK_FULL',
        message: expect.stringMatching(message),
      });
      // No final name has an incomplete file, and the checkpoints before are complete.
      expect(existsSync(join(output, 'adapter_model.safetensors')), at).toBe(false);
      expect(readdirSync(join(output, 'run/checkpoints')).sort(), at).toEqual(saved);
      const resumed = await runProgram(kProgram, { args: [output, kFullSteps] });
      expect(resumed.code, resumed.stderr).toBe(0);
      expect(resumed.stdout.trimEnd().split('\n').at(-1), at).toBe(done);
      expect(metrics(at), at).toEqual(metrics('space'));
    }
  },
);
