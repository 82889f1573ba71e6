import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { AdapterModel } from '../../../lib/adapters/adapter_model.ts';
import { AutoModelForCausalLM, saveModel } from '../../../lib/models/index.ts';
import { matmul, transpose } from '../../../lib/ops/index.ts';
import { scope, type Tensor } from '../../../lib/tensor.ts';
import { calibrate } from '../../../lib/train/calibrate.ts';
import { fixturePath } from '../../support/fixtures.ts';
import { expectNear } from '../../support/tiny_adapters.ts';
import { TinyModel, tinyBatches, tinySource } from '../../support/tiny_model.ts';

const numbers = (value: Tensor): number[] => Array.from(value.dataSync() as Float32Array);
const data = tinySource(tinyBatches());

it('has orthogonal A and B of the length out^(1/4) / 4, whatever the scale', async () => {
  const model = new TinyModel();
  const config = { method: 'lora_ga', r: 2, loraAlpha: 8 } as const;
  const calibration = await calibrate(model, config, { data });
  const tuned = await AdapterModel.create(model, config, { calibration });
  for (const { pair, linear } of tuned.modules) {
    const length = linear.outFeatures ** 0.5 / 16;
    const [a, b] = scope(() => [
      numbers(matmul(pair.a, pair.a, { transposeB: true })),
      numbers(matmul(pair.b, pair.b, { transposeA: true })),
    ]) as [number[], number[]];
    expectNear(a, [length, 0, 0, length], 1e-5);
    expectNear(b, [length, 0, 0, length], 1e-5);
  }
});

it('refuses a rank of more than half the weight', async () => {
  await expect(calibrate(new TinyModel(), { method: 'lora_ga', r: 5 }, { data })).rejects.toThrow(
    'layers.0.gate_proj: LoRA-GA takes 2r singular triplets of the gradient, and (out,in)=(16,8) has 8; set r, or rankPattern for it, to 4 at most, got r=5',
  );
});

describe('on a base in NF4', () => {
  const kLlama = fixturePath('architectures/llama-untied-gqa/model');
  const config = { method: 'lora_ga', r: 2, loraAlpha: 4 } as const;
  const folder = mkdtempSync(join(tmpdir(), 'balora-lora-ga-'));
  afterAll(() => rmSync(folder, { recursive: true }));

  it.each([{}, { quick: true }, { maxBytes: 1 }])(
    'takes the gradients of its values, bit for bit: %o',
    async ({ quick = false, maxBytes }: { quick?: boolean; maxBytes?: number }) => {
      const kept = await AutoModelForCausalLM.fromPretrained(kLlama, {
        ...{ baseFormat: 'nf4', dtype: 'bf16' },
      });
      const decoded = join(folder, `${quick} ${maxBytes}`);
      await saveModel(kept, decoded);
      const dense = await AutoModelForCausalLM.fromPretrained(decoded, { dtype: 'bf16' });
      const found = [];
      for (const model of [kept, dense]) {
        const calibration = await calibrate(model, config, {
          ...{ data, batches: 2, settings: { quick } },
          ...(maxBytes !== undefined && { maxBytes }),
        });
        expect(model.parameters().every(({ requiresGrad }) => !requiresGrad)).toBe(true);
        const tuned = await AdapterModel.create(model, config, { calibration });
        found.push(tuned.modules.map(({ pair }) => [numbers(pair.a), numbers(pair.b)]));
        tuned.dispose();
        model.dispose();
      }
      expect(found[0]).toEqual(found[1]);
      expect(found[0]?.flat(2).some((value) => value !== 0)).toBe(true);
    },
  );
});

type Settings = Readonly<Record<string, number | string | boolean>>;

async function created(method: 'lora_ga' | 'lora_ga_peft', settings: Settings) {
  const model = new TinyModel();
  const config = { method, r: 2, loraAlpha: 8 } as const;
  const calibration = await calibrate(model, config, { data, settings });
  return AdapterModel.create(model, config, { calibration });
}

/** Vectors of unit length of each module: the rows of A, and the columns of B. */
const directions = (tuned: AdapterModel): number[][][] =>
  tuned.modules.map(({ pair, r }) => {
    const lists = scope(() => [numbers(pair.a), numbers(transpose(pair.b))]).flatMap((values) =>
      Array.from({ length: r }, (_, i) =>
        values.slice((i * values.length) / r, ((i + 1) * values.length) / r),
      ),
    );
    return lists.map((list) => list.map((value) => value / Math.hypot(...list)));
  });

const isAlong = (a: readonly number[], b: readonly number[]): boolean =>
  Math.abs(Math.abs(a.reduce((sum, value, i) => sum + value * (b[i] as number), 0)) - 1) < 1e-4;

it('takes the triplets that the direction names', async () => {
  const wide = { method: 'lora_ga', r: 4 } as const;
  const model = new TinyModel();
  const calibration = await calibrate(model, wide, { data, settings: { direction: 'ArB2r' } });
  // At r 4 A has the triplets 0 to 3, B those from 4 on; the swapped direction has the others.
  const other = new TinyModel();
  const swapped = await calibrate(other, wide, { data, settings: { direction: 'A2rBr' } });
  const [a, b] = [
    directions(await AdapterModel.create(model, wide, { calibration })),
    directions(await AdapterModel.create(other, wide, { calibration: swapped })),
  ];
  const own = { ArB2r: [0, 1], A2rBr: [2, 3], ArBr: [1, 3] };
  const ofB = { ArB2r: [2, 3], A2rBr: [0, 1], ArBr: [0, 2] };
  for (const direction of ['ArB2r', 'A2rBr', 'ArBr'] as const) {
    const found = directions(await created('lora_ga', { direction }));
    for (const [i, lists] of found.entries()) {
      for (const [at, triplet] of own[direction].entries()) {
        expect(isAlong(lists[at] as number[], a[i]?.[triplet] as number[]), direction).toBe(true);
      }
      for (const [at, triplet] of ofB[direction].entries()) {
        const expected = b[i]?.[4 + triplet] as number[];
        expect(isAlong(lists[2 + at] as number[], expected), direction).toBe(true);
      }
    }
  }
});

it('random: other triplets for A and B, by the seed; by the rule of PEFT the same', async () => {
  const settings = { direction: 'random', scale: 'unit' };
  const [first, again] = [await created('lora_ga', settings), await created('lora_ga', settings)];
  const peft = await created('lora_ga_peft', settings);
  for (const [i, { name, pair }] of first.modules.entries()) {
    expect(numbers(pair.a)).toEqual(
      numbers((again.modules[i] as (typeof first.modules)[0]).pair.a),
    );
    const s = (tuned: AdapterModel): number[] => {
      const { pair } = tuned.modules[i] as (typeof tuned.modules)[0];
      return scope(() => numbers(matmul(pair.b, pair.b, { transposeA: true })));
    };
    expectNear(s(first), [1, 0, 0, 1], 1e-4);
    expect(s(peft)[0], name).not.toBeCloseTo(1, 3);
  }
});

it('refuses settings that it does not have', async () => {
  await expect(created('lora_ga', { direction: 'up' })).rejects.toThrow(
    'lora_ga: direction must be one of ArB2r, A2rBr, ArBr, random, got "up"',
  );
  await expect(created('lora_ga', { scale: 'large' })).rejects.toThrow(
    'lora_ga: scale must be one of stable, weight_svd, gd_scale, unit, got "large"',
  );
  await expect(created('lora_ga', { stableGamma: 0 })).rejects.toThrow(
    'lora_ga: stableGamma must be > 0, got 0',
  );
  await expect(created('lora_ga', { gamma: 1 })).rejects.toThrow(
    'calibrate: settings: unknown option "gamma" (did you mean "stableGamma"?)',
  );
  const config = { method: 'lora_ga', r: 2, loraGaConfig: { stable_gamma: 4 } } as const;
  const calibration = await calibrate(new TinyModel(), config, { data });
  expect(calibration.facts.settings.stableGamma).toBe(4);
});

describe('the quick form', () => {
  const config = { method: 'lora_ga', r: 2 } as const;
  const energies = async (width: number, quick: boolean) => {
    const options = { data: tinySource(tinyBatches()), settings: { quick } };
    const calibration = await calibrate(new TinyModel({ width }), config, options);
    return Object.values((await calibration.energies()) as Record<string, number>);
  };

  it('is the exact one where the sketch has as many columns as the weight', async () => {
    const [exact, quick] = [
      await created('lora_ga', {}),
      await created('lora_ga', { quick: true }),
    ];
    for (const [i, { pair, name }] of exact.modules.entries()) {
      const found = (quick.modules[i] as (typeof quick.modules)[0]).pair;
      const gram = (x: Tensor, options: object): number[] =>
        scope(() => numbers(matmul(x, x, options)));
      const [rows, columns] = [{ transposeA: true }, { transposeB: true }];
      expect(name).toBeTruthy();
      expectNear(gram(found.a, rows), gram(pair.a, rows), 1e-4);
      expectNear(gram(found.b, columns), gram(pair.b, columns), 1e-4);
    }
    expectNear(await energies(8, true), await energies(8, false), 1e-3);
  });

  it('holds a part of wider gradients, whose spectrum is flat here, and tells how much', async () => {
    const [exact, quick] = [await energies(48, false), await energies(48, true)];
    expect(exact).toHaveLength(6);
    for (const [i, share] of quick.entries()) {
      expect(share).toBeLessThan((exact[i] as number) * 1.03);
      expect(share).toBeGreaterThan((exact[i] as number) * 0.7);
    }
  });

  it('tells nothing for a start that reads no gradients', async () => {
    const calibration = await calibrate(new TinyModel(), { method: 'corda', r: 2 }, { data });
    expect(await calibration.energies()).toBeNull();
  });
});
