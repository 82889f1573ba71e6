/**
 * The parameters of a run as an optimiser's groups. Biases and the weights of norms take no weight decay, as in
 * transformers' trainer. LoRA+ (Hayou et al. 2024): B learns at `loraplusLrRatio` times the rate of A; vectors (biases,
 * norms, DoRA's magnitudes) go with B and trained modules' matrices with A, as PEFT groups them.
 */
import type { NamedTensor } from '../adapters/tuned_model.ts';
import { ArgumentError } from '../errors.ts';
import type { ParameterGroup } from '../optim/optimizer.ts';
import type { ResolvedOptimization } from './options.ts';

/** @throws ArgumentError for LoRA+ without a B */
export function parameterGroups(
  parameters: readonly NamedTensor[],
  { loraplusLrRatio, weightDecay }: Pick<ResolvedOptimization, 'loraplusLrRatio' | 'weightDecay'>,
): ParameterGroup[] {
  if (loraplusLrRatio !== 1 && !parameters.some(isB)) {
    throw new ArgumentError('loraplusLrRatio is for adapters: full fine-tuning has no lora_B');
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
