/**
 * The parameters of a run in groups for the optimiser. Biases and the weights of norms have no weight decay, as in the trainer
 * of transformers. With LoRA+ (Hayou et al. 2024), the learning rate of B is `loraplusLrRatio` times that of A; as in PEFT,
 * vectors (biases, norms, DoRA's magnitudes) have the rate of B, and matrices of modules that are trained whole have that of A.
 */
import type { NamedTensor } from '../adapters/tuned_model.ts';
import { ArgumentError } from '../errors.ts';
import type { ParameterGroup } from '../optim/optimizer.ts';
import type { ResolvedOptimization } from './resolve_run.ts';

/**
 * The parameter groups for the optimiser.
 * @throws ArgumentError for LoRA+ without a B
 */
export function parameterGroups(
  parameters: readonly NamedTensor[],
  { loraplusLrRatio, weightDecay }: Pick<ResolvedOptimization, 'loraplusLrRatio' | 'weightDecay'>,
): ParameterGroup[] {
  if (loraplusLrRatio !== 1 && !parameters.some(isB)) {
    throw new ArgumentError(
      'loraplusLrRatio is for adapters, and full fine-tuning has no lora_B; leave it at 1',
    );
  }
  const groups = new Map<string, NamedTensor[]>();
  for (const parameter of parameters) {
    const fast = loraplusLrRatio !== 1 && (isB(parameter) || parameter.tensor.ndim === 1);
    const key = `${fast} ${parameter.decays ?? true}`;
    groups.set(key, [...(groups.get(key) ?? []), parameter]);
  }
  return Array.from(groups, ([key, members]) => {
    const [fast, decays] = key.split(' ').map((flag) => flag === 'true');
    return {
      parameters: members,
      weightDecay: decays ? weightDecay : 0,
      learningRateScale: fast ? loraplusLrRatio : 1,
    };
  });
}

function isB({ name }: NamedTensor): boolean {
  return name.includes('lora_B');
}
