// Options that change nothing in a run are said, once, by name; those that do, and those at their defaults, are not.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { defineTerm } from '../../lib/losses/term.ts';
import { mean, square } from '../../lib/ops/index.ts';
import {
  learningRateSchedule,
  SCHEDULER_NAMES,
  type SchedulerOptions,
} from '../../lib/optim/schedulers.ts';
import { unreadOptions } from '../../lib/train/idle_options.ts';
import { Trainer, type TrainerOptions } from '../../lib/train/trainer.ts';
import { TinyModel, tinyBatches, tinySource } from '../support/tiny_model.ts';

const folder = mkdtempSync(join(tmpdir(), 'balora-idle-'));
afterAll(() => rmSync(folder, { recursive: true }));
const data = tinySource(tinyBatches({ count: 2 }));

async function saidOf(
  more: Partial<TrainerOptions>,
  { method }: { method?: 'balora' | 'pissa' } = {},
): Promise<string[]> {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 2, ...(method && { method }) });
  const said: string[] = [];
  const trainer = new Trainer({ tuned, data, maxSteps: 2, ...more });
  for await (const event of trainer.run()) {
    if (event.type === 'warning' && event.code === 'option_without_effect')
      said.push(event.message);
  }
  return said;
}

const output = (): string => mkdtempSync(join(folder, 'run-'));
const loss: TrainerOptions['loss'] = ({ hidden }) => ({ loss: mean(square(hidden)) });
const small = defineTerm({
  key: 'small',
  weight: 1,
  value: ({ logits }) => mean(square(logits())),
});

describe('an option without effect', () => {
  it.each<[Partial<TrainerOptions>, string[]]>([
    [{ momentum: 0.9 }, ['momentum 0.9 has no effect: it needs optim sgd']],
    [
      { optim: 'sgd', adamBeta1: 0.8, adamBeta2: 0.9, adamEpsilon: 1e-6 },
      [
        'adamBeta1 0.8 has no effect: it needs optim adamw, lora_fa or riemannian',
        'adamBeta2 0.9 has no effect: it needs optim adamw, lora_fa or riemannian',
        'adamEpsilon 0.000001 has no effect: it needs optim adamw, lora_fa or riemannian',
      ],
    ],
    [
      { optim: 'adafactor', adamBeta2: 0.9 },
      ['adamBeta2 0.9 has no effect: it needs optim adamw, lora_fa or riemannian'],
    ],
    [{ riemannianReg: 0.1 }, ['riemannianReg 0.1 has no effect: it needs optim riemannian']],
    [
      { lrSchedulerType: 'constant', warmupSteps: 5 },
      [
        'warmupSteps 5 has no effect: it needs a schedule with a warm-up, which lrSchedulerType constant has not',
      ],
    ],
    [
      { lrSchedulerType: 'linear', lrSchedulerKwargs: { minLr: 1e-6, power: 2 } },
      [
        'lrSchedulerKwargs: minLr has no effect: the schedule linear does not read it',
        'lrSchedulerKwargs: power has no effect: the schedule linear does not read it',
      ],
    ],
    [
      { saveSteps: 1, saveMinutes: 5, saveTotalLimit: 3, overwrite: true },
      [
        'overwrite true has no effect: it needs output',
        'saveSteps 1 has no effect: it needs output',
        'saveMinutes 5 has no effect: it needs output',
        'saveTotalLimit 3 has no effect: it needs output',
      ],
    ],
    [
      { output: output(), saveMinutes: 0, saveTotalLimit: 3 },
      ['saveTotalLimit 3 has no effect: it needs saveSteps or saveMinutes above 0'],
    ],
    [{ evalSteps: 1 }, ['evalSteps 1 has no effect: it needs evalData']],
    [
      { regularizers: { temperature: 3, consistencySchedule: 'constant' } },
      [
        'temperature 3 has no effect: it needs consistencyWeight above 0',
        'consistencySchedule "constant" has no effect: it needs consistencyWeight above 0',
      ],
    ],
    [
      { regularizers: { svdWeight: 0.1, svdTopK: 3, entropyTopK: 5 } },
      ['entropyTopK 5 has no effect: it needs diversityWeight above 0'],
    ],
    [
      { regularizers: { regularizerSchedule: 'constant', positions: 'non_padding' } },
      [
        'regularizerSchedule "constant" has no effect: it needs diversityWeight or svdWeight above 0',
        'positions "non_padding" has no effect: it needs consistencyWeight or diversityWeight or svdWeight above 0',
      ],
    ],
    [
      { regularizers: { svdWeight: 0.1, regularizerWarmupSteps: 3 } },
      [
        'regularizerWarmupSteps 3 has no effect: it needs regularizerSchedule linear_warmup or quadratic_warmup',
      ],
    ],
    [
      {
        regularizers: {
          ...{ diversityWeight: 0.1, regularizerSchedule: 'linear_warmup' },
          regularizerRampRatio: 0.5,
        },
      },
      ['regularizerRampRatio 0.5 has no effect: it needs regularizerSchedule two_phase'],
    ],
    [
      { loss, regularizers: { svdWeight: 0.1 } },
      [
        "svdWeight 0.1 has no effect: it needs the task's own loss, which a loss of one's own replaces",
      ],
    ],
  ])('is named: %j', async (more, expected) => {
    expect((await saidOf(more)).sort()).toEqual([...expected].sort());
  });

  it.each<[Partial<TrainerOptions>]>([
    [{}],
    [{ optim: 'sgd', momentum: 0.9 }],
    [{ optim: 'riemannian', riemannianReg: 0.1, adamBeta1: 0.8 }],
    [{ momentum: 0, optim: 'adamw', adamBeta1: 0.8, saveTotalLimit: 2 }],
    [{ optim: 'sgd', adamBeta1: 0.9, lrSchedulerType: 'constant', warmupSteps: 0.03 }],
    [{ lrSchedulerType: 'cosine_with_min_lr', lrSchedulerKwargs: { minLr: 1e-7, numCycles: 1 } }],
    [{ output: output(), saveSteps: 1, saveTotalLimit: 3, overwrite: true }],
    [{ evalSteps: 1, evalData: data }],
    [{ lrSchedulerType: 'constant', warmupSteps: 0, saveMinutes: 0 }],
    [{ regularizers: { consistencyWeight: 0.1, temperature: 3, positions: 'non_padding' } }],
    [{ terms: [small], regularizers: { positions: 'non_padding' } }],
    [{ loss }],
  ])('is not one that has an effect, or its default: %j', async (more) => {
    expect(await saidOf(more)).toEqual([]);
  });

  it('is none that a method set, whatever the loss', async () => {
    expect(await saidOf({}, { method: 'balora' })).toEqual([]);
    expect(await saidOf({ loss }, { method: 'balora' })).toEqual([]);
  });

  it('is a method whose terms all have weights of 0', async () => {
    const none = { consistencyWeight: 0, diversityWeight: 0, svdWeight: 0 };
    expect(await saidOf({ regularizers: none }, { method: 'balora' })).toEqual([
      'method "balora" adds nothing to its start (initLoraWeights "pissa"): it needs consistencyWeight or diversityWeight or svdWeight above 0',
    ]);
    const one = { ...none, diversityWeight: 0.01 };
    expect(await saidOf({ regularizers: one }, { method: 'balora' })).toEqual([]);
    expect(await saidOf({ regularizers: none, terms: [small] }, { method: 'balora' })).toEqual([]);
    expect(await saidOf({ regularizers: none }, { method: 'pissa' })).toEqual([]);
  });

  it('is not said again where the run is resumed, which it can be', async () => {
    const place = output();
    expect(await saidOf({ output: place, momentum: 0.9 })).toHaveLength(1);
    expect(await saidOf({ output: place, momentum: 0.9, resume: true })).toEqual([]);
  });
});

it('the options that a schedule does not read are those that change none of its rates', () => {
  const all: SchedulerOptions = {
    ...{ numCycles: 2, lrEnd: 1e-5, power: 2, minLrRate: 0.3, timescale: 50, numDecaySteps: 4 },
    ...{ numStableSteps: 2, warmupType: 'cosine', decayType: 'linear', minLrRatio: 0.2 },
  };
  const needed = { numDecaySteps: 3, minLrRate: 0.1 };
  const place = { total: 20, warmup: 4, learningRate: 1 };
  for (const scheduler of SCHEDULER_NAMES) {
    const ratesWith = (options: object): number[] => {
      const rate = learningRateSchedule({
        scheduler,
        ...place,
        options: { ...needed, ...options },
      });
      return Array.from({ length: 20 }, (_, step) => rate(step));
    };
    const plain = ratesWith({});
    const dead = Object.entries(all).filter(
      ([key, value]) => JSON.stringify(ratesWith({ [key]: value })) === JSON.stringify(plain),
    );
    expect(unreadOptions({ scheduler, ...place, options: all }), scheduler).toEqual(
      dead.map(([key]) => key),
    );
  }
});

it.each([
  [{ loraAlpha: 0 }, {}, /^loraAlpha 0 multiplies .* by 0/],
  [{ alphaPattern: { up_proj: 0 } }, {}, /^alphaPattern "up_proj": 0 multiplies .* by 0/],
  [{}, { learningRate: 0 }, /^learningRate 0 trains nothing/],
] as const)('a run with %j and %j trains nothing, which is said', async (config, more, said) => {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 2, ...config });
  const found: string[] = [];
  const trainer = new Trainer({ tuned, data: tinySource(tinyBatches()), maxSteps: 1, ...more });
  for await (const event of trainer.run()) {
    if (event.type === 'warning' && event.code === 'nothing_trained') found.push(event.message);
  }
  expect(found).toEqual([expect.stringMatching(said)]);
});
