/**
 * The weights of a base with an adapter merged in, by the formula of the adapter's variant, which for plain LoRA is
 *
 *     W' = W + s (B A - B0 A0).
 *
 * They are computed in f64 and rounded to the base's dtype, or the file's, once. In bf16, that rounding can erase a small update.
 */
import { UnsupportedError } from '../errors.ts';
import type { Model } from '../models/index.ts';
import type { Linear } from '../nn/linear.ts';
import { abs, max, sub } from '../ops/index.ts';
import { withMemoryTag } from '../runtime.ts';
import { type DType, noGrad, scope, type Tensor, unscoped } from '../tensor.ts';
import type { AdaptedLinear } from './adapted_linear.ts';
import type { SavedModules } from './saved_modules.ts';

/** An adapter to be merged, on its model. */
interface MergeableAdapter {
  readonly model: Model;
  readonly modules: readonly AdaptedLinear[];
  readonly saved: SavedModules | null;
}

/** A linear module and the tensors that take the place of its own; the bias is null where it stays as it is. */
export interface MergedLinear {
  readonly linear: Linear;
  readonly weight: Tensor;
  readonly bias: Tensor | null;
}

/**
 * Checks that an adapter can be merged, without changing anything.
 * @throws ArgumentError for loraBias on a layer without a bias, UnsupportedError for a trained head that the base ties
 */
export function checkMergeable({ model, modules, saved }: MergeableAdapter): void {
  const tied = saved?.tiedIn(model) ?? [];
  if (tied.length > 0) {
    throw new UnsupportedError(
      `merge: ${tied.join(', ')} is trained apart from the weight that the model ties it to, and a merged model's config cannot ` +
        'say so; keep the adapter beside its base, or train it without that module in modulesToSave',
    );
  }
  for (const module of modules) mergedBias(module)?.dispose();
}

/** A merged weight in its rounded dtype, the exact one that was rounded to it, and the base's: the latter two in f64. */
interface MergedWeight {
  readonly weight: Tensor;
  readonly exact: Tensor;
  readonly base: Tensor;
}

function merge(module: AdaptedLinear, dtype: DType = module.linear.weight.dtype): MergedWeight {
  const { linear, variant } = module;
  const exact = variant.mergedWeight(module, module.startWeight());
  return { weight: exact.to(dtype), exact, base: linear.weight.to('f64') };
}

/**
 * The merged weight of a module, its largest rounding error, and the largest change that the adapter makes to an element. The latter
 * two are tensors of one element, f64.
 * @param dtype of the merged weight. Default: the base's
 */
export function mergedWeightWithError(
  module: AdaptedLinear,
  dtype?: DType,
): {
  weight: Tensor;
  error: Tensor;
  delta: Tensor;
} {
  return scope(() =>
    noGrad(() => {
      const { weight, exact, base } = merge(module, dtype);
      const error = max(abs(sub(weight.to('f64'), exact)));
      return { weight, error, delta: max(abs(sub(exact, base))) };
    }),
  );
}

/** The merged tensors of every module, for the caller to put into the model or to dispose of. */
export function mergedLinears(modules: readonly AdaptedLinear[]): MergedLinear[] {
  return withMemoryTag('weights', () =>
    unscoped(() =>
      modules.map((module) => ({
        linear: module.linear,
        weight: scope(() => noGrad(() => merge(module).weight)),
        bias: mergedBias(module),
      })),
    ),
  );
}

/** The merged bias of a module, in the base's dtype; null where the base's stays. @throws ArgumentError where it cannot be merged */
export function mergedBias(module: AdaptedLinear): Tensor | null {
  const { linear, variant } = module;
  return scope(() => noGrad(() => variant.mergedBias(module)?.to(linear.weight.dtype) ?? null));
}
