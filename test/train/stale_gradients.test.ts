// A run starts without the gradients of an earlier pass, such as a measured plan, a stopped window, or a failed loss.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import type { TunedModel } from '../../lib/adapters/tuned_model.ts';
import { crossEntropy, linear } from '../../lib/ops/index.ts';
import { tensor } from '../../lib/tensor.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { LossFunction, StepRecord } from '../../lib/train/types.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-gradients-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

/** Models with bf16 copies beside their master weights, and one without. */
const kModels: Record<string, () => Promise<TunedModel>> = {
  'full in bf16': async () => new FullModel(new TinyModel({ dtype: 'bf16' })),
  'full in f32': async () => new FullModel(new TinyModel()),
  'modulesToSave in bf16': () =>
    AdapterModel.create(new TinyModel({ dtype: 'bf16' }), { r: 2, modulesToSave: ['norm'] }),
};
const kinds = Object.entries(kModels);

const optionsFor = (tuned: TunedModel, more: Partial<TrainerOptions> = {}): TrainerOptions => ({
  tuned,
  data: tinySource(tinyBatches()),
  learningRate: 0.02,
  lrSchedulerType: 'constant',
  warmupSteps: 0,
  maxSteps: 3,
  gradientAccumulationSteps: 2,
  ...more,
});

async function run(options: TrainerOptions) {
  const records: StepRecord[] = [];
  for await (const event of new Trainer(options).run()) {
    if (event.type === 'step') records.push(event.record);
  }
  return records.map(({ loss, gradNorm }) => [loss, gradNorm]);
}

/** Cross-entropy that calls `act` in each micro-batch, with their number from 0. */
function lossThat(act: (call: number) => void): LossFunction {
  let calls = 0;
  return ({ hidden, headWeight, batch }) => {
    act(calls++);
    return { loss: crossEntropy(linear(hidden, headWeight), tensor(batch.targets)) };
  };
}

describe.each(kinds)('%s', (_, make) => {
  it('after a measured plan', async () => {
    const fresh = await run(optionsFor(await make()));
    const tuned = await make();
    await new Trainer(optionsFor(tuned)).plan({ measure: true });
    expect(await run(optionsFor(tuned))).toEqual(fresh);
  });

  it('after a stopped window, and one whose loss failed', async () => {
    const loss = lossThat(() => {});
    const output = join(folder, 'out');
    const fresh = await run(optionsFor(await make(), { loss }));
    const tuned = await make();
    const stop = new AbortController();
    const first = await run(
      optionsFor(tuned, {
        ...{ output, signal: stop.signal },
        loss: lossThat((call) => call === 2 && stop.abort()),
      }),
    );
    expect(first).toEqual(fresh.slice(0, 1));
    const failing = lossThat((call) => {
      if (call === 1) throw new Error('no loss');
    });
    await expect(run(optionsFor(tuned, { output, resume: true, loss: failing }))).rejects.toThrow(
      'no loss',
    );
    expect(await run(optionsFor(tuned, { output, resume: true, loss }))).toEqual(fresh.slice(1));
  });

  it("after a user's own backward, and a failed plan", async () => {
    const loss = lossThat(() => {});
    const fresh = await run(optionsFor(await make(), { loss }));
    const tuned = await make();
    const failing = lossThat((call) => {
      if (call === 1) throw new Error('no loss');
    });
    const failed = new Trainer(optionsFor(tuned, { loss: failing })).plan({ measure: true });
    await expect(failed).rejects.toThrow('no loss');
    expect(tuned.parameters().every(({ tensor: t }) => t.grad === null)).toBe(true);
    tuned.collectGradients();
    expect(tuned.parameters().every(({ tensor: t }) => t.grad === null)).toBe(true);
    const batch = tinyBatches({ count: 1 })[0] as ReturnType<typeof tinyBatches>[0];
    const hidden = tuned.model.forward(batch);
    crossEntropy(linear(hidden, tuned.model.head.weight), tensor(batch.targets)).backward();
    expect(await run(optionsFor(tuned, { loss }))).toEqual(fresh);
  });
});
