/**
 * LoRA-Dash (Si et al. 2024): after a warm-up as plain LoRA, the directions of W in which the adapter changed it most are trained, too:
 *
 *     y = W x + s B A x + sum over k of c_k u_k (v_k . x).
 *
 * The directions, with W = U S V^T and d_i = (U^T (s B A) V)_ii, are the singular pairs u_i, v_i with the largest |d_i| / S_i at that
 * time; c starts at 0. As in the authors' code, s does not scale them. Beyond that code, the count of forward passes is part of
 * checkpoints and files, so that neither a resumed run nor a loaded adapter warms up again.
 */
import {
  abs,
  concat,
  copy_,
  div,
  full,
  indexSelect,
  matmul,
  maximum,
  mul,
  sum,
  svd,
  topK,
  transpose,
  zeros,
} from '../../ops/index.ts';
import { whole } from '../../options/kinds.ts';
import { synchronize } from '../../runtime.ts';
import { noGrad, scope, type Tensor, tensor } from '../../tensor.ts';
import type { LowRankPair } from '../low_rank.ts';
import { uniformPair } from './lora.ts';
import {
  defineMethod,
  frozenTensor,
  type ModuleSizes,
  type Settings,
  trainedTensor,
  type Variant,
  type VariantModule,
  type VariantTraining,
} from './method.ts';
import { type FormModule, LORA_KEYS, lowRankVariant, refusesRank } from './own_form.ts';

const kA = 'lora_A.weight';
const kB = 'lora_B.weight';
/** The authors' names of c (K), u (out,K) and v (K,in). */
const kIndex = 'lora_index';
const kU = 'weight_u_top';
const kV = 'weight_vt_top';
/** (2): the number of forward passes before the directions were taken, and 1 when they were, else 0. */
const kCalls = 'lora_dash_calls';

/** A singular value below which a direction counts as one that W does not have; its ratio is then as large as d. */
const kTiny = 1e-300;

/** The number K of directions of a module. */
function directions({ inFeatures, outFeatures }: ModuleSizes, settings: Settings): number {
  return Math.min(settings.dashIndex as number, inFeatures, outFeatures);
}

/** The values of small tensors that the host reads, by the version that was read. */
const kRead = new WeakMap<Tensor, { version: number; values: readonly number[] }>();

/** The count of forward passes, and whether the directions have been taken. */
function progressOf(counter: Tensor): { calls: number; taken: boolean } {
  const known = kRead.get(counter);
  const isKnown = known?.version === counter.version;
  const values = isKnown ? known.values : Array.from(counter.dataSync() as Float32Array);
  if (!isKnown) kRead.set(counter, { version: counter.version, values });
  const [calls, taken] = values as [number, number];
  return { calls, taken: taken !== 0 };
}

function setProgress(module: VariantModule, calls: number, taken: boolean): void {
  const counter = module.parameter(kCalls);
  const values = [calls, taken ? 1 : 0];
  scope(() => noGrad(() => copy_(counter, tensor(values, { device: counter.device }))));
  kRead.set(counter, { version: counter.version, values });
}

/** Takes the directions of a module from its weight and its present pair. Enqueues the ops and returns. */
function takeDirections(module: VariantModule): void {
  const { linear, scale } = module;
  const [c, u, v] = [kIndex, kU, kV].map((key) => module.parameter(key)) as [
    Tensor,
    Tensor,
    Tensor,
  ];
  scope(() =>
    noGrad(() => {
      const factors = svd(linear.weight.to('f64'));
      const [a, b] = [module.parameter(kA).to('f64'), module.parameter(kB).to('f64')];
      // d = s diag(U^T B A V), by way of (K,r) and (r,K) matrices.
      const left = matmul(factors.u, b, { transposeA: true });
      const right = matmul(a, factors.vt, { transposeB: true });
      const d = mul(sum(mul(left, transpose(right)), { axis: 1 }), scale);
      const tiny = full([], kTiny, { dtype: 'f64', device: linear.weight.device });
      const { indices } = topK(div(abs(d), maximum(factors.s, tiny)), c.size);
      copy_(u, transpose(indexSelect(transpose(factors.u), indices)).to(u.dtype));
      copy_(v, indexSelect(factors.vt, indices).to(v.dtype));
    }),
  );
}

const training: VariantTraining = {
  refuses: ([first], { totalSteps, microBatches }) => {
    const warmup = first?.settings.dashWarmup as number;
    const { calls, taken } = progressOf((first as VariantModule).parameter(kCalls));
    const passes = calls + totalSteps * microBatches;
    if (taken || passes > warmup) return null;
    return (
      `dashWarmup ${warmup}: the run has ${passes} forward passes, so that it would train a plain LoRA; ` +
      'set dashWarmup lower, or train longer'
    );
  },
  beforeStep: async (modules) => {
    for (const module of modules) {
      const { calls, taken } = progressOf(module.parameter(kCalls));
      if (taken || calls < (module.settings.dashWarmup as number)) continue;
      takeDirections(module);
      // A decomposition takes long: the event loop gets a turn after each.
      await synchronize();
      setProgress(module, calls, true);
    }
  },
  afterStep: (modules, { microBatches }) => {
    for (const module of modules) {
      const { calls, taken } = progressOf(module.parameter(kCalls));
      if (!taken) setProgress(module, calls + microBatches, false);
    }
  },
};

/** The pair of the whole update, whose product is multiplied by s: the directions, too, once they are there. */
function factors(module: FormModule): LowRankPair {
  const [a, b] = [module.tensor(kA), module.tensor(kB)];
  if (!progressOf(module.tensor(kCalls)).taken) return { a, b };
  const scaled = mul(module.tensor(kU), div(module.tensor(kIndex), module.scale));
  return { a: concat([a, module.tensor(kV)], 0), b: concat([b, scaled], 1) };
}

const form: Variant = lowRankVariant({
  peftType: 'LORA_DASH',
  inPeft: false,
  formula:
    'W x + s B A x, after a warm-up + sum of c_k u_k (v_k . x) over singular pairs of W; c is trained',
  keys: {
    ...LORA_KEYS,
    dash_warmup: { option: 'dashWarmup' },
    dash_index: { option: 'dashIndex' },
  },
  tensors: (settings) => {
    const count = (sizes: ModuleSizes): number => directions(sizes, settings);
    return [
      trainedTensor(kA, ({ r, inFeatures }) => [r, inFeatures]),
      trainedTensor(kB, ({ r, outFeatures }) => [outFeatures, r]),
      trainedTensor(kIndex, (sizes) => [count(sizes)]),
      frozenTensor(kU, (sizes) => [sizes.outFeatures, count(sizes)]),
      frozenTensor(kV, (sizes) => [count(sizes), sizes.inFeatures]),
      frozenTensor(kCalls, () => [2]),
    ];
  },
  start: (modules, settings) =>
    modules.map((module) => {
      const { inFeatures, outFeatures } = module;
      const k = directions(module, settings);
      const { a, b } = uniformPair(module);
      return {
        ...{ [kA]: a, [kB]: b, [kIndex]: zeros([k]) },
        ...{ [kU]: zeros([outFeatures, k]), [kV]: zeros([k, inFeatures]), [kCalls]: zeros([2]) },
      };
    }),
  refuses: (sizes, settings) =>
    settings.loraAlpha === 0
      ? 'loraAlpha 0 leaves the pair without effect; give a number above 0'
      : refusesRank(sizes),
  factors,
});

const variant: Variant = {
  ...form,
  training,
  phase: (module) => {
    const { taken } = progressOf(module.parameter(kCalls));
    return taken ? 'with directions' : 'before directions';
  },
  // Two parts, so that neither is divided by s nor copied into one matrix.
  update: (module, plain) => {
    const { scale, form } = module;
    const tensorOf = (key: string): Tensor => module.parameter(key);
    const pair = { a: tensorOf(kA), b: tensorOf(kB), scale, form };
    if (!progressOf(tensorOf(kCalls)).taken) return { ...plain, lowRank: [pair] };
    return {
      ...plain,
      lowRank: [pair, { a: tensorOf(kV), b: mul(tensorOf(kU), tensorOf(kIndex)) }],
    };
  },
};

export const loraDash = defineMethod({
  name: 'lora_dash',
  title: 'LoRA-Dash: LoRA that also trains the directions of W in which it changed most',
  about:
    'LoRA for the first `dashWarmup` forward passes (micro-batches) of training; then it takes, for each weight, the ' +
    '`dashIndex` singular directions in which the adapter changed the weight most, relative to the singular value, and trains a ' +
    'factor for each beside A and B. Take it where a small rank has to do. The directions come from an exact decomposition of ' +
    'every weight, made once, which takes minutes for a large model; with accumulation they are taken before the first step ' +
    "that begins after the warm-up. The count of passes is part of checkpoints and of files (the authors' files lack it), so " +
    'that no adapter warms up twice. The plain LoRA has the rank r + `dashIndex`.',
  source: 'arXiv 2409.01035',
  since: '0.2.0',
  adapter: { peftType: 'LORA_DASH' },
  options: {
    /** Number of forward passes in training that LoRA-Dash makes as plain LoRA before it takes its directions. Default 100. */
    dashWarmup: whole({
      least: 0,
      default: 100,
      help: 'forward passes before the directions are taken',
    }),
    /** Number of singular directions of each weight that LoRA-Dash trains. Default 8. */
    dashIndex: whole({ least: 1, default: 8, help: 'directions of each weight' }),
  },
  variants: [variant],
});
