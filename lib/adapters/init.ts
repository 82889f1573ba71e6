/**
 * How A and B start, one row an initialisation. All values are f32 and depend only on the seed, the module's path and
 * its weight: adapting one module more changes no other.
 */
import { createHash } from 'node:crypto';
import { UnsupportedError } from '../errors.ts';
import { div, mul, rand, randn, randomizedSvds, reshape, sqrt, zeros } from '../ops/index.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import { type LoraConfig, pissaIterations } from './config.ts';

export interface InitInput {
  /** Path of the module: a part of the random numbers' seed. */
  readonly name: string;
  readonly inFeatures: number;
  readonly outFeatures: number;
  readonly r: number;
  /** s in y += s (x A^T) B^T. */
  readonly scale: number;
  readonly seed: number;
  /** The frozen weight (out,in), in f32 or narrower; made when asked for. */
  readonly weight: () => Tensor;
}

/** The two factors of an update B A. */
export interface LowRankPair {
  readonly a: Tensor; // (r,in)
  readonly b: Tensor; // (out,r)
}

/** What an initialisation gives. */
export interface InitialPair extends LowRankPair {
  /** The pair came out of W: what it adds must be taken off, so that the model starts as it was. */
  readonly fromWeight: boolean;
}

/** The pairs of any number of modules, in their order. */
type Init = (inputs: readonly InitInput[]) => InitialPair[];

/** lora: PEFT's kaiming_uniform(a = sqrt 5), which is uniform within 1/sqrt(in); B = 0. */
const uniform = (input: InitInput): InitialPair => ({
  a: uniformA(input),
  b: zeroB(input),
  fromWeight: false,
});

/** gaussian: A normal with deviation 1/r, B = 0. */
const gaussian = (input: InitInput): InitialPair => {
  const a = randn([input.r, input.inFeatures], { seed: seedOf(input, 'A') });
  return { a: mul(a, 1 / input.r), b: zeroB(input), fromWeight: false };
};

/** init_lora_weights false: both random, so that the adapter changes the model from the start (for tests). */
const random = (input: InitInput): InitialPair => ({
  a: uniformA(input),
  b: uniformWithin([input.outFeatures, input.r], 1 / Math.sqrt(input.r), seedOf(input, 'B')),
  fromWeight: false,
});

/**
 * PiSSA: with the top-r singular triplets of W, A = sqrt(S/s) V^T and B = U sqrt(S/s), so that s B A is W's best rank-r
 * part. `null` iterations: to convergence. Many modules at once are quicker than one after the other.
 */
const pissa =
  (iterations: number | null): Init =>
  (inputs) => {
    const tasks = inputs.map((input) => ({
      a: input.weight(),
      rank: input.r,
      seed: seedOf(input, 'svd'),
    }));
    const found = randomizedSvds(tasks, { niter: iterations ?? 'converged' });
    return found.map(({ u, s, vt }, i) => {
      const { r, scale } = inputs[i] as InitInput;
      const root = sqrt(div(s, scale)); // (r)
      return { a: mul(vt, reshape(root, [r, 1])), b: mul(u, root), fromWeight: true };
    });
  };

/** The initialisation that a configuration names. @throws UnsupportedError for one that only PEFT knows. */
export function initialiser({ initLoraWeights }: LoraConfig): Init {
  const iterations = pissaIterations(initLoraWeights);
  if (iterations !== undefined) return tidy(pissa(iterations));
  if (initLoraWeights === 'gaussian') return tidy((inputs) => inputs.map(gaussian));
  if (typeof initLoraWeights === 'boolean') {
    return tidy((inputs) => inputs.map(initLoraWeights ? uniform : random));
  }
  throw new UnsupportedError(`initLoraWeights "${initLoraWeights}" is not supported`);
}

/** Frees what an initialisation makes on the way. */
function tidy(init: Init): Init {
  return (inputs) => scope(() => noGrad(() => init(inputs)));
}

/** A 48-bit seed of its own for every module and purpose. */
function seedOf({ seed, name }: InitInput, purpose: string): number {
  return createHash('sha256').update(`${seed}/${name}/${purpose}`).digest().readUIntBE(0, 6);
}

function uniformA(input: InitInput): Tensor {
  const bound = 1 / Math.sqrt(input.inFeatures);
  return uniformWithin([input.r, input.inFeatures], bound, seedOf(input, 'A'));
}

function uniformWithin(shape: readonly number[], bound: number, seed: number): Tensor {
  return rand(shape, { low: -bound, high: bound, seed });
}

function zeroB({ outFeatures, r }: InitInput): Tensor {
  return zeros([outFeatures, r]);
}
