/**
 * An adapter folded into the weights of its base: W' = W + s (B A - B0 A0), computed in f64, rounded to the base's dtype
 * once. The largest error of that rounding is reported; in bf16 it can swallow a small update whole.
 */
import { type Model, saveModel } from '../models/index.ts';
import { abs, add, matmul, max, mul, sub } from '../ops/index.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import type { AdapterModel, LoraModule } from './adapter_model.ts';
import type { LowRankPair } from './init.ts';

/** How far rounding moved one merged weight. */
export interface MergeError {
  /** Largest |merged - exact| over all elements, and the module it is in. */
  readonly maxAbsError: number;
  readonly module: string;
  /** The same as a share of the largest change that the adapter makes to that module's weights. */
  readonly relativeToDelta: number;
}

/** s (B A - B0 A0) of a module, f64. */
export function deltaOf({ pair, frozen, scale }: LoraModule): Tensor {
  return scope(() => {
    const product = productOf(pair);
    return mul(frozen === null ? product : sub(product, productOf(frozen)), scale);
  });
}

/** The weight with the adapter in it, in the base's dtype, and how far rounding took it from the exact one. */
export function mergedWeight(module: LoraModule): { weight: Tensor; error: Tensor; delta: Tensor } {
  return scope(() =>
    noGrad(() => {
      const delta = deltaOf(module);
      const exact = add(module.linear.weight.to('f64'), delta);
      const weight = exact.to(module.linear.weight.dtype);
      const error = max(abs(sub(weight.to('f64'), exact)));
      return { weight, error, delta: max(abs(delta)) };
    }),
  );
}

/** Writes the base with the adapter folded in, as a model folder. */
export async function saveMerged(
  adapter: AdapterModel<Model>,
  folder: string,
): Promise<MergeError> {
  const byName = new Map(adapter.modules.map((module) => [`${module.name}.weight`, module]));
  const errors: { module: string; error: Tensor; delta: Tensor }[] = [];
  try {
    await saveModel(adapter.model, folder, {
      replace: (name) => {
        const module = byName.get(name);
        if (module === undefined) return null;
        const { weight, error, delta } = mergedWeight(module);
        errors.push({ module: module.name, error, delta });
        return weight;
      },
    });
    let worst: MergeError = { maxAbsError: -1, module: '', relativeToDelta: 0 };
    for (const { module, error, delta } of errors) {
      const [maxAbsError, largest] = [await error.item(), await delta.item()];
      if (!(maxAbsError <= worst.maxAbsError)) {
        worst = { maxAbsError, module, relativeToDelta: largest > 0 ? maxAbsError / largest : 0 };
      }
    }
    return worst;
  } finally {
    for (const { error, delta } of errors) {
      error.dispose();
      delta.dispose();
    }
  }
}

/** B A of a pair, f64. */
export function productOf({ a, b }: LowRankPair): Tensor {
  return matmul(b.to('f64'), a.to('f64'));
}
