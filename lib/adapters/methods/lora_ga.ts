/**
 * LoRA-GA (Wang et al. 2024): with U, S, V^T the leading 2r singular triplets of the loss's gradient for W, A is the first r rows of
 * V^T and B the next r columns of U, so that the first step of training follows the gradient as well as rank 2r can. Both are times
 * out^(1/4) / sqrt(gamma), without the singular values: the authors' `ArB2r` and `stable`. Other choices of the triplets and other scales
 * are settings of the calibration, under the names of PEFT's LoraGAConfig.
 *
 * `lora_ga_peft` is PEFT's rule, which is another one: B is times its singular values, too, and A is not scaled.
 */
import { ArgumentError } from '../../errors.ts';
import { div, indexSelect, mean, mul, rand, slice, sqrt, transpose } from '../../ops/index.ts';
import { type Tensor, tensor } from '../../tensor.ts';
import { leadingTriplets } from '../leading_triplets.ts';
import type { LowRankPair } from '../low_rank.ts';
import {
  type CalibrationSettings,
  checkChoice,
  defineMethod,
  defineNamedStart,
  type GradientCalibration,
  type GradientTriplets,
  type StartModule,
  type Statistics,
} from './method.ts';

/** Names of the choices of triplets: those of A, then those of B. */
const kDirections = ['ArB2r', 'A2rBr', 'ArBr', 'random'] as const;
const kScales = ['stable', 'weight_svd', 'gd_scale', 'unit'] as const;

interface Settings {
  readonly direction: (typeof kDirections)[number];
  readonly scale: (typeof kScales)[number];
  /** Gamma of the scale `stable`. */
  readonly stableGamma: number;
  /** Whether the gradients are sketched in two passes, not summed. */
  readonly quick: boolean;
}

const kSettings: Settings = { direction: 'ArB2r', scale: 'stable', stableGamma: 16, quick: false };

const settingsOf = ({ settings }: StartModule): Settings => settings as unknown as Settings;

/** The part of the gradient that a pair starts from, and that of the weight for the scale `weight_svd`. */
interface Directions {
  readonly u: Tensor; // (out,r)
  /** The singular values of the columns of u. */
  readonly s: Tensor; // (r)
  readonly vt: Tensor; // (r,in)
  /** The first singular values of W; left out: the scale does not need them. */
  readonly weight?: Tensor; // (r)
}

/** The definition of a form of LoRA-GA, whose pairs differ in their scale. */
const gaStart = <Value extends 'lora_ga' | 'lora_ga_peft'>(
  value: Value,
  own: {
    readonly title: string;
    /** Whether `random` takes the same triplets for A and B. */
    readonly drawsOnce: boolean;
  },
  pair: (directions: Directions, module: StartModule) => LowRankPair,
) => {
  const { drawsOnce, ...rest } = own;
  const calibration: GradientCalibration = {
    reads: 'gradient',
    settings: { ...kSettings },
    checkSettings,
    check,
    count: ({ r }) => 2 * r,
    reduce: (modules, found) =>
      modules.map((module, i) => chosen(module, found[i] as GradientTriplets, drawsOnce)),
  };
  return defineNamedStart(value, {
    ...rest,
    fromWeight: true,
    calibration,
    pairs: (modules) =>
      modules.map((module) => pair(module.statistics as unknown as Directions, module)),
  });
};

function checkSettings(settings: CalibrationSettings): void {
  checkChoice('lora_ga: direction', kDirections, settings.direction);
  checkChoice('lora_ga: scale', kScales, settings.scale);
  const gamma = settings.stableGamma as number;
  if (!(gamma > 0)) throw new ArgumentError(`lora_ga: stableGamma must be > 0, got ${gamma}`);
}

function check({ name, r, inFeatures, outFeatures }: StartModule): void {
  const most = Math.floor(Math.min(inFeatures, outFeatures) / 2);
  if (r <= most) return;
  throw new ArgumentError(
    `${name}: LoRA-GA takes 2r singular triplets of the gradient, and (out,in)=(${outFeatures},${inFeatures}) has ` +
      `${Math.min(inFeatures, outFeatures)}; set r, or rankPattern for it, to ${most} at most, got r=${r}`,
  );
}

/** The triplets that A and B take, as the setting says. */
function chosen(module: StartModule, found: GradientTriplets, drawsOnce: boolean): Statistics {
  const { r, weight, seed } = module;
  const { direction, scale } = settingsOf(module);
  const at = (first: number, step = 1): number[] =>
    Array.from({ length: r }, (_, i) => first + step * i);
  const drawn = (): [number[], number[]] => {
    const draws = rand([2 * r], { seed: seed('directions') }).dataSync() as Float32Array;
    const order = [...draws.keys()].sort((i, j) => (draws[i] as number) - (draws[j] as number));
    return drawsOnce ? [order.slice(0, r), order.slice(0, r)] : [order.slice(0, r), order.slice(r)];
  };
  const lists: Record<Settings['direction'], () => [number[], number[]]> = {
    ArB2r: () => [at(0), at(r)],
    A2rBr: () => [at(r), at(0)],
    ArBr: () => [at(1, 2), at(0, 2)],
    random: drawn,
  };
  const [rows, columns] = lists[direction]().map((list) =>
    tensor(Int32Array.from(list), { device: found.s.device }),
  ) as [Tensor, Tensor];
  const a = weight.dtype === 'f64' ? weight.to('f32') : weight;
  const own: Statistics =
    scale === 'weight_svd'
      ? { weight: leadingTriplets([{ a, rank: r, seed: seed('svd') }])[0]?.s as Tensor }
      : {};
  return {
    ...own,
    u: transpose(indexSelect(transpose(found.u), columns)),
    s: indexSelect(found.s, columns),
    vt: indexSelect(found.vt, rows),
  };
}

/** The factor out^(1/4) / sqrt(gamma). */
function stable(module: StartModule): number {
  return module.outFeatures ** 0.25 / Math.sqrt(settingsOf(module).stableGamma);
}

const authors = gaStart(
  'lora_ga',
  {
    title:
      'A the first r right, B the next r left singular vectors of the gradient, both scaled by out^(1/4)/4',
    drawsOnce: false,
  },
  ({ u, vt, weight }, module) => {
    const { scale } = module;
    const factors: Record<Settings['scale'], () => number | Tensor> = {
      stable: () => stable(module),
      unit: () => 1,
      gd_scale: () => 1 / scale,
      weight_svd: () => mean(sqrt(div(weight as Tensor, scale))),
    };
    const factor = factors[settingsOf(module).scale]();
    return { a: mul(vt, factor), b: mul(u, factor) };
  },
);
const peft = gaStart(
  'lora_ga_peft',
  {
    title: "the same vectors by PEFT's rule: B times its singular values and the scale, A as it is",
    drawsOnce: true,
  },
  ({ u, s, vt, weight }, module) => {
    const { scale } = module;
    const first = (values: Tensor): Tensor => slice(values, 0, { stop: 1 });
    const b = mul(u, s);
    const pairs: Record<Settings['scale'], () => LowRankPair> = {
      stable: () => ({ a: vt, b: mul(b, stable(module)) }),
      unit: () => ({ a: vt, b }),
      gd_scale: () => ({ a: div(vt, scale), b: div(b, scale) }),
      weight_svd: () => ({ a: vt, b: mul(b, div(first(weight as Tensor), first(s))) }),
    };
    return pairs[settingsOf(module).scale]();
  },
);

export const loraGa = defineMethod({
  name: 'lora_ga',
  title: 'LoRA-GA: LoRA whose first steps follow the gradient of the whole weight',
  about:
    'The first step of training follows the gradient of the whole weight as closely as its rank allows, so that training begins faster. ' +
    'Take it for short runs. [A calibration](adapters.md#a-start-from-your-data) needs the gradients of all weights, as many at a time as fit into `maxBytes`, and the rank may be half of what the ' +
    'weight allows at most. With the setting `quick` it keeps sketches of them, which take two passes and no more memory than a pair of ' +
    'rank 4r, and tells how much of the gradients the start holds.',
  differs:
    'its rule is another one, here `lora_ga_peft`; its folder loads on the original base without a word and computes something ' +
    'else, so that it is refused here with the reason; with the direction `random` it takes the same triplets for A and B, where the ' +
    'authors take others',
  source: 'arXiv 2407.05000',
  since: '0.2.0',
  adapter: { initLoraWeights: 'lora_ga' },
  starts: [authors],
});

export const loraGaPeft = defineMethod({
  name: 'lora_ga_peft',
  title: "LoRA-GA by PEFT's rule, which is not the authors'",
  about:
    "The same calibration with the formula that PEFT has under the name LoRA-GA. Take it to repeat a run of PEFT's.",
  source: 'arXiv 2407.05000',
  since: '0.2.0',
  adapter: { initLoraWeights: 'lora_ga_peft' },
  starts: [peft],
});
