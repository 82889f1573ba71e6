import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { participationRatioOf, stableRankOf } from '../../lib/eval/spectrum.ts';
import { effectiveRankOf } from '../../lib/losses/effective_rank.ts';
import { singularValues } from '../../lib/ops/index.ts';
import { scope, tensor } from '../../lib/tensor.ts';
import { goldenArray, goldenArrays } from '../support/golden.ts';
import { describeShared, sharedPath } from '../support/shared.ts';

const kGolden = 'golden/evaluation';

interface Ranks {
  readonly singular_values: readonly number[];
  readonly effective_rank: number;
  readonly stable_rank: number;
  readonly participation_ratio: number;
}

describeShared('ranks by the eigenvalues of the Gram matrix', [kGolden], () => {
  const { ranks } = JSON.parse(readFileSync(sharedPath(`${kGolden}/collapse.json`), 'utf8')) as {
    ranks: Record<string, Ranks>;
  };
  const arrays = goldenArrays(sharedPath(`${kGolden}/collapse.safetensors`));

  it.each(Object.keys(ranks))('%s', (name) => {
    const wanted = ranks[name] as Ranks;
    const { data, shape } = goldenArray(arrays, `matrix.${name}`);
    const values = scope(
      () =>
        singularValues(
          tensor(Float64Array.from(data as Float32Array), { shape }),
        ).dataSync() as Float64Array,
    );
    const near = (found: number, value: number) =>
      expect(Math.abs(found - value)).toBeLessThanOrEqual(1e-6 * value);
    near(effectiveRankOf(values), wanted.effective_rank);
    near(stableRankOf(values), wanted.stable_rank);
    near(participationRatioOf(values), wanted.participation_ratio);
  });
});

it('is 0 for a zero matrix', () => {
  for (const rank of [effectiveRankOf, stableRankOf, participationRatioOf]) {
    expect(rank([0, 0])).toBe(0);
    expect(rank([])).toBe(0);
    expect(rank([1e-200, 1e-200])).toBeCloseTo(2, 12);
  }
});
