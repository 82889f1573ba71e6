import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { LoraConfigInput } from '../../lib/adapters/config.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import type { TunedModel } from '../../lib/adapters/tuned_model.ts';
import type { Batch } from '../../lib/data/collate.ts';
import { NativeError } from '../../lib/errors.ts';
import { namesIn } from '../../lib/io/files.ts';
import { crossEntropy, linear, mul } from '../../lib/ops/index.ts';
import { memoryStats, resetPeakMemory, setMemoryLimit } from '../../lib/runtime.ts';
import { tensor } from '../../lib/tensor.ts';
import type { RegularizerOptions } from '../../lib/train/regularizers.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { StepRecord, TrainEvent } from '../../lib/train/types.ts';
import { collectGarbage } from '../support/collect_garbage.ts';
import { stateValues, timeless } from '../support/run_numbers.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-trainer-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const kBaLora = { consistencyWeight: 0.1, diversityWeight: 0.02, svdWeight: 0.02, svdTopK: 3 };

const adapted = (config: LoraConfigInput = {}, dtype: 'f32' | 'bf16' = 'f32') =>
  AdapterModel.create(new TinyModel({ dtype }), { r: 4, loraAlpha: 8, ...config });

const optionsFor = (tuned: TunedModel, more: Partial<TrainerOptions> = {}): TrainerOptions => ({
  tuned,
  data: tinySource(tinyBatches()),
  learningRate: 0.02,
  lrSchedulerType: 'constant',
  maxSteps: 6,
  ...more,
});

async function records(options: TrainerOptions): Promise<StepRecord[]> {
  const found: StepRecord[] = [];
  for await (const event of new Trainer(options).run()) {
    if (event.type === 'step') found.push(event.record);
  }
  return found;
}

describe('Trainer', () => {
  it.each([
    ['lora', {}],
    ['pissa', { initLoraWeights: 'pissa' as const }],
    ['rslora', { useRslora: true }],
  ])('learns with %s', async (_, config) => {
    const tuned = await adapted(config);
    const found = await records(optionsFor(tuned, { maxSteps: 60, regularizers: kBaLora }));
    expect(found).toHaveLength(60);
    expect((found[59] as StepRecord).taskLoss).toBeLessThan(
      0.5 * (found[0] as StepRecord).taskLoss,
    );
    expect((found[0] as StepRecord).terms.consistency?.value).toBe(0);
    expect((found[59] as StepRecord).terms.consistency?.value as number).toBeGreaterThan(0);
  });

  it('takes the same step from 1 micro-batch of 8 and 8 of 1, except for the SVD term', async () => {
    const batches = tinyBatches({ count: 8 });
    const whole = joined(batches);
    const regularizers = { ...kBaLora, svdWeight: 0, consistencySchedule: 'adaptive' as const };
    const runs: StepRecord[][] = [];
    const states: Record<string, number[]>[] = [];
    for (const [data, gradientAccumulationSteps] of [
      [tinySource([whole]), 1],
      [tinySource(batches), 8],
    ] as const) {
      const tuned = await adapted({ initLoraWeights: 'pissa' });
      runs.push(
        await records(
          optionsFor(tuned, {
            data,
            gradientAccumulationSteps,
            regularizers,
            maxSteps: 4,
            optim: 'sgd',
          }),
        ),
      );
      states.push(
        Object.fromEntries(
          tuned
            .parameters()
            .map(({ name, tensor: t }) => [name, Array.from(t.dataSync() as Float32Array)]),
        ),
      );
    }
    const [one, eight] = runs as [StepRecord[], StepRecord[]];
    one.forEach((record, i) => {
      const other = eight[i] as StepRecord;
      for (const key of ['loss', 'taskLoss', 'gradNorm'] as const) {
        expect(Math.abs(record[key] - other[key]), key).toBeLessThan(1e-5);
      }
      for (const key of ['consistency', 'diversity']) {
        const [term, same] = [record.terms[key], other.terms[key]];
        expect(Math.abs(Number(term?.value) - Number(same?.value)), key).toBeLessThan(1e-5);
        expect(Math.abs(Number(term?.weight) - Number(same?.weight)), key).toBeLessThan(1e-5);
      }
      expect(other.tokens).toBe(record.tokens);
      expect(other.supervisedTokens).toBe(record.supervisedTokens);
    });
    for (const [name, values] of Object.entries(states[0] as object)) {
      (values as number[]).forEach((value, i) => {
        expect(
          Math.abs(value - ((states[1] as Record<string, number[]>)[name]?.[i] as number)),
        ).toBeLessThan(1e-5);
      });
    }
  });

  it('moves l1 between the bounds of the adaptive schedule', async () => {
    const weightsWith = async (bounds: RegularizerOptions): Promise<number[]> => {
      const regularizers = { ...kBaLora, consistencySchedule: 'adaptive' as const, ...bounds };
      const tuned = await adapted({ initLoraWeights: 'pissa' });
      const found = await records(optionsFor(tuned, { regularizers, maxSteps: 4 }));
      return found.map(({ terms }) => terms.consistency?.weight as number);
    };
    // The certainty of the teacher, from the default bounds: a tenth of l1, and l1.
    const sure = (await weightsWith({})).map((weight) => (weight - 0.01) / 0.09);
    for (const share of sure) expect(share > 0.01 && share < 0.99, `${share}`).toBe(true);
    const expected = (min: number, max: number) => sure.map((c) => min + (max - min) * c);
    for (const [bounds, min, max] of [
      [{ consistencyWeightMin: 0.03 }, 0.03, 0.1],
      [{ consistencyWeightMax: 0.7 }, 0.01, 0.7],
      [{ consistencyWeightMin: 0.02, consistencyWeightMax: 0.02 }, 0.02, 0.02],
      [{ consistencyWeightMin: 0, consistencyWeightMax: 0.3 }, 0, 0.3],
    ] as const) {
      const found = await weightsWith(bounds);
      found.forEach((weight, i) => {
        expect(weight, `step ${i + 1}`).toBeCloseTo(expected(min, max)[i] as number, 12);
      });
    }
  });

  it('writes an adapter, metrics, a config and a checkpoint', async () => {
    const output = join(folder, 'out');
    const tuned = await adapted({ initLoraWeights: 'pissa' });
    const events: string[] = [];
    const seen: TrainEvent['type'][] = [];
    const trainer = new Trainer(
      optionsFor(tuned, {
        output,
        evalData: tinySource(tinyBatches({ count: 2 })),
        saveSteps: 2,
        evalSteps: 3,
        loggingSteps: 4,
        saveTotalLimit: 1,
        runConfig: { model: 'tiny' },
        callbacks: [(event) => void seen.push(event.type)],
      }),
    );
    let last: TrainEvent | undefined;
    for await (const event of trainer.run()) {
      events.push(event.type);
      last = event;
    }
    expect(events).toEqual(seen);
    // Events of an evaluation's progress come only as fast as the consumer reads them.
    expect(events).toContain('evaluating');
    expect(events.filter((type) => type !== 'evaluating').join(' ')).toBe(
      'start step step checkpoint step evaluation step log checkpoint step step log checkpoint evaluation end',
    );
    expect(last).toMatchObject({ type: 'end', reason: 'completed', result: { steps: 6, output } });
    expect((await namesIn(output)).sort()).toEqual([
      'README.md',
      'adapter_config.json',
      'adapter_model.safetensors',
      'loss.svg',
      'run',
    ]);
    expect(await namesIn(join(output, 'run/checkpoints'))).toEqual(['step-6']);
    const lines = readFileSync(join(output, 'run/metrics.jsonl'), 'utf8').trimEnd().split('\n');
    expect(lines.map((line) => (JSON.parse(line) as StepRecord).step)).toEqual([1, 2, 3, 4, 5, 6]);
    const config = JSON.parse(readFileSync(join(output, 'run/config.json'), 'utf8'));
    expect(config).toMatchObject({
      format: 2,
      runConfig: { model: 'tiny' },
      values: { 'learning-rate': 0.02 },
      source: { 'learning-rate': 'given', 'weight-decay': 'default' },
    });

    const again = await AdapterModel.fromPretrained(new TinyModel(), output);
    const batch = tinyBatches({ count: 1 })[0] as Batch;
    const hidden = (one: TunedModel) => one.model.forward(batch).dataSync() as Float32Array;
    const [mine, theirs] = [hidden(tuned), hidden(again)];
    mine.forEach((value, i) => {
      expect(Math.abs(value - (theirs[i] as number))).toBeLessThan(1e-5);
    });
  });

  it.each(['lora', 'pissa', 'full'])(
    'goes on bit for bit after an interruption: %s',
    async (kind) => {
      const make = async (): Promise<TunedModel> =>
        kind === 'full'
          ? new FullModel(new TinyModel({ dtype: 'bf16' }), {
              teacher: new TinyModel({ dtype: 'bf16' }),
            })
          : adapted(kind === 'pissa' ? { initLoraWeights: 'pissa' } : {});
      const settings = {
        regularizers: kBaLora,
        gradientAccumulationSteps: 3,
        maxSteps: 7,
        saveSteps: 2,
      };
      const straight = await make();
      const whole = await records(optionsFor(straight, { ...settings, output: join(folder, 'a') }));

      const output = join(folder, 'b');
      const stop = new AbortController();
      const first = await new Trainer(
        optionsFor(await make(), {
          ...settings,
          output,
          signal: stop.signal,
          callbacks: [
            (event) => void (event.type === 'step' && event.record.step === 5 && stop.abort()),
          ],
        }),
      ).train();
      expect(first).toMatchObject({ reason: 'aborted', steps: 5, output: null });
      const resumed = await make();
      const rest = await records(optionsFor(resumed, { ...settings, output, resume: true }));
      expect(rest.map(timeless)).toEqual(whole.slice(5).map(timeless));
      expect(stateValues(resumed)).toEqual(stateValues(straight));
      const steps = readFileSync(join(output, 'run/metrics.jsonl'), 'utf8').trimEnd().split('\n');
      expect(steps.map((line) => timeless(JSON.parse(line) as StepRecord))).toEqual(
        whole.map(timeless),
      );

      const done = await new Trainer(
        optionsFor(await make(), { ...settings, output, resume: true }),
      ).train();
      expect(done).toMatchObject({ reason: 'completed', steps: 7 });
    },
  );

  it('refuses to resume another run, and skips a damaged checkpoint', async () => {
    const output = join(folder, 'out');
    await new Trainer(optionsFor(await adapted(), { output, saveSteps: 2 })).train();
    const changed = new Trainer(
      optionsFor(await adapted(), { output, resume: true, learningRate: 1 }),
    );
    await expect(changed.train()).rejects.toThrow(/learningRate: was 0.02, is 1/);
    rmSync(join(output, 'run/checkpoints/step-6/state.safetensors'));
    const warnings: [code: string, message: string][] = [];
    const tuned = await adapted();
    await new Trainer(
      optionsFor(tuned, {
        output,
        resume: true,
        callbacks: [
          (event) => void (event.type === 'warning' && warnings.push([event.code, event.message])),
        ],
      }),
    ).train();
    expect(warnings).toEqual([
      ['checkpoint_damaged', expect.stringMatching(/step-6 is damaged \([^;]*\)$/)],
    ]);
  });

  it('says once what to do where all checkpoints are damaged', async () => {
    const output = join(folder, 'out');
    await new Trainer(optionsFor(await adapted(), { output })).train();
    for (const name of await namesIn(join(output, 'run/checkpoints'))) {
      writeFileSync(join(output, 'run/checkpoints', name, 'state.json'), '{');
    }
    const resumed = new Trainer(optionsFor(await adapted(), { output, resume: true }));
    await expect(resumed.train()).rejects.toThrow(
      /step-6 is damaged \([^;]*\); begin anew with overwrite: true, or put a copy of a checkpoint into the folder$/,
    );
  });

  it('does not delete a new checkpoint in favour of a damaged one of a later step', async () => {
    const output = join(folder, 'out');
    const shared = { output, saveSteps: 2, saveTotalLimit: 1 };
    await new Trainer(optionsFor(await adapted(), { ...shared, saveTotalLimit: 2 })).train();
    rmSync(join(output, 'run/checkpoints/step-6/state.safetensors'));
    const stop = new AbortController();
    const callbacks = [(event: TrainEvent) => void (event.type === 'step' && stop.abort())];
    const resumed = { ...shared, resume: true };
    await new Trainer(
      optionsFor(await adapted(), { ...resumed, signal: stop.signal, callbacks }),
    ).train();
    expect(await namesIn(join(output, 'run/checkpoints'))).toEqual(['step-5', 'step-6']);
    expect(await records(optionsFor(await adapted(), resumed))).toHaveLength(1);
    expect(await namesIn(join(output, 'run/checkpoints'))).toEqual(['step-6']);
    expect(await records(optionsFor(await adapted(), resumed))).toHaveLength(0);
  });

  it('refuses a learning rate that is not a number', async () => {
    const tuned = await adapted();
    const before = stateValues(tuned);
    const schedule = { lrSchedulerType: 'cosine', lrSchedulerKwargs: { numCycles: 1e308 } };
    await expect(records(optionsFor(tuned, { ...schedule, warmupSteps: 0 }))).rejects.toThrow(
      /the options of cosine give step 0 of 6 the rate NaN/,
    );
    const output = join(folder, 'out');
    await expect(
      records(optionsFor(tuned, { ...schedule, warmupSteps: 4, output })),
    ).rejects.toThrow(/the options of cosine give step 4 of 6 the rate NaN/);
    expect(existsSync(output)).toBe(false);
    expect(stateValues(tuned)).toEqual(before);
  });

  it('applies no dropout after a failed forward', async () => {
    const model = new TinyModel();
    const tuned = await AdapterModel.create(model, { r: 2, loraDropout: 0.5 });
    const [good, bad] = tinyBatches({ count: 2 }) as [Batch, Batch];
    bad.inputIds[3] = 99;
    const data = tinySource([good, bad]);
    await expect(records(optionsFor(tuned, { data }))).rejects.toThrow(
      'inputIds[3] must be 0 to 16, an id of the vocabulary, got 99',
    );
    expect(model.dropsInputs).toBe(false);
    const hidden = () => model.forward(good).dataSync();
    const after = hidden();
    tuned.trainingPass(null);
    expect(after).toEqual(hidden());
  });

  it('stops at a loss of NaN, and names the step and the last good checkpoint', async () => {
    const output = join(folder, 'out');
    const tuned = await adapted();
    let before: unknown;
    const trainer = new Trainer(
      optionsFor(tuned, {
        output,
        saveSteps: 1,
        loss: ({ hidden, headWeight, batch, step }) => ({
          loss: mul(
            crossEntropy(linear(hidden, headWeight), tensor(batch.targets)),
            step === 3 ? Number.NaN : 1,
          ),
        }),
        callbacks: [
          (event) => {
            if (event.type === 'checkpoint') before = stateValues(tuned);
          },
        ],
      }),
    );
    const failed = trainer.train();
    await expect(failed).rejects.toThrow(NativeError);
    await expect(failed).rejects.toThrow(
      /step 4: not finite \(taskLoss NaN, gradNorm NaN\).*last good checkpoint is .*step-3/,
    );
    expect(stateValues(tuned)).toEqual(before);
    expect(await namesIn(join(output, 'run/checkpoints'))).toContain('step-3');
  });

  it.each([0.05, 0.5, 0.95])(
    'runs out of memory after %s of what a step needs, reports the sizes, and is resumed from its checkpoint',
    async (share) => {
      const settings = { regularizers: kBaLora, saveSteps: 1 };
      const straight = await adapted({ initLoraWeights: 'pissa' });
      const whole = await records(optionsFor(straight, settings));

      const output = join(folder, 'out');
      const tuned = await adapted({ initLoraWeights: 'pissa' });
      let good: unknown;
      const limited = async (event: TrainEvent) => {
        if (event.type !== 'checkpoint') return;
        await collectGarbage(); // collecting tensors of earlier tests would free memory during the step
        const { liveBytes, peakBytes } = memoryStats();
        if (event.step === 2) resetPeakMemory();
        if (event.step !== 3) return;
        good = stateValues(tuned);
        setMemoryLimit(Math.round(liveBytes + share * (peakBytes - liveBytes)));
      };
      try {
        const failed = new Trainer(
          optionsFor(tuned, { ...settings, output, callbacks: [limited] }),
        ).train();
        await expect(failed).rejects.toThrow(NativeError);
        await expect(failed).rejects.toThrow(
          /out of memory: \d+ bytes wanted, \d+ in use on cpu.*, the limit is \d+/,
        );
      } finally {
        setMemoryLimit(0);
      }
      expect(stateValues(tuned)).toEqual(good);
      expect(await namesIn(join(output, 'run/checkpoints'))).toEqual(['step-2', 'step-3']);
      expect(await namesIn(output)).toEqual(['run']);

      const warnings: string[] = [];
      const resumed = await adapted({ initLoraWeights: 'pissa' });
      const rest = await records(
        optionsFor(resumed, {
          ...{ ...settings, output, resume: true },
          callbacks: [(event) => void (event.type === 'warning' && warnings.push(event.code))],
        }),
      );
      expect(warnings).toEqual([]);
      expect(rest.map(timeless)).toEqual(whole.slice(3).map(timeless));
      expect(stateValues(resumed)).toEqual(stateValues(straight));
    },
  );

  it('uses a custom loss and reports its metrics', async () => {
    const tuned = await adapted();
    const own = await records(
      optionsFor(tuned, {
        gradientAccumulationSteps: 2,
        loss: ({ hidden, headWeight, batch, teacherHidden }) => {
          expect(teacherHidden().shape).toEqual(hidden.shape);
          const loss = crossEntropy(linear(hidden, headWeight), tensor(batch.targets));
          return { loss, metrics: { twice: mul(loss.detach(), 2) } };
        },
      }),
    );
    const builtIn = await records(optionsFor(await adapted(), { gradientAccumulationSteps: 2 }));
    own.forEach((record, i) => {
      const other = builtIn[i] as StepRecord;
      expect(Math.abs(record.loss - other.loss)).toBeLessThan(1e-5);
      expect(Math.abs(record.gradNorm - other.gradNorm)).toBeLessThan(1e-4);
      expect(record.custom?.twice).toBeCloseTo(2 * record.loss, 5);
    });
    const detached = new Trainer(
      optionsFor(await adapted(), { loss: ({ hidden }) => ({ loss: hidden.detach() }) }),
    );
    await expect(detached.train()).rejects.toThrow(/loss: must be one number/);
  });

  it.each(['f32', 'bf16'] as const)('trains every weight in %s', async (dtype) => {
    const tuned = new FullModel(new TinyModel({ dtype }), { teacher: new TinyModel({ dtype }) });
    const found = await records(
      optionsFor(tuned, { maxSteps: 40, learningRate: 0.01, regularizers: kBaLora }),
    );
    // The teacher's weights are packed and the trained ones are not, so that f32 rounding may differ.
    expect(Math.abs((found[0] as StepRecord).terms.consistency?.value as number)).toBeLessThan(
      1e-6,
    );
    expect((found[39] as StepRecord).taskLoss).toBeLessThan(
      0.5 * (found[0] as StepRecord).taskLoss,
    );
    const [first] = tuned.parameters();
    expect(first?.tensor.dtype).toBe('f32');
  });

  it('refuses a consistency term without a teacher, and options out of range', async () => {
    const tuned = new FullModel(new TinyModel());
    expect(() => new Trainer(optionsFor(tuned, { regularizers: kBaLora }))).toThrow(
      /consistencyWeight > 0 needs a frozen copy of the model as its teacher/,
    );
    expect(() => new Trainer(optionsFor(tuned, { adamBeta1: 1 }))).toThrow(
      /adamBeta1 must be a number >= 0 and < 1/,
    );
    expect(() => new Trainer(optionsFor(tuned, { maxSteps: 0 }))).toThrow(
      /maxSteps must be a whole number >= 1/,
    );
    expect(() => new Trainer(optionsFor(tuned, { lrSchedulerType: 'cosin' }))).toThrow(
      /lrSchedulerType must be one of/,
    );
  });

  it('plans and measures', async () => {
    const tuned = await adapted({ initLoraWeights: 'pissa' });
    const plan = await new Trainer(optionsFor(tuned, { warmupSteps: 0.5 })).plan({ measure: true });
    expect(plan).toMatchObject({
      totalSteps: 6,
      warmupSteps: 3,
      microBatchesPerEpoch: 8,
      measuredTokens: 12,
    });
    const trainable = tuned.parameters().reduce((sum, { tensor: t }) => sum + t.size, 0);
    expect(plan.trainableParameters).toBe(trainable);
    expect(plan.memory.adapterBytes).toBe(8 * trainable); // master weights and frozen initial values
    expect(plan.memory.activationBytes).toBeGreaterThan(0);
    expect(plan.secondsPerStep).toBeGreaterThan(0);
    expect(tuned.parameters().every(({ tensor: t }) => t.grad === null)).toBe(true);
  });
});

describe('setAdapter', () => {
  /** A model with an adapter of method balora, and one of method lora beside it. */
  const both = async () => {
    const tuned = await AdapterModel.create(new TinyModel(), { r: 4, method: 'balora' });
    await tuned.addAdapter('plain', { r: 4, method: 'lora' });
    return tuned;
  };
  const run = async (trainer: Trainer): Promise<StepRecord> => {
    const { last } = await trainer.train();
    return last as StepRecord;
  };

  it('between a Trainer and its run brings the method of the adapter that is trained', async () => {
    const tuned = await both();
    const made = new Trainer(optionsFor(tuned, { maxSteps: 2 }));
    expect(made.options.regularizers.consistencyWeight).toBe(0.025);
    tuned.setAdapter('plain');
    expect(made.options.regularizers.consistencyWeight).toBe(0);
    expect((await run(made)).terms).toEqual({});
    const plain = new Trainer(optionsFor(tuned, { maxSteps: 2, output: join(folder, 'out') }));
    tuned.setAdapter('default');
    expect((await plain.plan()).trainableParameters).toBeGreaterThan(0);
    expect((await run(plain)).terms.consistency?.value).toEqual(expect.any(Number));
    const { values } = JSON.parse(readFileSync(join(folder, 'out/run/config.json'), 'utf8'));
    expect(values['consistency-weight']).toBe(0.025);
  });

  it('leaves what the options themselves set, and refuses an adapter that they do not go with', async () => {
    const tuned = await both();
    const regularizers = { consistencyWeight: 0.5 };
    const trainer = new Trainer(optionsFor(tuned, { maxSteps: 2, regularizers }));
    tuned.setAdapter('plain');
    expect(trainer.options.regularizers).toMatchObject({ consistencyWeight: 0.5, svdWeight: 0 });
    tuned.setAdapter('default');
    const cached = new Trainer(optionsFor(tuned, { maxSteps: 2, cacheTeacher: true }));
    tuned.setAdapter('plain');
    await expect(cached.train()).rejects.toThrow(
      /^cacheTeacher: without a consistency term there is no teacher to cache/,
    );
  });

  it('in the middle of a run is refused, and so is every other change of the adapters', async () => {
    const tuned = await both();
    const refused: string[] = [];
    const attempt = async (change: () => unknown) => {
      const error = await Promise.resolve()
        .then(change)
        .catch((e: Error) => e);
      refused.push((error as Error).message);
    };
    await new Trainer(
      optionsFor(tuned, {
        maxSteps: 1,
        callbacks: [
          async (event) => {
            if (event.type !== 'step') return;
            await attempt(() => tuned.setAdapter('plain'));
            await attempt(() => tuned.addAdapter('third'));
            await attempt(() => tuned.mergeAndUnload());
            await attempt(() => tuned.dispose());
          },
        ],
      }),
    ).train();
    for (const [i, name] of ['setAdapter', 'addAdapter', 'mergeAndUnload', 'dispose'].entries()) {
      expect(refused[i]).toMatch(
        new RegExp(`^${name}: the model is being trained, .* await the end`),
      );
    }
    tuned.setAdapter('plain');
    expect(tuned.names).toEqual(['default', 'plain']);
    tuned.dispose();
  });

  it('to none in the middle of a run ends it with the last step saved', async () => {
    const tuned = await both();
    const output = join(folder, 'out');
    const callbacks = [
      (event: TrainEvent) => {
        if (event.type === 'step' && event.record.step === 3) tuned.enabled = false;
      },
    ];
    await expect(
      new Trainer(optionsFor(tuned, { maxSteps: 6, output, callbacks })).train(),
    ).rejects.toThrow(/^the adapter is switched off, .*the last good checkpoint is .*step-3/);
  });

  it('in the middle of a run ends it, with its own adapter saved', async () => {
    const tuned = await both();
    const output = join(folder, 'out');
    const trainer = new Trainer(
      optionsFor(tuned, {
        ...{ maxSteps: 6, output, saveSteps: 2 },
        callbacks: [
          (event) => {
            if (event.type === 'step' && event.record.step === 3) tuned.setAdapter('plain');
          },
        ],
      }),
    );
    await expect(trainer.train()).rejects.toThrow(
      /^setAdapter: the model is being trained, .*the last good checkpoint is .*step-3/s,
    );
    expect(await namesIn(join(output, 'run/checkpoints'))).toEqual(['step-2', 'step-3']);
    const again = new Trainer(optionsFor(tuned, { maxSteps: 6, output, resume: true }));
    expect((await again.train()).steps).toBe(6);
  });
});

describe('a second run on a model', () => {
  it('is refused while the first is in progress, and so is its measured plan', async () => {
    const tuned = await adapted();
    const first = new Trainer(optionsFor(tuned, { maxSteps: 2 })).run();
    for (let next = await first.next(); ; next = await first.next()) {
      if (next.done || next.value.type === 'step') break;
    }
    const output = join(folder, 'second');
    const second = new Trainer(optionsFor(tuned, { maxSteps: 2, output }));
    const message = /^the model is being trained by another run: await its end/;
    await expect(second.train()).rejects.toThrow(message);
    await expect(second.plan({ measure: true })).rejects.toThrow(message);
    expect(existsSync(output)).toBe(false);
    expect((await second.plan()).totalSteps).toBe(2);
    await first.return(undefined as never);
    expect((await second.train()).reason).toBe('completed');
    await expect(
      new Trainer(optionsFor(tuned, { output })).train(), // the folder is not empty
    ).rejects.toThrow(/is not empty/);
    expect((await new Trainer(optionsFor(tuned, { maxSteps: 1 })).train()).steps).toBe(1);
  });
});

/** Joins several micro-batches into one. */
function joined(batches: readonly Batch[]): Batch {
  const rows: number[] = [];
  const concat = (key: 'inputIds' | 'positions' | 'targets') =>
    Int32Array.from(batches.flatMap((batch) => Array.from(batch[key])));
  let at = 0;
  rows.push(0);
  for (const { cuSeqlens } of batches) {
    for (const end of cuSeqlens.slice(1)) rows.push(at + end);
    at += cuSeqlens[cuSeqlens.length - 1] as number;
  }
  return {
    inputIds: concat('inputIds'),
    positions: concat('positions'),
    targets: concat('targets'),
    cuSeqlens: Int32Array.from(rows),
  };
}
