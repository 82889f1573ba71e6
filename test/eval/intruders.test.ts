import { readFileSync } from 'node:fs';
import { expect, it } from 'vitest';
import { AdapterModel } from '../../lib/adapters/adapter_model.ts';
import { adapterIntruders, intruderDimensions } from '../../lib/eval/intruders.ts';
import { add, copy_, matmul, mul, randn } from '../../lib/ops/index.ts';
import { noGrad, scope, type Tensor, tensor } from '../../lib/tensor.ts';
import { goldenArray, goldenArrays } from '../support/golden.ts';
import { describeShared, sharedPath } from '../support/shared.ts';
import { TinyModel } from '../support/tiny_model.ts';

const kGolden = 'golden/evaluation';

interface Intruders {
  readonly name: string;
  readonly r: number;
  readonly lora_alpha: number;
  readonly cosine: readonly number[];
  readonly cases: readonly {
    readonly top_k: number;
    readonly threshold: number;
    readonly indices: readonly number[];
  }[];
}

describeShared("intruder dimensions by PEFT's tool", [kGolden], () => {
  const { intruders } = JSON.parse(
    readFileSync(sharedPath(`${kGolden}/collapse.json`), 'utf8'),
  ) as { intruders: readonly Intruders[] };
  const arrays = goldenArrays(sharedPath(`${kGolden}/collapse.safetensors`));

  it.each(intruders)('$name', async ({ name, r, lora_alpha: alpha, cosine, cases }) => {
    const matrix = (key: string): Tensor => {
      const { data, shape } = goldenArray(arrays, `intruder.${name}.${key}`);
      return tensor(Float64Array.from(data as Float32Array), { shape });
    };
    const [w, a, b] = [matrix('W'), matrix('A'), matrix('B')];
    const tuned = scope(() => add(w, mul(matmul(b, a), alpha / r)));
    for (const { top_k: topK, threshold, indices } of cases) {
      const found = await intruderDimensions(w, tuned, { topK, threshold });
      expect(found.indices).toEqual(indices);
      expect(found.cosines).toHaveLength(Math.min(topK, cosine.length));
      found.cosines.forEach((value, i) => {
        expect(Math.abs(value - (cosine[i] as number))).toBeLessThanOrEqual(1e-6);
      });
    }
  });
});

it('finds none in a new adapter, and some in one with large weights', async () => {
  const tuned = await AdapterModel.create(new TinyModel(), { r: 4, loraAlpha: 8 });
  const before = await adapterIntruders(tuned);
  expect(before.count).toBe(0);
  expect(Object.keys(before.modules)).toEqual(tuned.modules.map(({ name }) => name));
  let seed = 1;
  for (const { tensor: values } of tuned.parameters()) {
    scope(() => noGrad(() => copy_(values, randn(values.shape, { seed: seed++, deviation: 30 }))));
  }
  const seen: number[] = [];
  const after = await adapterIntruders(tuned, {
    topK: 4,
    threshold: 0.9,
    onProgress: (n) => seen.push(n),
  });
  expect(after.count).toBeGreaterThan(0);
  expect(seen).toEqual(tuned.modules.map((_, i) => i + 1));
});
