/**
 * A model weight that is itself trained: an f32 master (f64 in an f64 model) for the optimiser, and the tensor that the model
 * computes with, which is the master itself or a copy rounded to the model's dtype after each step.
 */
import { LayerNorm, type Module, RMSNorm } from '../nn/index.ts';
import { copy_, zeros } from '../ops/index.ts';
import { noGrad, scope, type Tensor, unscoped } from '../tensor.ts';
import { masterDType } from './low_rank.ts';
import type { NamedTensor } from './tuned_model.ts';

/** A weight of the model that is itself trained: `tensor` is the master, f32 or f64. */
export interface TrainedParameter extends NamedTensor {
  /** The tensor that the model computes with. */
  readonly working: Tensor;
}

/**
 * A trained parameter with a copy of `values` (default: of `base`), so that pages of a file stay untouched; `base`
 * stays its owner's.
 */
export function trainedParameter(
  { name, base, decays }: { name: string; base: Tensor; decays: boolean },
  values: Tensor = base,
): TrainedParameter {
  return unscoped(() =>
    noGrad(() => {
      const { device } = base;
      const master = masterDType(base.dtype);
      const tensor = zeros(base.shape, { dtype: master, device });
      scope(() => copy_(tensor, values.to(master)));
      const working =
        base.dtype === master ? tensor : zeros(base.shape, { dtype: base.dtype, device });
      if (working !== tensor) scope(() => copy_(working, tensor.to(base.dtype)));
      working.requiresGrad = true;
      return { name, tensor, working, decays };
    }),
  );
}

/** Whether weight decay applies: not to biases and the weights of norms, as in transformers' Trainer. */
export function decaysIn(module: Module, attribute: string): boolean {
  return attribute !== 'bias' && !(module instanceof RMSNorm || module instanceof LayerNorm);
}

/**
 * The reason why passes cannot be recorded as graphs, or null: gradients of working copies are moved after each accumulation
 * window, so their memory is not fixed.
 */
export function graphObstacle(parameters: readonly TrainedParameter[]): string | null {
  const found = parameters.find(({ tensor, working }) => working !== tensor);
  return found === undefined
    ? null
    : `${found.name} is trained through an f32 master beside its ${found.working.dtype} weight`;
}

/** Moves the gradients of the working copies to the masters. */
export function collectGradients(parameters: readonly TrainedParameter[]): void {
  for (const { tensor, working } of parameters) {
    if (working === tensor) continue;
    scope(() => {
      tensor.grad = working.grad;
    });
    working.grad = null;
  }
}

/** Drops the gradients of masters and working copies; a copy's would otherwise be added to those of the next window. */
export function zeroGradients(parameters: readonly TrainedParameter[]): void {
  for (const { tensor, working } of parameters) {
    tensor.grad = null;
    working.grad = null;
  }
}

/** Rounds the masters into the working copies. */
export function refreshWorking(parameters: readonly TrainedParameter[]): void {
  scope(() =>
    noGrad(() => {
      for (const { tensor, working } of parameters) {
        if (working !== tensor) copy_(working, tensor);
      }
    }),
  );
}
