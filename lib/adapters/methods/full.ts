/** Full fine-tuning: no adapter, every weight is trained (full_model.ts). */
import { defineMethod } from './method.ts';

export const full = defineMethod({
  name: 'full',
  title: 'full fine-tuning: every weight of the model is trained',
  source: null,
  since: '0.2.0',
  adapter: null,
});
