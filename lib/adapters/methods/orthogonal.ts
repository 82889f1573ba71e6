/**
 * PEFT's orthogonal initialisation: with a random orthogonal Q (r,r), A lies in the span of its even rows and B in that of its odd
 * ones, so that neither is zero and B A is. Entries of both have the deviation sqrt(1/200), whatever the rank.
 */
import { ArgumentError } from '../../errors.ts';
import { matmul, mul, qr, randn, slice, transpose } from '../../ops/index.ts';
import { defineMethod, defineNamedStart, type StartModule } from './method.ts';

const kScale = 0.1;

const start = defineNamedStart('orthogonal', {
  title: 'A and B random of rank r/2 with B A = 0; r must be even',
  fromWeight: false,
  // B A is 0 because its terms cancel, so they must not be rounded one by one.
  isSmall: false,
  pairs: (modules) =>
    modules.map((module) => {
      checkEven(module);
      const { r, inFeatures, outFeatures, seed } = module;
      const { q } = qr(randn([r, r], { seed: seed('Q') }));
      const half = r / 2;
      const a = matmul(randn([inFeatures, half], { seed: seed('A') }), slice(q, 0, { step: 2 }));
      const b = matmul(
        randn([outFeatures, half], { seed: seed('B') }),
        slice(q, 0, { start: 1, step: 2 }),
      );
      return { a: mul(transpose(a), kScale), b: mul(b, kScale) };
    }),
});

function checkEven({ name, r }: StartModule): void {
  if (r % 2 === 0) return;
  throw new ArgumentError(
    `${name}: initLoraWeights orthogonal needs an even rank, got r=${r}; set r, or rankPattern for it, to ${r + 1}`,
  );
}

export const orthogonal = defineMethod({
  name: 'orthogonal',
  title: 'LoRA that starts from orthogonal A and B, neither of them zero',
  about:
    "A and B both learn from the first step on, while LoRA's A has no gradient as long as B is zero, and the model still starts " +
    'as the base. The rank must be even. It costs nothing.',
  source: null,
  since: '0.2.0',
  adapter: { initLoraWeights: 'orthogonal' },
  starts: [start],
});
