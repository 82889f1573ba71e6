/** The files whose pages a model's weights are. */
import { NativeError } from '../errors.ts';
import { refuseRewritten } from '../runtime.ts';
import type { Model } from './model.ts';

/**
 * The error that says that a file with weights of a model was written to or shortened since it was opened, so that what the model computes
 * is refused; null: none was. Weights that were copied when they were loaded do not depend on their file any more. No file is read,
 * so that this takes about a millisecond: a change of bytes that keeps their number and the time of modification is found where results
 * leave the engine.
 */
export function baseChange(model: Model): Error | null {
  try {
    refuseRewritten(model.parameters());
    return null;
  } catch (error) {
    if (error instanceof NativeError) return error;
    throw error;
  }
}
