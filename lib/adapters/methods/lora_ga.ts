/**
 * LoRA-GA (Wang et al. 2024): with U, S, V^T the leading 2r singular triplets of the loss's gradient for W, A is the first r rows of
 * V^T and B the next r columns of U, so that the first step of training follows the gradient as well as rank 2r can. Both are times
 * out^(1/4) / sqrt(gamma), without the singular values: the authors' `ArB2r` and `stable`.
 *
 * `lora_ga_peft` is PEFT's rule, which is another one: B is times its singular values, too, and A is not scaled.
 */
import { ArgumentError } from '../../errors.ts';
import { mul, slice } from '../../ops/index.ts';
import type { Tensor } from '../../tensor.ts';
import { leadingTriplets } from '../leading_triplets.ts';
import type { LowRankPair } from '../low_rank.ts';
import { defineMethod, defineStart, type StartCalibration, type StartModule } from './method.ts';

const kGamma = 16;

const calibration: StartCalibration = {
  reads: 'gradient',
  check: ({ name, r, inFeatures, outFeatures }) => {
    const most = Math.floor(Math.min(inFeatures, outFeatures) / 2);
    if (r <= most) return;
    throw new ArgumentError(
      `${name}: LoRA-GA takes 2r singular triplets of the gradient, and (out,in)=(${outFeatures},${inFeatures}) has ` +
        `${Math.min(inFeatures, outFeatures)}; set r, or rankPattern for it, to ${most} at most, got r=${r}`,
    );
  },
  reduce: (modules, gradients) =>
    leadingTriplets(
      modules.map(({ r, seed }, i) => ({
        a: gradients[i] as Tensor,
        rank: 2 * r,
        seed: seed('svd'),
      })),
    ).map(({ u, s, vt }, i) => {
      const { r } = modules[i] as StartModule;
      return {
        u: slice(u, 1, { start: r }),
        s: slice(s, 0, { start: r }),
        vt: slice(vt, 0, { stop: r }),
      };
    }),
};

/** Vectors of the gradient and their scale: vt the first r rows of V^T, u and s the next r columns of U with their values. */
interface Directions {
  readonly u: Tensor; // (out,r)
  readonly s: Tensor; // (r)
  readonly vt: Tensor; // (r,in)
  /** The factor out^(1/4) / sqrt(gamma). */
  readonly factor: number;
}

const gaStart = <Value extends 'lora_ga' | 'lora_ga_peft'>(
  value: Value,
  title: string,
  pair: (directions: Directions) => LowRankPair,
) =>
  defineStart<Value>({
    shown: [value],
    title,
    accepts: (given): given is Value => given === value,
    fromWeight: true,
    calibration,
    pairs: (modules) =>
      modules.map(({ statistics, outFeatures }) => {
        const { u, s, vt } = statistics as { u: Tensor; s: Tensor; vt: Tensor };
        return pair({ u, s, vt, factor: outFeatures ** 0.25 / Math.sqrt(kGamma) });
      }),
  });

const authors = gaStart(
  'lora_ga',
  'A the first r right, B the next r left singular vectors of the gradient, both scaled by out^(1/4)/4',
  ({ u, vt, factor }) => ({ a: mul(vt, factor), b: mul(u, factor) }),
);
const peft = gaStart(
  'lora_ga_peft',
  "the same vectors by PEFT's rule: B times its singular values and the scale, A as it is",
  ({ u, s, vt, factor }) => ({ a: vt, b: mul(mul(u, s), factor) }),
);

export const loraGa = defineMethod({
  name: 'lora_ga',
  title: 'LoRA-GA: LoRA whose first steps follow the gradient of the whole weight',
  about:
    'The first step of training follows the gradient of the whole weight as closely as its rank allows, so that training begins ' +
    'faster. Take it for short runs. [A calibration](adapters.md#a-start-from-your-data) needs the gradients of all weights, as ' +
    'many at a time as fit into `maxBytes`, and the rank may be half of what the weight allows at most.',
  differs:
    'its rule is another one, here `lora_ga_peft`; its folder loads on the original base without a word and computes something ' +
    'else, so that it is refused here with the reason',
  source: 'arXiv 2407.05000',
  since: '0.2.0',
  adapter: { initLoraWeights: 'lora_ga' },
  starts: [authors],
});

export const loraGaPeft = defineMethod({
  name: 'lora_ga_peft',
  title: "LoRA-GA by PEFT's rule, which is not the authors'",
  about:
    "The same calibration with the formula that PEFT has under the name LoRA-GA. Take it to repeat a run of PEFT's.",
  source: 'arXiv 2407.05000',
  since: '0.2.0',
  adapter: { initLoraWeights: 'lora_ga_peft' },
  starts: [peft],
});
