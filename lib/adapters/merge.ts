/** Writing a base with an adapter merged in, as a model folder, with a report of the largest rounding error. */
import { kSavedDType, type Model, type SavedDType, saveModel } from '../models/index.ts';
import { checkArgument, checkCall, kCall } from '../options/call.ts';
import type { Tensor } from '../tensor.ts';
import type { AdapterModel } from './adapter_model.ts';
import { checkMergeable, mergedBias, mergedWeightWithError } from './merged_weights.ts';

/** Rounding error of a merge. */
export interface MergeError {
  /** Largest |merged - exact| over all elements, and the module it is in. */
  readonly maxAbsError: number;
  readonly module: string;
  /** The same error relative to the largest change that the adapter makes to that module's weights. */
  readonly relativeToDelta: number;
}

/**
 * Writes the base with the adapter merged in, as a model folder; modules that the adapter saves whole replace the base's.
 * @param options dtype: type of the weights in the file. Default: the base's. maxShardSize: largest size of a file of weights, in
 *   bytes; see {@link saveModel}. Default: no limit
 * @throws ArgumentError for lora_bias on a layer without a bias, or a weight that is too large for f16; UnsupportedError for a
 *   trained head that the base ties
 */
export async function saveMerged(
  adapter: AdapterModel<Model>,
  folder: string,
  options: { dtype?: SavedDType; maxShardSize?: number } = {},
): Promise<MergeError> {
  checkArgument('saveMerged: the folder', kCall.path, folder);
  checkCall('saveMerged', options, { dtype: kSavedDType, maxShardSize: kCall.amount });
  const { dtype, maxShardSize } = options;
  checkMergeable(adapter);
  const byName = new Map(adapter.modules.map((module) => [module.name, module]));
  const errors: { module: string; error: Tensor; delta: Tensor }[] = [];
  const before = adapter.enabled;
  adapter.enabled = true;
  try {
    await saveModel(adapter.model, folder, {
      ...(dtype !== undefined && { dtype }),
      ...(maxShardSize !== undefined && { maxShardSize }),
      replace: (name) => {
        const [path, attribute] = split(name);
        const module = byName.get(path);
        if (module === undefined) return null;
        if (attribute === 'bias') return mergedBias(module);
        const { weight, error, delta } = mergedWeightWithError(module, dtype);
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
