/**
 * The starts of A and B against PEFT's and float64 references: what is unique about A and B, then from the stored A and B the logits,
 * losses, gradients, five steps of AdamW, and the folders of PEFT in both directions.
 */
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { AdapterModel, type LoraModule } from '../../lib/adapters/adapter_model.ts';
import type { Calibration } from '../../lib/adapters/calibration.ts';
import type { LowRankPair } from '../../lib/adapters/low_rank.ts';
import type { InitLoraWeights } from '../../lib/adapters/methods/registry.ts';
import { matmul, mul, slice } from '../../lib/ops/index.ts';
import { noGrad, scope, type Tensor, tensor } from '../../lib/tensor.ts';
import { calibrate } from '../../lib/train/calibrate.ts';
import { Trainer } from '../../lib/train/trainer.ts';
import { accumulator } from '../support/accumulate.ts';
import { values } from '../support/compare.ts';
import { relativeError } from '../support/fixtures.ts';
import { type GoldenArray, goldenArray } from '../support/golden.ts';
import { goldenBatch, windowOf } from '../support/golden_batch.ts';
import { logitError } from '../support/golden_logits.ts';
import { arrays, evaluation, factsOf, kStarts, load, numbers } from '../support/golden_starts.ts';
import { describeShared, sharedPath } from '../support/shared.ts';
import { tinySource } from '../support/tiny_model.ts';

interface Tolerance {
  readonly logits_start_max_abs: number;
  readonly logits_perturbed_max_abs: number;
  readonly loss_perturbed_abs: number;
  readonly grad_max_abs_over_max_abs: number;
  readonly losses_max_abs: number;
  readonly final_max_abs: number;
  readonly logits_final_max_abs: number;
  readonly product_relative_frobenius?: number;
}

interface Facts {
  readonly losses: readonly number[];
  readonly loss_perturbed: number;
  readonly tolerance: Tolerance;
  readonly gram_tolerance?: number;
  readonly projector_tolerance_exact_svd?: number;
  readonly ratio_tolerance_exact_svd?: number;
  readonly norms?: Readonly<Record<string, unknown>>;
  readonly rho?: number;
  readonly ranks?: Readonly<Record<string, number>>;
  readonly r_1_case?: { readonly ranks: Readonly<Record<string, number>> };
}

const kShape = { r: 4, loraAlpha: 8 };

/** The start of each folder. A start from the weights keeps its first pair frozen. */
const kCases: [folder: string, init: InitLoraWeights][] = [
  ['gaussian', 'gaussian'],
  ['orthogonal', 'orthogonal'],
  ['olora', 'olora'],
  ['milora', 'milora'],
  ['pissa', 'pissa'],
  ['eva_rho1', 'eva'],
  ['eva_rho2', 'eva'],
  ['corda_ipm', 'corda'],
  ['corda_kpm', 'corda_kpm'],
  ['lora_ga', 'lora_ga'],
  ['lora_ga_peft', 'lora_ga_peft'],
];

const out = mkdtempSync(join(tmpdir(), 'balora-starts-'));
afterAll(() => rmSync(out, { recursive: true, force: true }));

const facts = (folder: string): Facts => factsOf<Facts>(folder);

/** The four micro-batches of the calibration. */
function calibrationData() {
  const inputs = arrays('inputs');
  return tinySource(
    [0, 1, 2, 3].map((i) => {
      const names = { ids: 'input_ids', mask: 'attention_mask', labels: 'labels' };
      const own = Object.entries(names).map(([key, name]) => [key, `batch${i}.${name}`]);
      return goldenBatch(inputs, Object.fromEntries(own) as typeof names).batch;
    }),
  );
}

/** |a - b| / |b| in the Frobenius norm. */
function frobeniusError(a: readonly number[], b: readonly number[]): number {
  expect(a).toHaveLength(b.length);
  const norm = (list: readonly number[]): number => Math.hypot(...list);
  return norm(a.map((value, i) => value - (b[i] as number))) / norm(b);
}

const product = (a: Tensor, b: Tensor, options: Parameters<typeof matmul>[2] = {}): number[] =>
  scope(() => noGrad(() => Array.from(values(matmul(a.to('f64'), b.to('f64'), options)))));

const numbersOf = (value: Tensor): number[] => Array.from(values(value));

const stored = (array: GoldenArray): Tensor =>
  tensor(Float32Array.from(array.data as Float32Array), { shape: array.shape });

/** An adapter with the A and B of a golden file, which are its frozen first pair as well where the start is from the weights. */
async function storedAdapter(folder: string): Promise<AdapterModel> {
  const start = arrays(`${folder}/start`);
  const fromWeight = existsSync(sharedPath(`${kStarts}/${folder}/converted_to_lora`));
  const { ranks = {} } = facts(folder);
  const patterns = Object.entries(ranks).filter(([, r]) => r !== kShape.r);
  return AdapterModel.create(await load(), {
    ...kShape,
    rankPattern: Object.fromEntries(patterns),
    alphaPattern: Object.fromEntries(patterns.map(([name, r]) => [name, 2 * r])),
    initLoraWeights: (modules) =>
      modules.map(({ name }) => ({
        a: stored(goldenArray(start, `${name}.A`)),
        b: stored(goldenArray(start, `${name}.B`)),
        fromWeight,
      })),
  });
}

/** Calibrates and creates an adapter with a start, as a user does. */
async function startedAdapter(
  init: InitLoraWeights,
  {
    r = kShape.r,
    settings,
  }: { r?: number; settings?: Readonly<Record<string, number | string>> } = {},
): Promise<{ tuned: AdapterModel; calibration: Calibration | undefined }> {
  const model = await load();
  const config = { r, loraAlpha: 2 * r, initLoraWeights: init };
  const needsData = /^(eva|corda|lora_ga)/.test(String(init));
  const calibration = needsData
    ? await calibrate(model, config, { data: calibrationData(), ...(settings && { settings }) })
    : undefined;
  const tuned = await AdapterModel.create(model, config, { ...(calibration && { calibration }) });
  return { tuned, calibration };
}

/** LoRA-GA's A and B from the exact singular vectors; PEFT's own are those of a randomised search. */
function exactDirections(
  start: Map<string, GoldenArray>,
  name: string,
  init: 'lora_ga' | 'lora_ga_peft',
): [a: Tensor, b: Tensor] {
  const of = (key: string): Tensor => stored(goldenArray(start, `${name}.${key}`)).to('f64');
  const { r } = kShape;
  const [u, s, vt] = [of('U'), of('singular_values'), of('Vh')];
  const factor = (u.shape[0] as number) ** 0.25 / 4;
  const [a, b] = [slice(vt, 0, { stop: r }), slice(u, 1, { start: r })];
  if (init === 'lora_ga') return [mul(a, factor), mul(b, factor)];
  return [a, mul(mul(b, slice(s, 0, { start: r, stop: 2 * r })), factor)];
}

function dispose(tuned: AdapterModel): void {
  tuned.dispose();
  tuned.model.dispose();
}

describeShared('the starts of A and B', [kStarts], () => {
  it.each([
    ['olora', 'olora'],
    ['milora', 'milora'],
    ['pissa', 'pissa'],
    ['corda_ipm', 'corda'],
    ['corda_kpm', 'corda_kpm'],
  ] as const)('%s: the product of A and B, and their norms', async (folder, init) => {
    const { tolerance } = facts(folder);
    const start = arrays(`${folder}/start`);
    const { tuned } = await startedAdapter(init);
    const bound = tolerance.product_relative_frobenius as number;
    expect(tuned.modules).toHaveLength(21);
    for (const { name, pair, scale } of tuned.modules) {
      const [a, b] = [start.get(`${name}.A`), start.get(`${name}.B`)].map((array) =>
        stored(array as GoldenArray),
      ) as [Tensor, Tensor];
      const expected = product(b, a).map((value) => value * scale);
      const found = product(pair.b, pair.a).map((value) => value * scale);
      expect(frobeniusError(found, expected), name).toBeLessThanOrEqual(bound);
      const exact = start.get(`${name}.product`);
      if (exact) expect(frobeniusError(found, numbers(exact)), name).toBeLessThanOrEqual(bound);
      // The balance of A and B decides how they train; the signs of their terms do not.
      const norms = (x: Tensor): number[] =>
        product(x, x, { transposeB: true }).filter((_, at) => at % 5 === 0);
      expect(frobeniusError(norms(pair.a), norms(a)), name).toBeLessThanOrEqual(4 * bound);
    }
    dispose(tuned);
  });

  it.each(['eva_rho1', 'eva_rho2'])('%s: components, ratios and ranks', async (folder) => {
    const expected = facts(folder);
    const start = arrays(`${folder}/start`);
    const { tuned, calibration } = await startedAdapter('eva', {
      settings: { rho: expected.rho as number },
    });
    const ranks = Object.fromEntries(tuned.modules.map(({ name, r }) => [name, r]));
    expect(ranks).toEqual(expected.ranks);
    for (const { name, pair, r, alpha, scale } of tuned.modules) {
      const { inputOf, statistics } = (calibration as Calibration).of(name);
      const { shape, data } = goldenArray(start, `${inputOf}.components`);
      const width = shape[1] as number;
      const first = Float32Array.from(data.slice(0, r * width) as Float32Array);
      const golden = tensor(first, { shape: [r, width] });
      const projector = (x: Tensor): number[] => product(x, x, { transposeA: true });
      expect(frobeniusError(projector(pair.a), projector(golden)), name).toBeLessThanOrEqual(
        expected.projector_tolerance_exact_svd as number,
      );
      const ratios = numbers(goldenArray(start, `${inputOf}.explained_variance_ratio`));
      values(statistics.ratios as Tensor).forEach((ratio, i) => {
        expect(Math.abs(ratio - (ratios[i] as number)), `${name}[${i}]`).toBeLessThanOrEqual(
          expected.ratio_tolerance_exact_svd as number,
        );
      });
      expect(values(pair.b).every((value) => value === 0)).toBe(true);
      expect([alpha, scale]).toEqual([2 * r, 2]);
    }
    dispose(tuned);
  });

  it('eva at rank 1 leaves out modules whose components explain least', async () => {
    const { ranks } = facts('eva_rho2').r_1_case as { ranks: Record<string, number> };
    const { tuned } = await startedAdapter('eva', { r: 1 });
    const kept = Object.entries(ranks).filter(([, r]) => r > 0);
    const found = tuned.modules.map(({ name, r }) => [name, r]);
    expect(found.sort()).toEqual(kept.sort());
    await tuned.savePretrained(join(out, 'eva_r1'));
    const model = await load();
    const again = await AdapterModel.fromPretrained(model, join(out, 'eva_r1'));
    expect(again.warnings).toEqual([]);
    expect(again.modules).toHaveLength(kept.length);
    dispose(again);
    dispose(tuned);
  });

  it.each(['lora_ga', 'lora_ga_peft'] as const)('%s: A^T A and B B^T', async (init) => {
    const bound = facts(init).gram_tolerance as number;
    const start = arrays('lora_ga/start');
    const { tuned } = await startedAdapter(init);
    for (const { name, pair } of tuned.modules) {
      const [a, b] = exactDirections(start, name, init);
      const right = (x: Tensor): number[] => product(x, x, { transposeA: true });
      const left = (x: Tensor): number[] => product(x, x, { transposeB: true });
      expect(frobeniusError(right(pair.a), right(a)), name).toBeLessThanOrEqual(bound);
      expect(frobeniusError(left(pair.b), left(b)), name).toBeLessThanOrEqual(bound);
    }
    dispose(tuned);
  });

  it.each([
    ['lora_ga', 'author', 1e-4],
    // The file has the norms that PEFT's randomised search gives; its error in A^T A and B B^T stands beside them.
    ['lora_ga_peft', 'peft', null],
  ] as const)('%s: the norms of every direction and scale', async (init, form, exact) => {
    const names: Record<string, string> = { weightS: 'weight_svd', gd: 'gd_scale' };
    const cases = Object.entries(facts(init).norms ?? {}).filter(([key]) => key.startsWith(form));
    expect(cases).toHaveLength(12);
    for (const [key, norms] of cases) {
      const [, direction, scale] = key.split(' ') as [string, string, string];
      const settings = { direction, scale: names[scale] ?? scale };
      const { tuned } = await startedAdapter(init, { settings });
      const { peft_gram_relative_error: loose, ...modules } = norms as Record<string, unknown>;
      for (const [name, [a, b]] of Object.entries(modules as Record<string, [number, number]>)) {
        const { pair } = tuned.modules.find((module) => module.name === name) as LoraModule;
        const bound = exact ?? (loose as number);
        expect(Math.hypot(...numbersOf(pair.a)) / a, `${key} ${name} A`).toBeCloseTo(1, 4);
        const error = Math.abs(Math.hypot(...numbersOf(pair.b)) / b - 1);
        expect(error, `${key} ${name} B`).toBeLessThanOrEqual(bound);
      }
      dispose(tuned);
    }
  });

  it.each(kCases)('%s: starts as the base', async (folder, init) => {
    const { tuned } = await startedAdapter(
      init,
      folder === 'eva_rho1' ? { settings: { rho: 1 } } : {},
    );
    const expected = goldenArray(arrays(`${folder}/expected`), 'logits_start');
    const bound = facts(folder).tolerance.logits_start_max_abs;
    expect(logitError(tuned.model, evaluation(), expected)).toBeLessThanOrEqual(bound);
    dispose(tuned);
  });

  it.each(kCases)('%s: logits, loss and gradients of a perturbed pair', async (folder) => {
    const { tolerance, loss_perturbed } = facts(folder);
    const expected = arrays(`${folder}/expected`);
    const tuned = await storedAdapter(folder);
    const state = tuned.state();
    for (const { name } of tuned.modules) {
      state[`${name}.lora_A`] = stored(goldenArray(expected, `A1.${name}`));
      state[`${name}.lora_B`] = stored(goldenArray(expected, `B1.${name}`));
    }
    tuned.restore(state, 'the golden file');
    const padded = evaluation();
    const logits = goldenArray(expected, 'logits_perturbed');
    expect(logitError(tuned.model, padded, logits)).toBeLessThanOrEqual(
      tolerance.logits_perturbed_max_abs,
    );
    const { taskLoss } = await accumulator(tuned).accumulate(windowOf(padded.batch));
    expect(Math.abs(taskLoss - loss_perturbed)).toBeLessThanOrEqual(tolerance.loss_perturbed_abs);
    for (const { name, pair } of tuned.modules) {
      for (const [half, { grad }] of Object.entries({ A: pair.a, B: pair.b })) {
        const golden = numbers(goldenArray(expected, `grad.${name}.${half}`));
        const error = relativeError(values(grad as Tensor), golden);
        expect(error, `${name}.${half}`).toBeLessThanOrEqual(tolerance.grad_max_abs_over_max_abs);
      }
    }
    dispose(tuned);
  });

  it.each(kCases)('%s: five steps of AdamW, and the plain LoRA afterwards', async (folder) => {
    const { tolerance, losses } = facts(folder);
    const expected = arrays(`${folder}/expected`);
    const tuned = await storedAdapter(folder);
    const padded = evaluation();
    const trainer = new Trainer({
      ...{ tuned, data: tinySource([padded.batch]), maxSteps: 5, learningRate: 1e-3 },
      ...{ lrSchedulerType: 'constant', weightDecay: 0, maxGradNorm: 0, warmupSteps: 0 },
    });
    const found: number[] = [];
    for await (const event of trainer.run())
      if (event.type === 'step') found.push(event.record.loss);
    found.push((await accumulator(tuned).accumulate(windowOf(padded.batch))).taskLoss);
    expect(found).toHaveLength(6);
    found.forEach((loss, i) => {
      const error = Math.abs(loss - (losses[i] as number));
      expect(error, `step ${i}`).toBeLessThanOrEqual(tolerance.losses_max_abs);
    });
    for (const { name, pair } of tuned.modules as readonly LoraModule[]) {
      for (const [half, value] of Object.entries({ A: pair.a, B: pair.b })) {
        const golden = numbers(goldenArray(expected, `final.${name}.${half}`));
        values(value).forEach((number, i) => {
          expect(
            Math.abs(number - (golden[i] as number)),
            `${name}.${half}[${i}]`,
          ).toBeLessThanOrEqual(tolerance.final_max_abs);
        });
      }
    }
    const logits = goldenArray(expected, 'logits_final');
    expect(logitError(tuned.model, padded, logits)).toBeLessThanOrEqual(
      tolerance.logits_final_max_abs,
    );
    await tuned.savePretrained(join(out, folder));
    const again = await AdapterModel.fromPretrained(await load(), join(out, folder));
    expect(again.warnings).toEqual([]);
    expect(logitError(again.model, padded, logits)).toBeLessThanOrEqual(
      tolerance.logits_final_max_abs,
    );
    // PEFT's folder for the original base, or the conversion to it, is the same adapter.
    const converted = expected.get('logits_converted');
    const theirs = converted === undefined ? 'adapter' : 'converted_to_lora';
    const read = await AdapterModel.fromPretrained(
      await load(),
      sharedPath(`${kStarts}/${folder}/${theirs}`),
    );
    expect(logitError(read.model, padded, converted ?? logits)).toBeLessThanOrEqual(
      tolerance.logits_final_max_abs,
    );
    const [mine, golden] = [again, read].map(({ modules }) =>
      modules.map(({ name, r, scale }) => [name, r, scale]),
    );
    expect(mine).toEqual(golden);
    for (const one of [tuned, again, read]) dispose(one);
  });

  it.each(['olora', 'pissa'])(
    "%s: PEFT's folder on the residual is the same adapter here",
    async (folder) => {
      const read = await AdapterModel.fromPretrained(
        await load(),
        sharedPath(`${kStarts}/${folder}/adapter`),
      );
      expect(read.warnings.join()).toMatch(/belongs on a residual/);
      const { tolerance } = facts(folder);
      const [start, expected] = [arrays(`${folder}/start`), arrays(`${folder}/expected`)];
      for (const { name, pair, frozen } of read.modules) {
        expect(
          frobeniusError(numbersOf(pair.a), numbers(goldenArray(expected, `final.${name}.A`))),
        ).toBeLessThan(1e-5);
        expect(
          frobeniusError(numbersOf(pair.b), numbers(goldenArray(expected, `final.${name}.B`))),
        ).toBeLessThan(1e-5);
        const [a, b] = ['A', 'B'].map((half) => stored(goldenArray(start, `${name}.${half}`))) as [
          Tensor,
          Tensor,
        ];
        const first = frozen as LowRankPair;
        expect(frobeniusError(product(first.b, first.a), product(b, a)), name).toBeLessThanOrEqual(
          tolerance.product_relative_frobenius as number,
        );
      }
      // PEFT's SVD in float32 is 3e-5 of the weight off, which its logits show and ours, from a better one, do not.
      if (folder === 'olora') {
        const logits = goldenArray(expected, 'logits_final');
        expect(logitError(read.model, evaluation(), logits)).toBeLessThanOrEqual(
          tolerance.logits_final_max_abs,
        );
      }
      dispose(read);
    },
  );

  it.each(['corda_ipm', 'corda_kpm'])(
    "%s: PEFT's folder on the residual is refused",
    async (folder) => {
      const model = await load();
      const path = sharedPath(`${kStarts}/${folder}/adapter`);
      await expect(AdapterModel.fromPretrained(model, path)).rejects.toThrow(
        /init_lora_weights "corda(_kpm)?", so it belongs on a residual that was computed from data; save it there as a plain LoRA/,
      );
      model.dispose();
    },
  );
});
