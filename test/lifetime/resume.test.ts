// A training run that is killed (-9) at random moments and taken up again ends in the same bytes as one that was not.
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { runProgram } from '../support/child.ts';
import { testRandom } from '../support/gradcheck.ts';

const kProgram = 'test/lifetime/programs/train_run.mjs';
const kSteps = 300;
const kMaxKills = 12;
const kSeed = Number(process.env.BALORA_TEST_SEED ?? Date.now() % 1_000_000);

const folder = mkdtempSync(join(tmpdir(), 'balora-kill-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface Line {
  step: number;
  loss: number;
  gradNorm: number;
  consistency: number;
}

const metrics = (name: string): Pick<Line, 'step' | 'loss' | 'gradNorm' | 'consistency'>[] =>
  readFileSync(join(folder, name, 'run/metrics.jsonl'), 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => {
      const { step, loss, gradNorm, consistency } = JSON.parse(line) as Line;
      return { step, loss, gradNorm, consistency };
    });

it(`ends in the same bytes (seed ${kSeed})`, async () => {
  const straight = await runProgram(kProgram, { args: [join(folder, 'a'), String(kSteps)] });
  expect(straight.code, straight.stderr).toBe(0);
  const random = testRandom(kSeed);
  let [kills, last] = [0, ''];
  for (;;) {
    const delayMs = 2 + 120 * ((random() + 1) / 2);
    const allowed = kills < kMaxKills;
    const run = await runProgram(kProgram, {
      args: [join(folder, 'b'), String(kSteps)],
      onLine: (line, kill) => {
        last = line;
        // After the first step of this process, so that each one gets somewhere.
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
  expect(metrics('b')).toEqual(metrics('a'));
}, 120_000);
