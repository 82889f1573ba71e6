/**
 * LoRA-XS (Balazy et al. 2024): W' = W + s B R A, where A = S_r V_r^T and B = U_r hold the leading singular triplets of W and stay
 * frozen; the matrix R (r,r) alone is trained. R starts as normal noise of deviation 1e-5 in the authors' code, and as 0 here, so that
 * the adapter starts as the base; its gradient does not depend on R.
 */
import { matmul, mul, randomizedSvds, reshape, zeros } from '../../ops/index.ts';
import { tripletsOf } from '../leading_triplets.ts';
import { defineMethod, frozenTensor, trainedTensor } from './method.ts';
import { LORA_KEYS, lowRankVariant } from './own_form.ts';

const kA = 'lora_A.weight';
const kB = 'lora_B.weight';
const kR = 'default_lora_latent_mapping.weight';

const variant = lowRankVariant({
  peftType: 'LORA_XS',
  inPeft: false,
  formula: 'W x + s B R A x; A = S V^T and B = U of the leading singular triplets of W are frozen',
  keys: LORA_KEYS,
  tensors: () => [
    frozenTensor(kA, ({ r, inFeatures }) => [r, inFeatures]),
    frozenTensor(kB, ({ r, outFeatures }) => [outFeatures, r]),
    trainedTensor(kR, ({ r }) => [r, r]),
  ],
  start: (modules) =>
    randomizedSvds(modules.map(tripletsOf)).map(({ u, s, vt }) => {
      const { size: r } = s;
      return { [kA]: mul(vt, reshape(s, [r, 1])), [kB]: u, [kR]: zeros([r, r]) };
    }),
  factors: ({ tensor }) => ({ a: tensor(kA), b: matmul(tensor(kB), tensor(kR)) }),
});

export const loraXs = defineMethod({
  name: 'lora_xs',
  title: 'LoRA-XS: a trained r x r matrix between the frozen singular vectors of each weight',
  about:
    "Of each weight, r^2 numbers are trained, however wide it is. Take it where the optimiser's state has to be small; the file " +
    "holds the frozen A and B, too. It costs PiSSA's search for singular vectors at the start, and a step of LoRA. R starts as " +
    "0, where the authors' code has noise of 1e-5.",
  source: 'arXiv 2405.17604',
  since: '0.2.0',
  adapter: { peftType: 'LORA_XS' },
  variants: [variant],
});
