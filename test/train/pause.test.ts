// Pausing a run between two steps, and the hook afterBackward.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { fill_ } from '../../lib/ops/index.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { TrainEvent } from '../../lib/train/types.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-pause-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

async function trainerOf(options: Partial<TrainerOptions> = {}) {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 4, loraAlpha: 8 });
  const data = tinySource(tinyBatches());
  return { tuned, trainer: new Trainer({ tuned, data, maxSteps: 4, ...options }) };
}

it('a paused run has a checkpoint, and ends with the same numbers after it continues', async () => {
  const seen: string[] = [];
  const { trainer } = await trainerOf({
    output: join(folder, 'paused'),
    callbacks: [
      (event: TrainEvent) => {
        if (event.type === 'step' && event.record.step === 2) trainer.pause();
        if (['paused', 'resumed', 'checkpoint'].includes(event.type)) {
          seen.push(`${event.type}${'step' in event ? event.step : ''}`);
        }
        if (event.type === 'paused') setTimeout(() => trainer.resume(), 20);
      },
    ],
  });
  const paused = await trainer.train();
  expect(seen).toEqual(['checkpoint2', 'paused2', 'resumed2', 'checkpoint4']);
  const { trainer: straight } = await trainerOf();
  expect(paused.last?.loss).toBe((await straight.train()).last?.loss);
});

it('an abort ends the pause', async () => {
  const stop = new AbortController();
  const { trainer } = await trainerOf({
    signal: stop.signal,
    callbacks: [(event) => void (event.type === 'paused' && setTimeout(() => stop.abort(), 20))],
  });
  trainer.pause();
  expect(await trainer.train()).toMatchObject({ reason: 'aborted', steps: 1 });
});

it('resume() before the end of the step cancels the pause', async () => {
  const { trainer } = await trainerOf();
  trainer.pause();
  trainer.resume();
  expect(await trainer.train()).toMatchObject({ reason: 'completed', steps: 4 });
});

it('afterBackward has all gradients before they are clipped, and may change them', async () => {
  const norms: number[] = [];
  const { trainer } = await trainerOf({
    maxGradNorm: 1e-3,
    afterBackward: ({ parameters }) => {
      const sum = parameters
        .flatMap(({ tensor }) => Array.from((tensor.grad?.dataSync() ?? []) as Float32Array))
        .reduce((total, value) => total + value * value, 0);
      norms.push(Math.sqrt(sum));
      for (const { tensor } of parameters) if (tensor.grad) fill_(tensor.grad, 0);
    },
  });
  const { last } = await trainer.train();
  expect(norms[0]).toBeGreaterThan(1e-3);
  expect(last?.gradNorm).toBe(0);
});
