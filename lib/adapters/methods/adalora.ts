/**
 * AdaLoRA (Zhang et al. 2023) as PEFT implements it: an update in the form of a singular value decomposition,
 *
 *     y = W x + s B (E * A) x,    s = alpha / (initR + 1e-5),
 *
 * with B and A held near orthonormal by a term of the loss. In the course of a run the least important triplets of all modules together
 * lose their singular value, a row of E, until `targetR` a module are left on average.
 *
 * After each step t = 1, 2, ... with the gradient g of a trained number w, its importance is I = |w g|, smoothed, and the importance of a
 * triplet is computed from the products of the smoothed I and of its smoothed deviation. How many triplets remain falls as a cubic of t
 * from t = tinit to t = total - tfinal, where the last choice is made, which then holds.
 */
import { z } from 'zod';
import { ArgumentError } from '../../errors.ts';
import {
  abs,
  add,
  concat,
  contiguous,
  copy_,
  fill_,
  indexSelect,
  matmul,
  mean,
  mul,
  randn,
  reshape,
  scale_,
  sqrt,
  square,
  stack,
  sub,
  sum,
  transpose,
  zeros,
} from '../../ops/index.ts';
import { json, number, whole } from '../../options/kinds.ts';
import { computeOwned, noGrad, scope, type Tensor, tensor } from '../../tensor.ts';
import { IDLE_KEYS, UNSUPPORTED_KEYS } from '../peft_keys.ts';
import type { PythonJson } from '../python_json.ts';
import {
  defineMethod,
  type Settings,
  type TypeTensor,
  type Variant,
  type VariantModule,
  type VariantTraining,
} from './method.ts';
import { floatKey, keysOf, LORA_KEYS, lowRankVariant, refusesRank } from './own_form.ts';

/** The settings of AdaLoRA, by the names of its options. */
interface AdaLora {
  readonly r: number;
  readonly initR: number;
  readonly targetR: number;
  readonly tinit: number;
  readonly tfinal: number;
  readonly deltaT: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly orthRegWeight: number;
  readonly loraAlpha: number;
  readonly totalStep: number | null;
  readonly keptTriplets: Readonly<Record<string, readonly boolean[]>> | null;
}
const settingsOf = (settings: Settings): AdaLora => settings as unknown as AdaLora;
const settingsIn = ([first]: readonly VariantModule[]): AdaLora =>
  settingsOf((first as VariantModule).settings);

const kA = 'lora_A'; // (r,in)
const kB = 'lora_B'; // (out,r)
const kE = 'lora_E'; // (r,1)
const kTrained = [kA, kB, kE] as const;
/** (r,1), 1 for the triplets that the last choice of a run dropped, else 0. */
const kDropped = 'dropped_triplets';
/** (1), the number of steps of the run that trained the module, which PEFT's files name; 0: none did. */
const kTotal = 'total_steps';
const importanceOf = (key: string): string => key.replace('lora', 'importance');
const deviationOf = (key: string): string => key.replace('lora', 'deviation');

/** Standard deviation of the first A and B. */
const kDeviation = 0.02;
/** The value of `r` that stands for none: PEFT's default, which its files have. */
const kPeftRank = 8;
/** Added to the rank by which alpha is divided. */
const kRankShift = 1e-5;

/** The triplets that remain after a step t, from 1, of all n modules together; null: this step makes no choice. */
function budgetAt(t: number, total: number, modules: readonly VariantModule[]): number | null {
  const { initR, targetR, tinit, tfinal, deltaT } = settingsIn(modules);
  const end = total - tfinal;
  const [first, last] = [initR, targetR].map((r) => modules.length * r) as [number, number];
  if (t === end) return last;
  if (t <= tinit || t > end || t % deltaT !== 0) return null;
  const left = 1 - (t - tinit) / (end - tinit);
  return Math.trunc((first - last) * left ** 3 + last);
}

/** Takes the step's gradients into the smoothed importances, and these into their smoothed deviations. */
function updateImportance(module: VariantModule, coefficient: Tensor | null): void {
  const { beta1, beta2 } = settingsOf(module.settings);
  for (const key of kTrained) {
    const parameter = module.parameter(key);
    const [importance, deviation] = [importanceOf(key), deviationOf(key)].map((state) =>
      module.parameter(state),
    ) as [Tensor, Tensor];
    const { grad } = parameter;
    const now = grad === null ? zeros(parameter.shape, parameter) : abs(mul(parameter, grad));
    if (coefficient !== null) scale_(now, coefficient);
    copy_(importance, add(mul(importance, beta1), mul(now, 1 - beta1)));
    const apart = abs(sub(now, importance));
    copy_(deviation, add(mul(deviation, beta2), mul(apart, 1 - beta2)));
  }
}

/** The scores (r) of a module's triplets. */
function scoresOf(module: VariantModule): Tensor {
  const score = (key: string): Tensor =>
    mul(module.parameter(importanceOf(key)), module.parameter(deviationOf(key)));
  const vectors = add(mean(score(kA), { axis: 1 }), mean(score(kB), { axis: 0 }));
  return add(reshape(score(kE), [module.r]), vectors);
}

/** Makes a choice: triplets whose score is not above that of the last one to go lose their singular value. */
async function choose(
  modules: readonly VariantModule[],
  budget: number,
  isLast: boolean,
): Promise<void> {
  const all = computeOwned(() => concat(modules.map(scoresOf), 0));
  const scores = (await all.data()) as Float32Array | Float64Array;
  all.dispose();
  const excess = scores.length - budget;
  const threshold = excess > 0 ? (scores.slice().sort()[excess - 1] as number) : -1;
  let at = 0;
  for (const module of modules) {
    const own = Array.from(scores.subarray(at, at + module.r), (score) =>
      Number(score <= threshold),
    );
    at += module.r;
    scope(() =>
      noGrad(() => {
        const { device, dtype } = module.parameter(kE);
        const dropped = tensor(own, { shape: [module.r, 1], dtype, device });
        if (isLast) copy_(module.parameter(kDropped), dropped);
        dropTriplets(module, dropped);
      }),
    );
  }
}

function dropTriplets(module: VariantModule, dropped: Tensor): void {
  const e = module.parameter(kE);
  copy_(e, mul(e, sub(1, dropped)));
}

/** The triplets that the file had from which a module was read; null: it had all, or there was none. */
function keptInFile(name: string, settings: Settings): readonly boolean[] | null {
  return settingsOf(settings).keptTriplets?.[`${name}.${kE}`] ?? null;
}

/** The Frobenius norm of A A^T - I, or of B^T B - I, in the triplets that a module has. */
function distanceFromOrthonormal(module: VariantModule, key: typeof kA | typeof kB): Tensor {
  const factor = module.parameter(key);
  const gram = matmul(factor, factor, key === kA ? { transposeB: true } : { transposeA: true });
  const { dtype, device } = factor;
  const kept = keptInFile(module.name, module.settings);
  const unit = module.constant(`unit ${kept === null ? module.r : module.name}`, () =>
    unitMatrix(kept ?? Array.from({ length: module.r }, () => true), { dtype, device }),
  );
  return sqrt(sum(square(sub(gram, unit))));
}

function unitMatrix(
  diagonal: readonly boolean[],
  options: Pick<Tensor, 'dtype' | 'device'>,
): Tensor {
  const r = diagonal.length;
  const values = diagonal.flatMap((isOne, row) =>
    Array.from({ length: r }, (_, column) => (isOne && row === column ? 1 : 0)),
  );
  return tensor(values, { shape: [r, r], ...options });
}

/** Whether a run, or the file that it was read from, has chosen the module's triplets for good. */
function isChosen(module: VariantModule): boolean {
  return keptTriplets(module).includes(false);
}

const training: VariantTraining = {
  term: {
    key: 'orthogonality',
    weight: (modules) => settingsIn(modules).orthRegWeight,
    value: (modules) => {
      const distances = modules
        .filter(({ name, settings }) => keptInFile(name, settings)?.includes(true) ?? true)
        .flatMap((module) => [
          distanceFromOrthonormal(module, kA),
          distanceFromOrthonormal(module, kB),
        ]);
      // A pair without a triplet counts, with the distance 0.
      return mul(sum(stack(distances)), 1 / (2 * modules.length));
    },
  },
  refuses: (modules, { totalSteps }) => {
    const { tinit, tfinal } = settingsIn(modules);
    if (modules.some(isChosen)) {
      return (
        'adalora: an earlier run has chosen the ranks of this adapter, which a run chooses once; export it as a plain LoRA and ' +
        'train that, or begin with a fresh adapter'
      );
    }
    if (tinit < totalSteps - tfinal) return null;
    return (
      `tinit ${tinit} and tfinal ${tfinal}: a run of ${totalSteps} steps has none between them in which ranks are chosen; ` +
      'set them lower, or train longer'
    );
  },
  plan: (modules, { step, totalSteps }) => {
    const budget = budgetAt(step + 1, totalSteps, modules);
    if (budget !== null) return budget;
    // Whether the choice is still to come.
    return step + 1 > totalSteps - settingsIn(modules).tfinal ? -2 : -1;
  },
  afterStep: async (modules, { step, totalSteps, coefficient }) => {
    const t = step + 1;
    const end = totalSteps - settingsIn(modules).tfinal;
    scope(() =>
      noGrad(() => {
        for (const module of modules) {
          // Again at the last choice: until then, a run may be resumed with another length.
          if (t === 1 || t === end) fill_(module.parameter(kTotal), totalSteps);
          if (t < end) updateImportance(module, coefficient);
          if (t > end) dropTriplets(module, module.parameter(kDropped));
        }
      }),
    );
    const budget = budgetAt(t, totalSteps, modules);
    if (budget !== null) await choose(modules, budget, t === end);
  },
};

/** Keys of LoRA's configuration that change nothing in an adapter of AdaLoRA. */
const kWithoutEffect: Readonly<Record<string, PythonJson>> = {
  ...IDLE_KEYS,
  ...{ alpha_pattern: {}, init_lora_weights: true, lora_bias: false, use_rslora: false },
};
/** Those that switch something on that AdaLoRA has not, or that is not supported, with the values that leave it off. */
const kOff: Readonly<Record<string, PythonJson>> = { ...UNSUPPORTED_KEYS, use_dora: false };

function tensorsOf(): TypeTensor[] {
  const trained = { trained: true, decays: true };
  const state = { trained: false, decays: false, isState: true };
  const shapes: readonly [key: string, shape: TypeTensor['shape']][] = [
    [kA, ({ r, inFeatures }) => [r, inFeatures]],
    [kB, ({ r, outFeatures }) => [outFeatures, r]],
    [kE, ({ r }) => [r, 1]],
  ];
  return [
    ...shapes.map(([key, shape]) => ({ key, shape, ...trained })),
    ...shapes.flatMap(([key, shape]) =>
      [importanceOf(key), deviationOf(key)].map((own) => ({ key: own, shape, ...state })),
    ),
    { key: kDropped, shape: ({ r }) => [r, 1], ...state },
    { key: kTotal, shape: () => [1], ...state },
  ];
}

/** Whether each triplet of a module is kept in its files: all are before the last choice of a run. */
function keptTriplets(module: VariantModule): boolean[] {
  const dropped = module.parameter(kDropped).dataSync() as Float32Array | Float64Array;
  return Array.from(dropped, (value) => value === 0);
}

const positions = (kept: readonly boolean[]): number[] =>
  kept.flatMap((isKept, at) => (isKept ? [at] : []));

/** The kept triplets of A, B and E, as new tensors. */
function cut(module: VariantModule): Record<string, Tensor> {
  const { device } = module.linear.weight;
  return owned(() => {
    const rows = tensor(Int32Array.from(positions(keptTriplets(module))), { device });
    const of = (key: string): Tensor => module.parameter(key);
    const b = transpose(indexSelect(transpose(of(kB)), rows));
    return { [kA]: indexSelect(of(kA), rows), [kB]: b, [kE]: indexSelect(of(kE), rows) };
  });
}

/** The tensors of a module whose file holds some of its triplets: the others have no singular value, and are marked as dropped. */
function uncut(
  { name, r }: { readonly name: string; readonly r: number },
  values: ReadonlyMap<string, Tensor>,
  kept: readonly boolean[],
): Record<string, Tensor> {
  const rows = positions(kept);
  const given = values.get(kE)?.shape[0];
  if (kept.length !== r || rows.length !== given) {
    throw new ArgumentError(
      `${name}: rank_pattern keeps ${rows.length} of ${kept.length} triplets, and the file has ${given} of init_r ${r}`,
    );
  }
  const { device, dtype } = values.get(kE) as Tensor;
  return owned(() => {
    // Row i of a matrix with r rows is row sources[i] of the kept ones, or the row of zeros behind them.
    let next = 0;
    const sources = kept.map((isKept) => (isKept ? next++ : rows.length));
    const spread = (x: Tensor): Tensor => {
      const blank = zeros([1, x.shape[1] as number], { device, dtype });
      const order = tensor(Int32Array.from(sources), { device });
      return indexSelect(concat([x, blank], 0), order);
    };
    const [a, b, e] = kTrained.map((key) => values.get(key) as Tensor) as [Tensor, Tensor, Tensor];
    const dropped = tensor(
      kept.map((isKept) => (isKept ? 0 : 1)),
      { shape: [r, 1], device, dtype },
    );
    return {
      [kA]: spread(a),
      [kB]: transpose(spread(transpose(b))),
      [kE]: spread(e),
      [kDropped]: dropped,
    };
  });
}

/** The tensors that `make` returns, with memory of their own. */
function owned(make: () => Record<string, Tensor>): Record<string, Tensor> {
  return computeOwned(() =>
    Object.fromEntries(Object.entries(make()).map(([key, value]) => [key, contiguous(value)])),
  );
}

const form = lowRankVariant({
  peftType: 'ADALORA',
  inPeft: true,
  formula: 'W x + s B (E * A) x, E a factor of each row of A; the least important rows lose theirs',
  keys: {
    ...LORA_KEYS,
    ...keysOf('idle', kWithoutEffect),
    ...keysOf('only', kOff),
    init_r: { option: 'initR' },
    target_r: { option: 'targetR' },
    tinit: { option: 'tinit' },
    tfinal: { option: 'tfinal' },
    deltaT: { option: 'deltaT' },
    beta1: floatKey('beta1'),
    beta2: floatKey('beta2'),
    orth_reg_weight: floatKey('orthRegWeight'),
    rank_pattern: { option: 'keptTriplets' },
    total_step: { option: 'totalStep' },
  },
  tensors: tensorsOf,
  rank: (settings) => settingsOf(settings).initR,
  scale: (settings, alpha) => alpha / (settingsOf(settings).initR + kRankShift),
  start: (modules) =>
    modules.map((module) => {
      const { inFeatures, outFeatures, r } = module;
      const normal = (shape: readonly number[], purpose: string): Tensor =>
        randn(shape, { seed: module.seed(purpose), deviation: kDeviation });
      return {
        [kA]: normal([r, inFeatures], 'A'),
        [kB]: normal([outFeatures, r], 'B'),
        [kE]: zeros([r, 1]),
      };
    }),
  refuses: refusesRank,
  refusesStart: (_, settings) => {
    const { initR, targetR, r } = settingsOf(settings);
    if (r !== kPeftRank) {
      return `r ${r} means nothing in AdaLoRA, whose ranks are initR and targetR; leave r out`;
    }
    if (targetR < initR) return null;
    return `targetR ${targetR} must be below initR ${initR}, the rank that AdaLoRA starts with; set one of them`;
  },
  factors: ({ tensor: tensorOf }) => ({ a: mul(tensorOf(kA), tensorOf(kE)), b: tensorOf(kB) }),
  fromFile: (module, values, settings) => {
    const kept = keptInFile(module.name, settings);
    return kept === null ? values : new Map(Object.entries(uncut(module, values, kept)));
  },
  toFile: (modules) => {
    const kept = modules.map(keptTriplets);
    const isCut = kept.some((triplets) => triplets.includes(false));
    const pattern = Object.fromEntries(
      modules.map(({ name }, i) => [`${name}.${kE}`, kept[i] as boolean[]]),
    );
    const { tinit, tfinal, totalStep } = settingsIn(modules);
    const [trained] = (modules[0] as VariantModule).parameter(kTotal).dataSync() as Float32Array;
    return {
      tensors: modules.map(cut),
      settings: {
        keptTriplets: isCut ? pattern : null,
        // PEFT reads no file without it, and asks for a step between tinit and tfinal.
        totalStep: trained || (totalStep ?? tinit + tfinal + 1),
      },
    };
  },
});

const variant: Variant = {
  ...form,
  training,
  // Without the triplets that were dropped, so that the rank is that of the file.
  toLora: (module) => {
    const { [kA]: a, [kB]: b, [kE]: e } = cut(module) as Record<string, Tensor> & Triplets;
    const { product } = owned(() => ({ product: mul(a.to('f64'), e.to('f64')).to(a.dtype) }));
    for (const tensorOf of [a, e]) tensorOf.dispose();
    return { a: product as Tensor, b };
  },
};

type Triplets = { readonly [key in (typeof kTrained)[number]]: Tensor };

export const adalora = defineMethod({
  name: 'adalora',
  title: 'AdaLoRA: LoRA as a singular value decomposition whose ranks are chosen in training',
  about:
    'It trains triplets, a row of A, a column of B and a factor E between them, and takes the factor of the least important ' +
    'ones of all modules together, until `targetR` a module are left on average: the rank goes where it is of use. The number ' +
    'of triplets falls as a cubic from step `tinit` to `tfinal` steps before the end of the run; every `deltaT` steps there is ' +
    'a choice, and the one at the end of the fall holds. In between, a triplet that lost its factor may grow again. The trainer ' +
    "does this by itself, with the run's own number of steps. A term of the loss (`orthogonality` in the records, " +
    '`orthRegWeight` its weight, 0.5 as in PEFT, 0.1 to 0.3 in the paper) holds A and B near orthonormal. Importances are ' +
    'computed from the clipped gradients and are part of checkpoints, so that a resumed run is the same bit for bit. Files hold ' +
    'the triplets that are left, none of a module included; before the last choice they hold all. An adapter is trained by ' +
    'AdaLoRA once: export it as a plain LoRA (`plain-lora`, exact) to train it further. As in PEFT, `r`, `useRslora` and ' +
    'patterns mean nothing here, and s = alpha / (initR + 1e-5) whatever ranks are left. It costs the state of importances ' +
    'beside A and B, twice their size.',
  differs:
    "transformers' Trainer never calls its `update_and_allocate`, and without these calls it trains a plain LoRA. A file that " +
    'is saved in mid-training lacks the triplets that have grown again since the last choice, where the files here have all. On ' +
    'a base in 16 bits the divisor of alpha is trained and not saved. `targetR` that is not below `initR` fails in the first ' +
    'step; it is refused here before',
  source: 'arXiv 2303.10512',
  since: '0.2.0',
  adapter: { peftType: 'ADALORA' },
  options: {
    /** Rank of every module at the start. Default 12. */
    initR: whole({ least: 1, default: 12, help: 'rank at the start' }),
    /** Rank of a module at the end, on average over all modules. Below `initR`. Default 8. */
    targetR: whole({ least: 1, default: 8, help: 'rank at the end, on average' }),
    /** Number of steps before the first choice of ranks. Default 0. */
    tinit: whole({ least: 0, default: 0, help: 'steps before ranks are chosen' }),
    /** Number of steps after the last choice of ranks. Default 0. */
    tfinal: whole({ least: 0, default: 0, help: 'steps after ranks have been chosen' }),
    /** Number of steps from one choice to the next. Default 1. */
    deltaT: whole({ least: 1, default: 1, help: 'steps between choices of ranks' }),
    /** Decay of the smoothed importance. Default 0.85. */
    beta1: number({ least: 0, below: 1, default: 0.85, help: 'decay of the importance' }),
    /** Decay of the smoothed deviation of the importance. Default 0.85. */
    beta2: number({
      least: 0,
      below: 1,
      default: 0.85,
      help: "decay of the importance's deviation",
    }),
    /** Weight of the term that holds A and B near orthonormal. Default 0.5, as in PEFT; the authors' is 0.1 to 0.3. */
    orthRegWeight: number({
      least: 0,
      default: 0.5,
      help: 'weight of the orthogonality term',
    }),
    /** Which triplets a file holds, by `<module>.lora_E`, as PEFT's rank_pattern says. Default, and null: all. */
    keptTriplets: json<Readonly<Record<string, readonly boolean[]>>, null>({
      of: 'lists of true and false by module',
      schema: z.record(z.string(), z.array(z.boolean()).readonly()).readonly(),
      default: null,
      help: 'the triplets in the file',
      only: 'library',
    }),
    /** Number of steps of the run that an adapter in a file was trained in. Default, and null: not known. */
    totalStep: whole({
      least: 1,
      default: null,
      help: 'steps of its run',
      only: 'library',
    }),
  },
  variants: [variant],
});
