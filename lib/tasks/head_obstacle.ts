/**
 * The condition for caching the teacher. The cache keeps the mean of the head's rows under the teacher's distribution, which is
 * sufficient only for a fixed linear head.
 */
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { Head, Model } from '../models/index.ts';

/** The reason why the teacher cannot be cached with this model's head; null if it can. */
export function headObstacle({
  model,
  trainsHead,
}: Pick<TunedModel<Model & { readonly head: Head }>, 'model' | 'trainsHead'>): string | null {
  if (trainsHead) return 'the head is trained, but must be frozen';
  if (model.head.softcap > 0) {
    return `the logits of this ${model.modelType} model are soft-capped, but must be linear`;
  }
  return null;
}
