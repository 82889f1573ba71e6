// A run that is killed between any two changes to its folder, and resumed, has the result of one that was not: the same adapter, the
// same best step, and each step and each evaluation once in its record.
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { CheckedFolder } from '../../lib/io/checksums.ts';
import { listSteps } from '../../lib/io/run_folder.ts';
import type { EvaluationLine } from '../../lib/train/evaluation_log.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import type { StepRecord, TrainResult } from '../../lib/train/types.ts';
import { Killed, withChanges } from '../support/killed_writes.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

let folder: string;
beforeEach(() => {
  // In memory where there is such a folder: there are hundreds of runs.
  folder = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'balora-killed-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** The steps at which an attempt evaluated, where it began, its warnings, and its result; null where it was killed. */
interface Attempt {
  readonly evaluated: readonly number[];
  readonly startStep: number;
  readonly warnings: readonly string[];
  readonly result: TrainResult | null;
}

/** An attempt at a run of three steps, which becomes worse at last, so that the best step is not the last one. */
async function attempt(output: string, allowed = Number.POSITIVE_INFINITY): Promise<Attempt> {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 4, loraAlpha: 8 });
  const evaluated: number[] = [];
  const warnings: string[] = [];
  let startStep = 0;
  let result: TrainResult | null = null;
  await withChanges(allowed, async () => {
    const trainer = new Trainer({
      ...{ tuned, output, resume: true, maxSteps: 3, saveSteps: 2, evalSteps: 1 },
      ...{ learningRate: 0.2, lrSchedulerType: 'constant', metricForBestModel: 'loss' },
      data: tinySource(tinyBatches()),
      evalData: tinySource(tinyBatches({ count: 2 })),
      callbacks: [
        (event) => {
          if (event.type === 'evaluation') evaluated.push(event.step);
          if (event.type === 'start') startStep = event.startStep;
          if (event.type === 'warning') warnings.push(event.code);
        },
      ],
    });
    try {
      result = await trainer.train();
    } catch (error) {
      if (!(error instanceof Killed)) throw error;
    }
  });
  return { evaluated, startStep, warnings, result };
}

const lines = <T>(output: string, name: string): T[] =>
  readFileSync(join(output, 'run', name), 'utf8')
    .trimEnd()
    .split('\n')
    .map((line) => JSON.parse(line) as T);

const traces = (output: string) => ({
  adapter: readFileSync(join(output, 'adapter_model.safetensors'), 'base64'),
  steps: lines<StepRecord>(output, 'metrics.jsonl').map(({ step, loss }) => [step, loss]),
  evaluations: lines<EvaluationLine>(output, 'evaluations.jsonl').map(({ step, loss }) => [
    ...[step, loss],
  ]),
});

const timeless = ({ best, evaluation, steps }: TrainResult) => ({
  ...{ best, steps },
  evaluation: { ...evaluation, seconds: 0 },
});

/** The steps whose parameters are kept as the best, complete. */
async function completeBest(output: string): Promise<number[]> {
  const best = join(output, 'run/best');
  const complete: number[] = [];
  for (const { name, step } of await listSteps(best)) {
    try {
      const checked = await CheckedFolder.open(join(best, name));
      for (const file of ['best.json', 'state.safetensors']) await checked.verify(file);
      complete.push(step);
    } catch {
      // It is not complete.
    }
  }
  return complete;
}

it('at every change to its folder', async () => {
  const whole = join(folder, 'whole');
  const straight = await attempt(whole);
  const expected = timeless(straight.result as TrainResult);
  expect(straight.evaluated).toEqual([1, 2, 3]);
  expect(expected.best?.step).toBe(2);
  let changes = 0;
  for (;;) {
    const output = join(folder, `${changes}`);
    const first = await attempt(output, changes);
    if (first.result !== null) break;
    rmSync(join(output, 'run/lock'), { force: true }); // this process is alive, and a killed one is not
    const at = `killed at change ${changes + 1}`;
    if (first.evaluated.length > 0) expect(await completeBest(output), at).not.toEqual([]);
    const rest = await attempt(output);
    expect(timeless(rest.result as TrainResult), at).toEqual(expected);
    expect(traces(output), at).toEqual(traces(whole));
    expect(
      rest.warnings.filter((code) => code !== 'nothing_to_resume'),
      at,
    ).toEqual([]);
    const repeated = rest.evaluated.filter(
      (step) => step <= rest.startStep && first.evaluated.includes(step),
    );
    expect(repeated, at).toEqual([]);
    rmSync(output, { recursive: true });
    changes++;
  }
  expect(changes).toBeGreaterThan(60);
});
