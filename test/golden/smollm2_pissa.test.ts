/**
 * PiSSA's initialisation on SmolLM2-135M at r=16: the norm of the residual against the optimum, for twelve modules of all shapes.
 * Neighbouring singular values differ by less than 1%, so that the energy can be compared but not single numbers of A and B.
 */
import { readFileSync } from 'node:fs';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { type AdaptedLinear, AdapterModel } from '../../lib/adapters/adapter_model.ts';
import type { InitLoraWeights } from '../../lib/adapters/config.ts';
import { type LowRankPair, productOf } from '../../lib/adapters/low_rank.ts';
import { AutoModelForCausalLM, type CausalLM } from '../../lib/models/index.ts';
import { mul, sub, sum } from '../../lib/ops/index.ts';
import { noGrad, scope } from '../../lib/tensor.ts';
import { goldenArray, goldenArrays } from '../support/golden.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

interface Facts {
  fro: number;
  residual_fro: number;
}

describeShared('PiSSA on SmolLM2', () => {
  const facts = JSON.parse(readFileSync(sharedPath('golden/smollm2/pissa.json'), 'utf8')) as {
    modules: Record<string, Facts>;
    probes: string[];
  };
  const arrays = goldenArrays(sharedPath('golden/smollm2/pissa.safetensors'));
  let model: CausalLM;
  beforeAll(async () => {
    const path = sharedPath('models/smollm2-135m-instruct-gguf');
    model = await AutoModelForCausalLM.fromPretrained(path, { dtype: 'f32' });
  });
  afterAll(() => model.dispose());

  it.each([
    ['pissa', 1e-5], // the accuracy that linalg documents: optimum (1 + 1e-5) + 1e-6 ||W||
    ['pissa_niter_16', 2e-3], // the largest error of the reference, which has no oversampling
  ] as [InitLoraWeights, number][])('%s captures the energy', async (initLoraWeights, excess) => {
    const tuned = await AdapterModel.create(model, {
      r: 16,
      loraAlpha: 16,
      initLoraWeights,
      targetModules: facts.probes,
    });
    expect(tuned.modules.map(({ name }) => name).sort()).toEqual([...facts.probes].sort());
    for (const module of tuned.modules) {
      const { fro, residual_fro } = facts.modules[module.name] as Facts;
      const left = residualNorm(module);
      const bound = residual_fro * (1 + excess) + 1e-6 * fro;
      expect(left, module.name).toBeLessThanOrEqual(bound);
      expect(left, module.name).toBeGreaterThanOrEqual(residual_fro * (1 - 1e-6));
      if (initLoraWeights === 'pissa') compareSigma(module);
    }
    tuned.dispose();
  });

  /** Compares sigma, since the rows of A have the norm sqrt(sigma / s): the sum of squares closely, single values roughly. */
  function compareSigma({ name, frozen, scale }: AdaptedLinear): void {
    const { a } = frozen as LowRankPair;
    const squares = scope(() =>
      noGrad(() => sum(mul(a, a), { axis: 1 }).dataSync()),
    ) as Float32Array;
    const sigma = goldenArray(arrays, `sigma.${name}`).data as Float64Array;
    squares.forEach((square, i) => {
      const error = Math.abs(square * scale - (sigma[i] as number)) / (sigma[i] as number);
      expect(error, `${name} sigma ${i}`).toBeLessThan(i < 8 ? 1e-4 : 3e-3);
    });
  }
});

/** The norm ||W - s B0 A0||_F, in f64. */
function residualNorm({ linear, frozen, scale }: AdaptedLinear): number {
  return scope(() =>
    noGrad(() => {
      const rest = sub(linear.weight.to('f64'), mul(productOf(frozen as LowRankPair), scale));
      return Math.sqrt(sum(mul(rest, rest)).itemSync());
    }),
  );
}
