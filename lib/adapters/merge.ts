/**
 * Merging of an adapter into the weights of its base, by the formula of its variant (plain LoRA W' = W + s (B A - B0 A0)):
 * computed in f64 and rounded to the base's dtype once. The largest rounding error is reported; in bf16, rounding can erase a
 * small update completely.
 */
import { UnsupportedError } from '../errors.ts';
import { type Model, saveModel } from '../models/index.ts';
import { abs, max, sub } from '../ops/index.ts';
import { noGrad, scope, type Tensor } from '../tensor.ts';
import type { AdapterModel, LoraModule } from './adapter_model.ts';

/** Rounding error of a merge. */
export interface MergeError {
  /** Largest |merged - exact| over all elements, and the module it is in. */
  readonly maxAbsError: number;
  readonly module: string;
  /** The same error relative to the largest change that the adapter makes to that module's weights. */
  readonly relativeToDelta: number;
}

/** The merged weight in the base's dtype, its rounding error, and the change that the adapter makes. */
export function mergedWeight(module: LoraModule): { weight: Tensor; error: Tensor; delta: Tensor } {
  return scope(() =>
    noGrad(() => {
      const base = module.linear.weight.to('f64');
      const exact = module.variant.mergedWeight(module, base);
      const weight = exact.to(module.linear.weight.dtype);
      const error = max(abs(sub(weight.to('f64'), exact)));
      return { weight, error, delta: max(abs(sub(exact, base))) };
    }),
  );
}

/**
 * Writes the base with the adapter merged in, as a model folder; modules that the adapter saves whole replace the base's.
 * @throws ArgumentError for lora_bias on a layer without a bias, UnsupportedError for a trained head that the base ties
 */
export async function saveMerged(
  adapter: AdapterModel<Model>,
  folder: string,
): Promise<MergeError> {
  const tied = adapter.saved?.tiedIn(adapter.model) ?? [];
  if (tied.length > 0) {
    throw new UnsupportedError(
      `merge: ${tied.join(', ')} is trained apart from the weight that the model ties it to; its config cannot say so`,
    );
  }
  const byName = new Map(adapter.modules.map((module) => [module.name, module]));
  // Anything that cannot be merged is refused before anything is written.
  for (const module of byName.values()) mergedBias(module)?.dispose();
  const errors: { module: string; error: Tensor; delta: Tensor }[] = [];
  const before = adapter.enabled;
  adapter.enabled = true;
  try {
    await saveModel(adapter.model, folder, {
      replace: (name) => {
        const [path, attribute] = split(name);
        const module = byName.get(path);
        if (module === undefined) return null;
        if (attribute === 'bias') return mergedBias(module);
        const { weight, error, delta } = mergedWeight(module);
        errors.push({ module: module.name, error, delta });
        return weight;
      },
    });
    return await largestError(errors);
  } finally {
    adapter.enabled = before;
    for (const { error, delta } of errors) {
      error.dispose();
      delta.dispose();
    }
  }
}

function mergedBias(module: LoraModule): Tensor | null {
  const { linear, variant } = module;
  return scope(() => noGrad(() => variant.mergedBias(module)?.to(linear.weight.dtype) ?? null));
}

async function largestError(
  errors: readonly { module: string; error: Tensor; delta: Tensor }[],
): Promise<MergeError> {
  let worst: MergeError = { maxAbsError: -1, module: '', relativeToDelta: 0 };
  for (const { module, error, delta } of errors) {
    const [maxAbsError, largest] = [await error.item(), await delta.item()];
    if (!(maxAbsError <= worst.maxAbsError)) {
      worst = { maxAbsError, module, relativeToDelta: largest > 0 ? maxAbsError / largest : 0 };
    }
  }
  return worst;
}

/** Splits `a.b.weight` into `a.b` and `weight`. */
function split(name: string): [path: string, attribute: string] {
  const at = name.lastIndexOf('.');
  return [name.slice(0, at), name.slice(at + 1)];
}
