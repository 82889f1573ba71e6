/**
 * LoRA-FA (Zhang et al. 2023): LoRA whose A stays as it is, with the optimiser that makes up for that (lib/optim/lora_fa.ts). The
 * adapter is a plain LoRA; the optimiser leaves A out, so that passes need not keep A's input.
 */
import { defineMethod } from './method.ts';

export const loraFa = defineMethod({
  name: 'lora_fa',
  title: 'LoRA-FA: LoRA that trains B alone, with an optimiser of its own',
  source: 'arXiv 2308.03303',
  since: '0.2.0',
  adapter: {},
  optimization: { optim: 'lora_fa', adamEpsilon: 1e-6 },
});
