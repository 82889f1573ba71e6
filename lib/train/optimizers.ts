/**
 * The optimisers by the names of the `optim` option: the shapes of the moments of each one, and how it is made from a
 * run's options.
 */
import { Adafactor, adafactorMoments } from '../optim/adafactor.ts';
import { AdamW, adamwMoments } from '../optim/adamw.ts';
import type { MomentShapes, Optimizer, ParameterGroup } from '../optim/optimizer.ts';
import { Sgd, sgdMoments } from '../optim/sgd.ts';
import type { Tensor } from '../tensor.ts';
import type { ResolvedOptimization } from './options.ts';
import type { OptimizerName } from './types.ts';

interface OptimizerRow {
  moments(shape: readonly number[], options: ResolvedOptimization): MomentShapes;
  make(groups: readonly ParameterGroup[], options: ResolvedOptimization): Optimizer;
}

const kOptimizers: Readonly<Record<OptimizerName, OptimizerRow>> = {
  adamw: {
    moments: adamwMoments,
    make: (groups, { adamBeta1: beta1, adamBeta2: beta2, adamEpsilon: eps, weightDecay }) =>
      new AdamW(groups, { beta1, beta2, eps, weightDecay }),
  },
  adafactor: {
    moments: (shape) => adafactorMoments(shape, { firstMoment: false }),
    make: (groups, { weightDecay }) => new Adafactor(groups, { weightDecay }),
  },
  sgd: {
    moments: (shape, { momentum }) => sgdMoments(shape, momentum),
    make: (groups, { momentum, weightDecay }) => new Sgd(groups, { momentum, weightDecay }),
  },
};

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
