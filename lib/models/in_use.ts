/** The use of a model by one run at a time: a second one would change its weights, gradients and settings between the first one's steps. */
import { ArgumentError } from '../errors.ts';
import type { Model } from './model.ts';

const kInUse = new WeakSet<Model>();

/**
 * Marks a model as in use by a run.
 * @returns a function that ends the use
 * @throws ArgumentError if it is in use already
 */
export function useModel(model: Model): () => void {
  if (kInUse.has(model)) {
    throw new ArgumentError(
      'the model is being trained by another run: await its end (leave the loop over its events, or abort its signal), or load the model again',
    );
  }
  kInUse.add(model);
  return () => {
    kInUse.delete(model);
  };
}

/**
 * Refuses a change of a model's adapters during a run.
 * @param what the call, as the beginning of the message
 * @throws ArgumentError
 */
export function refuseInUse(model: Model, what: string): void {
  if (!kInUse.has(model)) return;
  throw new ArgumentError(
    `${what}: the model is being trained, by the adapter that the run began with; await the end of the run first`,
  );
}
