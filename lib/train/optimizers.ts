/**
 * The optimisers by the names of the `optim` option: the shapes of the moments of each one, and how it is made from a
 * run's options.
 */
import type { NamedTensor } from '../adapters/tuned_model.ts';
import { ArgumentError } from '../errors.ts';
import { Adafactor, adafactorMoments } from '../optim/adafactor.ts';
import { AdamW, adamwMoments } from '../optim/adamw.ts';
import { LoraFa } from '../optim/lora_fa.ts';
import type { MomentShapes, Optimizer, ParameterGroup } from '../optim/optimizer.ts';
import { RiemannianAdamW } from '../optim/riemannian.ts';
import { Sgd, sgdMoments } from '../optim/sgd.ts';
import type { Tensor } from '../tensor.ts';
import type { ResolvedOptimization } from './resolve_run.ts';
import type { OptimizerName } from './types.ts';

interface OptimizerRow {
  moments(shape: readonly number[], options: ResolvedOptimization): MomentShapes;
  make(groups: readonly ParameterGroup[], options: ResolvedOptimization): Optimizer;
  /** Whether it is for low-rank pairs alone. Default false. */
  readonly needsPairs?: boolean;
  /** Whether it leaves a parameter as it is, which then gets no gradient. Default: it leaves none. */
  leaves?(parameter: NamedTensor): boolean;
}

const adamwOptions = ({
  adamBeta1: beta1,
  adamBeta2: beta2,
  adamEpsilon: eps,
  weightDecay,
}: ResolvedOptimization) => ({ beta1, beta2, eps, weightDecay });

const kOptimizers: Readonly<Record<OptimizerName, OptimizerRow>> = {
  adamw: {
    moments: adamwMoments,
    make: (groups, options) => new AdamW(groups, adamwOptions(options)),
  },
  adafactor: {
    moments: (shape) => adafactorMoments(shape, { firstMoment: false }),
    make: (groups, { weightDecay }) => new Adafactor(groups, { weightDecay }),
  },
  sgd: {
    moments: (shape, { momentum }) => sgdMoments(shape, momentum),
    make: (groups, { momentum, weightDecay }) => new Sgd(groups, { momentum, weightDecay }),
  },
  lora_fa: {
    moments: adamwMoments,
    make: (groups, options) => new LoraFa(groups, adamwOptions(options)),
    needsPairs: true,
    leaves: ({ factor }) => factor?.role === 'a',
  },
  riemannian: {
    moments: adamwMoments,
    make: (groups, options) =>
      new RiemannianAdamW(groups, { ...adamwOptions(options), reg: options.riemannianReg }),
    needsPairs: true,
  },
};

/**
 * The parameters that a run's optimiser updates.
 * @throws ArgumentError for an optimiser of low-rank pairs without one
 */
export function updatedBy(
  { optim }: Pick<ResolvedOptimization, 'optim'>,
  parameters: readonly NamedTensor[],
): readonly NamedTensor[] {
  const { needsPairs = false, leaves = () => false } = kOptimizers[optim];
  if (needsPairs && !parameters.some(({ factor }) => factor !== undefined)) {
    throw new ArgumentError(
      `optim ${optim} is for adapters with a pair A and B, which this model does not train; choose adamw`,
    );
  }
  return parameters.filter((parameter) => !leaves(parameter));
}

/**
 * Takes the gradients of the parameters that a run's optimiser leaves as they are, so that passes neither compute them nor keep what
 * they would need.
 * @returns a function that gives them back
 */
export function withoutGradients(
  { optim }: Pick<ResolvedOptimization, 'optim'>,
  parameters: readonly NamedTensor[],
): () => void {
  const { leaves = () => false } = kOptimizers[optim];
  const left = parameters.filter(leaves).map(({ tensor }) => tensor);
  for (const tensor of left) tensor.requiresGrad = false;
  return () => {
    for (const tensor of left) tensor.requiresGrad = true;
  };
}

export function makeOptimizer(
  groups: readonly ParameterGroup[],
  options: ResolvedOptimization,
): Optimizer {
  return kOptimizers[options.optim].make(groups, options);
}

/** The number of elements in the optimiser's moments of these parameters. */
export function momentCount(parameters: readonly Tensor[], options: ResolvedOptimization): number {
  const shapes = parameters.flatMap(({ shape }) =>
    Object.values(kOptimizers[options.optim].moments(shape, options)),
  );
  return shapes.reduce((sum, shape) => sum + shape.reduce((size, extent) => size * extent, 1), 0);
}
