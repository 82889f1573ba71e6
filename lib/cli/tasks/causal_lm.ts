/** The causal language model task on the command line. */
import { Batches, type BatchOptions } from '../../data/batches.ts';
import type { Example } from '../../data/example.ts';
import { AutoModelForCausalLM, type CausalLM, checkCausalLM } from '../../models/index.ts';
import { causalLm } from '../../tasks/causal_lm.ts';
import { formatOptions, kFormatKeys, languageModelCli } from './language_model.ts';

export const causalLmCli = languageModelCli<CausalLM, BatchOptions, Example>({
  task: causalLm,
  taskType: 'CAUSAL_LM',
  ownOptions: [...kFormatKeys, 'maxLength', 'packing', 'samplePrompts', 'calibrationData'],
  check: checkCausalLM,
  load: (folder, options) => AutoModelForCausalLM.fromPretrained(folder, options),
  shared: (settings) => ({ ...formatOptions(settings), maxLength: settings.maxLength }),
  training: ({ packing = false }) => ({ packing }),
  batches: ({ rows, tokenizer, options }) => Batches.create(rows, tokenizer, options),
  shown: (example) => example,
});
