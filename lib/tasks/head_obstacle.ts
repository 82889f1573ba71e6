/** A kept teacher is the mean of the head's rows under its distribution, which says everything only of a fixed linear head. */
import type { TunedModel } from '../adapters/tuned_model.ts';
import type { Head, Model } from '../models/index.ts';

/** The reason why this head does not let a teacher be kept; null: it does. */
export function headObstacle({
  model,
  trainsHead,
}: Pick<TunedModel<Model & { readonly head: Head }>, 'model' | 'trainsHead'>): string | null {
  if (trainsHead) return 'the head is trained, it must be frozen';
  if (model.head.softcap > 0) {
    return `the logits of this ${model.modelType} model are soft-capped, they must be linear`;
  }
  return null;
}
