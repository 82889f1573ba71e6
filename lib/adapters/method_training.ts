/** The part that an adapter's variant has in training, as the trainer sees it. */
import { mul } from '../ops/index.ts';
import { scope, type Tensor, unscoped } from '../tensor.ts';
import type { AdaptedLinear } from './adapted_linear.ts';
import type { Variant, VariantTerm } from './methods/method.ts';
import type { MethodTraining } from './tuned_model.ts';

/** The part of a variant in the training of these modules; null: it has none. */
export function methodTraining(
  { training }: Variant,
  modules: readonly AdaptedLinear[],
): MethodTraining | null {
  if (training === undefined) return null;
  const { term } = training;
  const weight = term?.weight(modules) ?? 0;
  return {
    term: term === undefined || weight === 0 ? null : { key: term.key, weight },
    addTerm: () => addTerm(term as VariantTerm, modules, weight),
    refuses: (first) => training.refuses?.(modules, first) ?? null,
    plan: (at) => training.plan?.(modules, at) ?? 0,
    beforeStep: async (at) => training.beforeStep?.(modules, at),
    afterStep: async (at) => training.afterStep?.(modules, at),
  };
}

function addTerm(term: VariantTerm, modules: readonly AdaptedLinear[], weight: number): Tensor {
  return unscoped(() =>
    scope(() => {
      const value = term.value(modules);
      mul(value, weight).backward();
      return value.detach();
    }),
  );
}
