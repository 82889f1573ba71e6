/** BA-LoRA (Chang et al. 2024): PiSSA's initialisation, and three regularizers on the model's outputs. */
import { defineMethod } from './method.ts';

/** Weights of the paper's experiments with language models. */
const kGeneration = { consistencyWeight: 0.025, diversityWeight: 0.005, svdWeight: 0.005 };

export const balora = defineMethod({
  name: 'balora',
  title: 'BA-LoRA: PiSSA with consistency, diversity and SVD regularizers',
  about:
    'PiSSA, kept near what the model could do before by three terms of the loss: *consistency* with the predictions of the ' +
    'untouched base, *diversity* of the predictions of a batch, and the *SVD* term on the spectrum of the logits. It is meant ' +
    'for data that are few, biased or repetitive. The weights of its terms are options of the run and can be given to every ' +
    'other method ([the loss](training.md#the-loss)). It costs PiSSA and a forward pass of the base, without gradients, for ' +
    'each micro-batch.',
  source: 'arXiv 2408.04556',
  since: '0.2.0',
  adapter: { initLoraWeights: 'pissa' },
  regularizers: {
    'causal-lm': kGeneration,
    'seq2seq-lm': kGeneration,
    'sequence-classification': { consistencyWeight: 0.15, diversityWeight: 0.03, svdWeight: 0.03 },
  },
});
