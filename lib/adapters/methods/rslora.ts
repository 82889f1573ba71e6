/**
 * rsLoRA (Kalajdzievski 2023): the update is divided by the square root of the rank, so that its size does not shrink as the
 * rank grows.
 */
import { defineMethod } from './method.ts';

export const rslora = defineMethod({
  name: 'rslora',
  title: 'rsLoRA: LoRA scaled by alpha / sqrt(r)',
  about:
    'LoRA with another scale, which does not shrink an update as the rank grows. Take it for large ranks, where alpha / r holds ' +
    'LoRA back; at one rank it is LoRA with another alpha. It costs what LoRA does, and combines with every start and with ' +
    'DoRA.',
  source: 'arXiv 2312.03732',
  since: '0.2.0',
  adapter: { useRslora: true },
  options: {
    /** Whether to use rank-stabilised LoRA: the scale is alpha / sqrt(r) (default false). */
    useRslora: { help: 'rank-stabilized: scale by alpha / sqrt(r)' },
  },
  scaling: { option: 'useRslora', divisor: (r) => Math.sqrt(r) },
});
