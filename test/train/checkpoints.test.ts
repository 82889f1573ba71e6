// A checkpoint is used only if it is the one that was written: a changed bit, a missing file or a state that makes no sense lets the
// run continue from the checkpoint before, with a warning that names the file.
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { ArgumentError, FormatError } from '../../lib/errors.ts';
import { CHECKSUMS, writeChecksums } from '../../lib/io/checksums.ts';
import { setMemoryLimit } from '../../lib/runtime.ts';
import { latestCheckpoint } from '../../lib/train/checkpoints.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { TrainResult, Warning } from '../../lib/train/types.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

let output: string;
beforeEach(async () => {
  output = mkdtempSync(join(tmpdir(), 'balora-checkpoints-'));
  await run({ resume: false });
});
afterEach(() => rmSync(output, { recursive: true, force: true }));

const folderOf = (step: number): string => join(output, 'run/checkpoints', `step-${step}`);
const tensorsIn = (folder: string): Buffer => readFileSync(join(folder, 'state.safetensors'));

/** Trains six steps with a checkpoint after the third and one at the end. */
async function run(
  more: Partial<TrainerOptions> = {},
): Promise<{ result: TrainResult; start: number; warnings: Warning[] }> {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 4 });
  const warnings: Warning[] = [];
  let start = -1;
  const result = await new Trainer({
    ...{ tuned, data: tinySource(tinyBatches()), learningRate: 0.02, maxSteps: 6 },
    ...{ output, resume: true, saveSteps: 3 },
    callbacks: [
      (event) => {
        if (event.type === 'warning') warnings.push(event);
        if (event.type === 'start') start = event.startStep;
      },
    ],
    ...more,
  }).train();
  return { result, start, warnings };
}

/** Flips one bit of a file. */
function flipBit(path: string, at: number): void {
  const bytes = readFileSync(path);
  bytes[at] = (bytes[at] as number) ^ 1;
  writeFileSync(path, bytes);
}

/** Changes the state of the last checkpoint, with checksums that fit. */
async function editState(change: (state: Record<string, unknown>) => unknown): Promise<void> {
  const path = join(folderOf(6), 'state.json');
  writeFileSync(path, JSON.stringify(change(JSON.parse(readFileSync(path, 'utf8')))));
  await writeChecksums(folderOf(6), ['state.json', 'state.safetensors']);
}

describe('a damaged checkpoint', () => {
  it.each(['state.json', 'state.safetensors', CHECKSUMS])(
    'with a changed bit in %s is skipped, and the end is the same',
    async (name) => {
      const straight = readFileSync(join(output, 'adapter_model.safetensors'));
      const before = tensorsIn(folderOf(6));
      const path = join(folderOf(6), name);
      flipBit(path, name === CHECKSUMS ? 3 : readFileSync(path).length - 12);
      const { start, warnings } = await run();
      expect(start).toBe(3);
      expect(warnings.map(({ code }) => code)).toEqual(['checkpoint_damaged']);
      expect(warnings[0]?.message).toMatch(/step-6 is damaged \(.*(state\.\w+|SHA256SUMS)[^;]*\)$/);
      expect(tensorsIn(folderOf(6))).toEqual(before);
      expect(readFileSync(join(output, 'adapter_model.safetensors'))).toEqual(straight);
    },
  );

  it.each(['state.json', 'state.safetensors', CHECKSUMS])('without %s is skipped', async (name) => {
    rmSync(join(folderOf(6), name));
    const { start, warnings } = await run();
    expect(start).toBe(3);
    expect(warnings[0]?.message).toMatch(new RegExp(`step-6 is damaged \\(.*${name}: is missing`));
  });

  it.each<[string, (state: Record<string, unknown>) => unknown, RegExp]>([
    ['null', () => null, /state\.json: /],
    ['position -3', (s) => ({ ...s, position: { epoch: 0, microBatch: -3 } }), /position\.micro/],
    ['position 1.5', (s) => ({ ...s, position: { epoch: 1.5, microBatch: 0 } }), /position\.epoch/],
    ['no position', ({ position: _, ...s }) => s, /position: /],
    ['step "4"', (s) => ({ ...s, step: '4' }), /step: /],
    ['step 1e308', (s) => ({ ...s, step: 1e308 }), /step: /],
    [
      'the step of another one',
      (s) => ({ ...s, step: 3, last: null, optimizerSteps: {} }),
      /the state of step 3/,
    ],
    ['a step behind the end', (s) => ({ ...s, totalSteps: 5 }), /step: is more than totalSteps/],
    [
      'ten times the steps of the optimiser',
      (s) => ({ ...s, optimizerSteps: { ...(s.optimizerSteps as object), 'a.lora_A': 60 } }),
      /optimizerSteps: has more steps than the run/,
    ],
    [
      'a record of another step',
      (s) => ({ ...s, last: { ...(s.last as object), step: 2 } }),
      /last/,
    ],
    ['an unknown key', (s) => ({ ...s, more: 1 }), /more/],
  ])('with %s is skipped although its checksums fit', async (_, change, problem) => {
    await editState(change);
    const { start, warnings } = await run();
    expect(start).toBe(3);
    expect(warnings[0]?.message).toMatch(/step-6 is damaged/);
    expect(warnings[0]?.message).toMatch(problem);
  });

  it('with no step counts of the optimiser is refused', async () => {
    await editState((state) => ({ ...state, optimizerSteps: {} }));
    await expect(run()).rejects.toThrow(/step-6: the optimiser's state has no step count of "/);
    await editState((state) => ({ ...state, optimizerSteps: { foreign: 1 } }));
    await expect(run()).rejects.toThrow(FormatError);
  });

  it('is not one that memory did not suffice for', async () => {
    setMemoryLimit(1);
    const opened = latestCheckpoint(join(output, 'run/checkpoints'), {
      device: 'cpu',
      onDamaged: (message) => expect.unreachable(message),
    });
    await expect(opened.finally(() => setMemoryLimit(0))).rejects.toMatchObject({
      code: 'ERR_OUT_OF_MEMORY',
    });
  });
});

it('a checkpoint of a version without checksums is refused with the reason', async () => {
  rmSync(join(folderOf(6), CHECKSUMS));
  const path = join(folderOf(6), 'state.json');
  writeFileSync(path, readFileSync(path, 'utf8').replace('"format": 2', '"format": 1'));
  await expect(run()).rejects.toThrow(ArgumentError);
  await expect(run()).rejects.toThrow(
    /step-6 was written by an earlier version of balora, whose checkpoints have no checksums/,
  );
  expect(readdirSync(join(output, 'run/checkpoints')).sort()).toEqual(['step-3', 'step-6']);
});

describe('the best step', () => {
  const evaluated = (maxSteps: number, more: Partial<TrainerOptions> = {}) =>
    run({
      ...{ evalData: tinySource(tinyBatches({ count: 2 })), evalSteps: 2 },
      ...{ metricForBestModel: 'loss', maxSteps, ...more },
    });

  it.each(['best.json', 'state.safetensors'])('with a changed bit in %s is named', async (name) => {
    const stop = new AbortController();
    await evaluated(8, {
      ...{ overwrite: true, resume: false, signal: stop.signal },
      callbacks: [(event) => void (event.type === 'evaluation' && stop.abort())],
    });
    const best = join(output, 'run/best/step-2');
    expect(existsSync(best)).toBe(true);
    flipBit(join(best, name), readFileSync(join(best, name)).length - 12);
    const { result, warnings } = await evaluated(8);
    expect(warnings.map(({ code }) => code)).toEqual(['best_damaged']);
    expect(warnings[0]?.message).toMatch(new RegExp(`run/best/step-2 is damaged .*${name}`));
    expect(result.best?.step).toBeGreaterThan(2);
  });
});
