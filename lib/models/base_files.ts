/** The files whose pages a model's weights are. */
import { FormatError, NativeError } from '../errors.ts';
import { refuseChanged } from '../runtime.ts';
import type { Model } from './model.ts';

/**
 * The error that says that a file with weights of a model was written to or shortened since it was opened, so that what the model computes
 * is refused; null: none was. Weights that were copied when they were loaded do not depend on their file any more.
 */
export function baseChange(model: Model): Error | null {
  try {
    for (const weight of model.parameters()) refuseChanged(weight);
    return null;
  } catch (error) {
    if (error instanceof NativeError || error instanceof FormatError) return error;
    throw error;
  }
}
