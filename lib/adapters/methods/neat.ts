/**
 * NEAT (Zhong et al. 2024), PEANuT in PEFT: the update is a small network of the weight, W' = W + scaling B h with h = act(A W), A (r,out)
 * and B (out,r), which starts as 0. With a depth, h passes through encoders E_i (r,r), h <- act(E_i h), and then decoders D_i,
 * h <- act(D_i h) + what h was before the encoder of the same place, counted from the last.
 */
import {
  add,
  gelu,
  matmul,
  mul,
  rand,
  relu,
  sigmoid,
  silu,
  softplus,
  tanh,
  zeros,
} from '../../ops/index.ts';
import { choice, number, whole } from '../../options/kinds.ts';
import type { Tensor } from '../../tensor.ts';
import { defineMethod, type Settings, trainedTensor } from './method.ts';
import { floatKey, lowRankVariant, withWeight } from './own_form.ts';

const kA = 'peanut_A.weight';
const kB = 'peanut_B.weight';
const encoder = (at: number): string => `peanut_encoders.${at}.weight`;
const decoder = (at: number): string => `peanut_decoders.${at}.weight`;

/** Activations under transformers' names. */
const kActivations = {
  relu,
  gelu: (x) => gelu(x),
  gelu_new: (x) => gelu(x, { approximate: 'tanh' }),
  gelu_pytorch_tanh: (x) => gelu(x, { approximate: 'tanh' }),
  silu,
  swish: silu,
  tanh,
  sigmoid,
  softplus,
  linear: (x) => x,
} as const satisfies Record<string, (x: Tensor) => Tensor>;

type Activation = keyof typeof kActivations;

const depthOf = ({ peanutDepth }: Settings): number => peanutDepth as number;
const places = (settings: Settings): number[] =>
  Array.from({ length: depthOf(settings) }, (_, at) => at);

const variant = lowRankVariant({
  peftType: 'PEANUT',
  inPeft: true,
  formula: 'W x + scaling B act(A W) x, with a depth through further trained r x r layers',
  keys: {
    act_fn: { option: 'peanutActFn' },
    depth: { option: 'peanutDepth' },
    exclude_modules: { option: 'excludeModules' },
    init_weights: { idle: true },
    scaling: floatKey('peanutScaling'),
  },
  tensors: (settings) => [
    trainedTensor(kA, ({ r, outFeatures }) => [r, outFeatures]),
    trainedTensor(kB, ({ r, outFeatures }) => [outFeatures, r]),
    ...places(settings).flatMap((at) =>
      [encoder(at), decoder(at)].map((key) => trainedTensor(key, ({ r }) => [r, r])),
    ),
  ],
  start: (modules, settings) =>
    modules.map((module) => {
      const { r, outFeatures } = module;
      const uniform = (key: string, shape: [number, number]): Tensor => {
        const bound = 1 / Math.sqrt(shape[1]);
        return rand(shape, { low: -bound, high: bound, seed: module.seed(key) });
      };
      const layers = places(settings).flatMap((at) => [encoder(at), decoder(at)]);
      return {
        [kA]: uniform(kA, [r, outFeatures]),
        [kB]: zeros([outFeatures, r]),
        ...Object.fromEntries(layers.map((key) => [key, uniform(key, [r, r])])),
      };
    }),
  factors: ({ settings, weight, tensor }) => {
    const act = kActivations[settings.peanutActFn as Activation];
    const layers = places(settings);
    const before: Tensor[] = [];
    const product = withWeight(weight, tensor(kA), {
      product: (w, a) => matmul(a, w),
      adjoint: (w, dy) => matmul(dy, w, { transposeB: true }),
    });
    let h = act(product); // (r,in)
    for (const at of layers) {
      before.push(h);
      h = act(matmul(tensor(encoder(at)), h));
    }
    for (const at of layers) h = add(act(matmul(tensor(decoder(at)), h)), before.pop() as Tensor);
    return { a: h, b: mul(tensor(kB), settings.peanutScaling as number) };
  },
});

const preset = { peftType: 'PEANUT', r: 32 };

export const neat = defineMethod({
  name: 'neat',
  title: 'NEAT: the update is a small network of the weight itself',
  about:
    'The update is made from W by a small network, so that it is not linear in what is trained. `peanutDepth` adds trained r x ' +
    'r layers to it. It takes a product of r vectors with W in every forward pass.',
  source: 'arXiv 2410.01870',
  since: '0.2.0',
  adapter: preset,
  options: {
    /** For NEAT: number of its encoders, and of its decoders. Default 0. */
    peanutDepth: whole({ least: 0, default: 0, help: 'encoders, and decoders' }),
    /** For NEAT: its activation, by transformers' name. Default `relu`. */
    peanutActFn: choice({
      choices: Object.keys(kActivations) as Activation[],
      default: 'relu',
      help: 'activation',
    }),
    /** For NEAT: factor of its update. Default 1. */
    peanutScaling: number({ default: 1, help: 'factor of the update' }),
  },
  variants: [variant],
});

export const peanut = defineMethod({
  name: 'peanut',
  title: "PEANuT, PEFT's name of NEAT",
  about: "`neat` under PEFT's name.",
  source: 'arXiv 2410.01870',
  since: '0.2.0',
  adapter: preset,
});
