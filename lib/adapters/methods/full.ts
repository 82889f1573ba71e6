/** Full fine-tuning: no adapter, every weight is trained (full_model.ts). */
import { defineMethod } from './method.ts';

export const full = defineMethod({
  name: 'full',
  title: 'full fine-tuning: every weight of the model is trained',
  about:
    'No adapter: all weights learn. Take it where memory allows, as the mark that adapters are measured against, with a smaller ' +
    "learning rate than theirs. It costs gradients and the optimiser's state for every weight, and the result is a whole model. " +
    'Consistency needs a second copy of the model as the teacher.',
  source: null,
  since: '0.2.0',
  adapter: null,
});
