// The option compute: which products of a run are in int8, what follows for its numbers, and what is refused.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { FullModel } from '../../lib/adapters/full_model.ts';
import { METHOD_NAMES } from '../../lib/adapters/methods/registry.ts';
import { UnsupportedError } from '../../lib/errors.ts';
import { evaluate } from '../../lib/eval/evaluate.ts';
import { Linear } from '../../lib/nn/index.ts';
import { zeros } from '../../lib/ops/index.ts';
import { resolveMethod } from '../../lib/train/methods.ts';
import type { ComputeMode } from '../../lib/train/schema.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import type { StepRecord } from '../../lib/train/types.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

// Products in int8 have the same bits on every processor; a run is refused where they are slow.
vi.mock('../../lib/device.ts', async (load) =>
  (await import('../support/int8_anywhere.ts')).withoutSlowInt8(await load()),
);

const kModes = ['int8', 'teacher', 'dx', 'teacher,dx'] as const;
const kBaLora = { consistencyWeight: 0.1, diversityWeight: 0.02, svdWeight: 0.02, svdTopK: 3 };

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'balora-compute-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

const adapted = (dtype: 'f32' | 'bf16' = 'f32') =>
  AdapterModel.create(new TinyModel({ dtype, width: 64 }), { r: 4, loraAlpha: 8 });

const optionsFor = (
  tuned: TrainerOptions['tuned'],
  compute: ComputeMode,
  more: Partial<TrainerOptions> = {},
): TrainerOptions => ({
  ...{ tuned, compute, regularizers: kBaLora },
  data: tinySource(tinyBatches()),
  ...{ learningRate: 0.02, lrSchedulerType: 'constant', maxSteps: 3 },
  ...more,
});

async function records(options: TrainerOptions): Promise<StepRecord[]> {
  const found: StepRecord[] = [];
  for await (const event of new Trainer(options).run()) {
    if (event.type === 'step') found.push(event.record);
  }
  return found;
}

describe.each(['f32', 'bf16'] as const)('in %s', (dtype) => {
  it('trains in every mode, close to the run without int8', async () => {
    const exact = await records(optionsFor(await adapted(dtype), 'dtype'));
    for (const mode of kModes) {
      const found = await records(optionsFor(await adapted(dtype), mode));
      found.forEach(({ loss, gradNorm }, step) => {
        const wanted = exact[step] as StepRecord;
        expect(Math.abs(loss - wanted.loss), mode).toBeLessThan(0.05);
        expect(Math.abs(gradNorm / wanted.gradNorm - 1), mode).toBeLessThan(0.1);
      });
      expect(found.map(({ gradNorm }) => gradNorm)).not.toEqual(
        exact.map(({ gradNorm }) => gradNorm),
      );
    }
  });

  it('begins at a divergence of exactly 0 where student and teacher compute alike', async () => {
    const first = async (mode: ComputeMode) =>
      (await records(optionsFor(await adapted(dtype), mode, { maxSteps: 1 })))[0] as StepRecord;
    const [exact, int8, teacher, dx] = [
      await first('dtype'),
      await first('int8'),
      await first('teacher'),
      await first('dx'),
    ];
    expect([
      exact.terms.consistency?.value,
      int8.terms.consistency?.value,
      dx.terms.consistency?.value,
    ]).toEqual([0, 0, 0]);
    expect(teacher.terms.consistency?.value).toBeGreaterThan(0);
    expect([teacher.taskLoss, dx.taskLoss]).toEqual([exact.taskLoss, exact.taskLoss]);
    expect(int8.taskLoss).not.toBe(exact.taskLoss);
  });
});

it('is never on unless asked for, whatever the method', async () => {
  const numbersOf = (run: StepRecord[]) => run.map(({ loss, gradNorm }) => [loss, gradNorm]);
  const exact = await records(optionsFor(await adapted('bf16'), 'dtype'));
  const { compute: _, ...silent } = optionsFor(await adapted('bf16'), 'int8');
  expect(numbersOf(await records(silent))).toEqual(numbersOf(exact));
  for (const name of METHOD_NAMES) {
    const { optimization, regularizers } = resolveMethod(name);
    expect({ ...optimization, ...regularizers }, name).not.toHaveProperty('compute');
  }
});

it('repeats a run bit for bit, and leaves evaluations as they are', async () => {
  const [one, two] = [await adapted('bf16'), await adapted('bf16')];
  const runs = [await records(optionsFor(one, 'int8')), await records(optionsFor(two, 'int8'))];
  const losses = runs.map((run) => run.map(({ loss, gradNorm }) => [loss, gradNorm]));
  expect(losses[1]).toEqual(losses[0]);
  const fresh = await adapted('bf16');
  const before = await evaluate(fresh, tinyBatches());
  expect(before.loss).toBe((await evaluate(await adapted('bf16'), tinyBatches())).loss);
  let atStart: number | null = null;
  const options = optionsFor(fresh, 'int8', {
    ...{ evalData: tinySource(tinyBatches()), learningRate: 0, maxSteps: 1 },
  });
  for await (const event of new Trainer(options).run()) {
    if (event.type === 'evaluation') atStart = event.result.loss;
  }
  expect(atStart).toBe(before.loss);
});

it('keeps activations in int8 where all products are, under every choice of what layers keep', async () => {
  const kept = async (compute: ComputeMode, more: Partial<TrainerOptions> = {}) => {
    const tuned = await adapted('f32');
    const found = await records(optionsFor(tuned, compute, { ...more, maxSteps: 2 }));
    tuned.dispose();
    tuned.model.dispose();
    return found.map(({ loss, gradNorm }) => [loss, gradNorm]);
  };
  const int8 = await kept('int8');
  for (const memoryBudget of ['max', 'min', 2 ** 40] as const) {
    const [first, second] = await kept('int8', { memoryBudget });
    // The first losses do not depend on what is kept; the gradients do by the rounding of what is made again.
    expect(first?.[0]).toBe(int8[0]?.[0]);
    expect((first?.[1] as number) / (int8[0]?.[1] as number)).toBeCloseTo(1, 1);
    expect(second?.[0]).toBeCloseTo(int8[1]?.[0] as number, 2);
  }
});

it('is part of the identity of a run and of the key of a teacher cache', async () => {
  const output = join(folder, 'run');
  await records(optionsFor(await adapted(), 'int8', { output, maxSteps: 1 }));
  const resumed = (mode: ComputeMode) => async () =>
    records(optionsFor(await adapted(), mode, { output, resume: true, maxSteps: 1 }));
  await expect(resumed('dtype')()).rejects.toThrow('compute: was "int8", is not set');
  await expect(resumed('teacher')()).rejects.toThrow('compute: was "int8", is "teacher"');
  expect(await resumed('int8')()).toEqual([]);

  const teacherCache = join(folder, 'teacher.cache');
  const regularizers = { consistencyWeight: 0.1 };
  const cached = async (compute: ComputeMode) =>
    records(optionsFor(await adapted(), compute, { teacherCache, regularizers, maxSteps: 1 }));
  const first = await cached('int8');
  const losses = (run: StepRecord[]) => run.map(({ loss }) => loss);
  expect(losses(await cached('int8'))).toEqual(losses(first));
  await cached('teacher');
  for (const mode of ['dtype', 'dx'] as const) {
    await expect(cached(mode), mode).rejects.toThrow(
      /teacher\.cache: it holds outputs of another teacher: the type of its products is "int8", not "f32";/,
    );
  }
  const exact = { ...optionsFor(await adapted(), 'dx', { regularizers, maxSteps: 1 }) };
  const other = join(folder, 'exact.cache');
  await records({ ...exact, teacherCache: other });
  await expect(
    records(optionsFor(await adapted(), 'int8', { teacherCache: other, regularizers })),
  ).rejects.toThrow(/exact\.cache: .*: the type of its products is "f32", not "int8";/);
});

it('is refused where it cannot be, by name', async () => {
  const full = (mode: ComputeMode) => () =>
    new Trainer(optionsFor(new FullModel(new TinyModel()), mode, { regularizers: {} }));
  for (const mode of kModes) {
    expect(full(mode)).toThrow(UnsupportedError);
    expect(full(mode)).toThrow(/^compute: full fine-tuning changes all weights/);
  }
  const tuned = await adapted();
  const alone = (mode: ComputeMode) => () =>
    new Trainer(optionsFor(tuned, mode, { regularizers: {} }));
  for (const mode of ['teacher', 'teacher,dx'] as const) {
    expect(alone(mode)).toThrow('compute: no term of the loss reads a teacher; leave compute out');
  }
  for (const mode of ['dtype', 'int8', 'dx'] as const) expect(alone(mode)).not.toThrow();
  const long = await adapted();
  const linear = [...long.model.namedModules()].find(([, module]) => module instanceof Linear);
  const [path, module] = linear as [string, Linear];
  module.weight = zeros([131073, 1]).freeze();
  expect(() => new Trainer(optionsFor(long, 'dx'))).toThrow(
    `compute: sums in int8 have up to 131072 terms, and the weight of ${path} is (131073,1); leave compute out`,
  );
  expect(() => new Trainer(optionsFor(tuned, 'fp8' as never))).toThrow(/compute/);
});
