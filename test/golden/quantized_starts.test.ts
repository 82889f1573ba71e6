/**
 * QPiSSA and LoftQ against PEFT's code and float64 references: codes, the first pair, logits, losses, gradients, five steps of AdamW, and
 * the adapter read again on the original base.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { AdapterModel, type LoraModule } from '../../lib/adapters/adapter_model.ts';
import type { LowRankPair } from '../../lib/adapters/low_rank.ts';
import type { InitLoraWeights } from '../../lib/adapters/methods/registry.ts';
import { type QuantizedBase, quantizationErrors } from '../../lib/adapters/quantized_base.ts';
import { fourBitWeight } from '../../lib/io/blocks.ts';
import type { CausalLM } from '../../lib/models/index.ts';
import { matmul } from '../../lib/ops/index.ts';
import { noGrad, scope, type Tensor, tensor } from '../../lib/tensor.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import { accumulator } from '../support/accumulate.ts';
import { values } from '../support/compare.ts';
import { relativeError } from '../support/fixtures.ts';
import { type GoldenArray, goldenArray } from '../support/golden.ts';
import { type PaddedBatch, windowOf } from '../support/golden_batch.ts';
import { logitError } from '../support/golden_logits.ts';
import { arrays, evaluation, factsOf, kStarts, load, numbers } from '../support/golden_starts.ts';
import { describeShared, sharedPath } from '../support/shared.ts';
import { tinySource } from '../support/tiny_model.ts';

interface Facts {
  readonly losses: readonly number[];
  readonly loss_perturbed: number;
  readonly residual_frobenius_all_modules: {
    readonly 'plain NF4 (QLoRA)': number;
    readonly 'after 1..5 iterations': readonly number[];
  };
  readonly tolerance: Readonly<Record<string, number>>;
}

const kCases: [folder: string, init: InitLoraWeights, steps: number][] = [
  ['qpissa_1', 'qpissa', 1],
  ['qpissa_5', 'qpissa_iter_5', 5],
  ['loftq_1', 'loftq', 1],
  ['loftq_5', 'loftq_iter_5', 5],
];

const out = mkdtempSync(join(tmpdir(), 'balora-quantized-starts-'));
afterAll(() => rmSync(out, { recursive: true, force: true }));

const facts = (folder: string): Facts => factsOf<Facts>(folder);
const stored = (array: GoldenArray): Tensor =>
  tensor(Float32Array.from(array.data as Float32Array), { shape: array.shape });

function logitsOf(model: CausalLM, { batch, real }: PaddedBatch): Map<number, number[]> {
  const logits = scope(() => noGrad(() => model.logits(model.forward(batch))));
  const vocabulary = logits.shape.at(-1) as number;
  const found = values(logits);
  logits.dispose();
  return new Map(
    [...real].map((row) => [
      row,
      Array.from(found.slice(row * vocabulary, (row + 1) * vocabulary)),
    ]),
  );
}

function frobeniusError(a: readonly number[], b: readonly number[]): number {
  return Math.hypot(...a.map((value, i) => value - (b[i] as number))) / Math.hypot(...b);
}

const product = ({ a, b }: LowRankPair): number[] =>
  scope(() => noGrad(() => Array.from(values(matmul(b.to('f64'), a.to('f64'))))));

const create = async (initLoraWeights: InitLoraWeights): Promise<AdapterModel> =>
  AdapterModel.create(await load(), { r: 4, loraAlpha: 4, initLoraWeights });

/** Gives an adapter the golden file's A and B, whose signs a decomposition leaves free. */
function restorePairs(
  tuned: AdapterModel,
  pairs: Map<string, GoldenArray>,
  keys: [string, string],
) {
  const state = tuned.state();
  for (const { name } of tuned.modules) {
    const [a, b] = keys.map((key) => key.replace('*', name));
    state[`${name}.lora_A`] = stored(goldenArray(pairs, a as string));
    state[`${name}.lora_B`] = stored(goldenArray(pairs, b as string));
  }
  tuned.restore(state, 'the golden file');
}

function dispose(tuned: AdapterModel): void {
  tuned.dispose();
  tuned.model.dispose();
}

describeShared('starts that quantise the base', [kStarts], () => {
  it.each(kCases)('%s: codes, first pairs and their distance', async (folder, init, steps) => {
    const { tolerance, residual_frobenius_all_modules: distances } = facts(folder);
    const [start, base] = [arrays(`${folder}/start`), arrays(`${folder}/base`)];
    const tuned = await create(init);
    expect(tuned.modules).toHaveLength(21);
    let whole = 0;
    for (const { name, linear, pair, frozen, quantized } of tuned.modules) {
      const golden = fourBitWeight(
        {
          ...{ type: 'NF4', blockSize: 64 },
          packed: tensor(Uint8Array.from(goldenArray(base, `${name}.packed`).data as Uint8Array)),
          absmax: stored(goldenArray(base, `${name}.absmax`)),
        },
        { name, shape: linear.weight.shape, dtype: 'f32', checkFinite: false },
      ).to('f32');
      const { weight } = quantized as QuantizedBase;
      expect(weight.encoding).toBe('NF4');
      // An absmax may differ in the last bit, and a code where two are as near.
      const found = values(weight.to('f32'));
      const far = values(golden).filter(
        (value, i) => Math.abs(value - (found[i] as number)) > 1e-6,
      );
      expect(far, name).toHaveLength(0);
      const expected = product({
        a: stored(goldenArray(start, `${name}.A`)),
        b: stored(goldenArray(start, `${name}.B`)),
      });
      for (const one of [pair, frozen as LowRankPair]) {
        expect(frobeniusError(product(one), expected), name).toBeLessThanOrEqual(
          tolerance.product_relative_frobenius as number,
        );
      }
      whole += values(linear.weight).reduce((sum, value) => sum + value * value, 0);
    }
    const errors = await quantizationErrors(tuned.modules);
    const relative = (distance: number): number => distance / Math.sqrt(whole);
    expect(errors?.plain).toBeCloseTo(relative(distances['plain NF4 (QLoRA)']), 6);
    expect(errors?.start).toBeCloseTo(
      relative(distances['after 1..5 iterations'][steps - 1] as number),
      6,
    );
    dispose(tuned);
  });

  it.each(kCases)(
    '%s: the teacher is the start, and the base stays as it is',
    async (folder, init) => {
      const tuned = await create(init);
      const padded = evaluation();
      const expected = goldenArray(arrays(`${folder}/expected`), 'logits_start');
      const bound = facts(folder).tolerance.logits_start_max_abs as number;
      expect(logitError(tuned.model, padded, expected)).toBeLessThanOrEqual(bound);
      const student = logitsOf(tuned.model, padded);
      const teacher = tuned.withTeacher((model) => logitsOf(model, padded));
      expect(teacher).toEqual(student);
      tuned.enabled = false;
      const base = logitsOf(tuned.model, padded);
      tuned.dispose();
      expect(logitsOf(tuned.model, padded)).toEqual(base);
      const other = await load();
      expect(logitsOf(other, padded)).toEqual(base);
      for (const model of [tuned.model, other]) model.dispose();
    },
  );

  it.each(kCases)('%s: logits, loss and gradients of a perturbed pair', async (folder, init) => {
    const { tolerance, loss_perturbed } = facts(folder);
    const expected = arrays(`${folder}/expected`);
    const tuned = await create(init);
    restorePairs(tuned, expected, ['A1.*', 'B1.*']);
    const padded = evaluation();
    const logits = goldenArray(expected, 'logits_perturbed');
    expect(logitError(tuned.model, padded, logits)).toBeLessThanOrEqual(
      tolerance.logits_perturbed_max_abs as number,
    );
    const { taskLoss } = await accumulator(tuned).accumulate(windowOf(padded.batch));
    expect(Math.abs(taskLoss - loss_perturbed)).toBeLessThanOrEqual(
      tolerance.loss_perturbed_abs as number,
    );
    for (const { name, pair } of tuned.modules) {
      for (const [half, { grad }] of Object.entries({ A: pair.a, B: pair.b })) {
        const golden = numbers(goldenArray(expected, `grad.${name}.${half}`));
        const error = relativeError(values(grad as Tensor), golden);
        expect(error, `${name}.${half}`).toBeLessThanOrEqual(
          tolerance.grad_max_abs_over_max_abs as number,
        );
      }
    }
    dispose(tuned);
  });

  it.each(kCases)('%s: five steps, and the folder on the original base', async (folder, init) => {
    const { tolerance, losses } = facts(folder);
    const expected = arrays(`${folder}/expected`);
    const tuned = await create(init);
    restorePairs(tuned, arrays(`${folder}/start`), ['*.A', '*.B']);
    const padded = evaluation();
    const trainer = new Trainer({
      ...{ tuned, data: tinySource([padded.batch]), maxSteps: 5, learningRate: 1e-3 },
      ...{ lrSchedulerType: 'constant', weightDecay: 0, maxGradNorm: 0, warmupSteps: 0 },
    });
    const found: number[] = [];
    for await (const event of trainer.run())
      if (event.type === 'step') found.push(event.record.loss);
    found.push((await accumulator(tuned).accumulate(windowOf(padded.batch))).taskLoss);
    found.forEach((loss, i) => {
      const error = Math.abs(loss - (losses[i] as number));
      expect(error, `step ${i}`).toBeLessThanOrEqual(tolerance.losses_max_abs as number);
    });
    for (const { name, pair } of tuned.modules as readonly LoraModule[]) {
      for (const [half, value] of Object.entries({ A: pair.a, B: pair.b })) {
        const golden = numbers(goldenArray(expected, `final.${name}.${half}`));
        values(value).forEach((number, i) => {
          expect(
            Math.abs(number - (golden[i] as number)),
            `${name}.${half}[${i}]`,
          ).toBeLessThanOrEqual(tolerance.final_max_abs as number);
        });
      }
    }
    const final = goldenArray(expected, 'logits_final');
    const bound = tolerance.logits_final_max_abs as number;
    expect(logitError(tuned.model, padded, final)).toBeLessThanOrEqual(bound);
    await tuned.savePretrained(join(out, folder));
    const again = await AdapterModel.fromPretrained(await load(), join(out, folder));
    expect(again.warnings).toEqual([]);
    expect(logitsOf(again.model, padded)).toEqual(logitsOf(tuned.model, padded));
    const starts = [again, tuned].map((one) => one.withTeacher((model) => logitsOf(model, padded)));
    expect(starts[0]).toEqual(starts[1]);
    for (const one of [again, tuned]) dispose(one);
  });

  it.each(['loftq_1', 'loftq_5'])(
    "%s: PEFT's folder is read on the original base",
    async (folder) => {
      const read = await AdapterModel.fromPretrained(
        await load(),
        sharedPath(`${kStarts}/${folder}/adapter`),
      );
      expect(read.warnings.join()).toMatch(/saved as initLoraWeights "loftq/);
      const final = goldenArray(arrays(`${folder}/expected`), 'logits_final');
      expect(logitError(read.model, evaluation(), final)).toBeLessThanOrEqual(
        facts(folder).tolerance.logits_final_max_abs as number,
      );
      dispose(read);
    },
  );
});
