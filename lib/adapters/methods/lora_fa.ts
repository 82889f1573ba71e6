/**
 * LoRA-FA (Zhang et al. 2023): LoRA whose A stays as it is, with the optimiser that makes up for that (lib/optim/lora_fa.ts). The
 * adapter is a plain LoRA; the optimiser leaves A out, so that passes need not keep A's input.
 */
import { defineMethod } from './method.ts';

export const loraFa = defineMethod({
  name: 'lora_fa',
  title: 'LoRA-FA: LoRA that trains B alone, with an optimiser of its own',
  about:
    'A stays as it was drawn, and an [optimiser of its own](training.md#optimisers) makes up for that. Take it to save memory: ' +
    "a pass keeps r numbers a token for each module in the place of the module's whole input, and the optimiser has the state " +
    'of B alone. At high ranks it saves time, too: 5 % of a step at r 128 ' +
    '([measured](performance.md#a-xeon-without-amx)). The file is a plain LoRA.',
  source: 'arXiv 2308.03303',
  since: '0.2.0',
  adapter: {},
  optimization: { optim: 'lora_fa', adamEpsilon: 1e-6 },
});
