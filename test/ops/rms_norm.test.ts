import { describe, expect, it } from 'vitest';
import { rmsNorm } from '../../lib/ops/index.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { gradcheck, randomTensor } from '../support/gradcheck.ts';

/** The definition in plain loops. */
function definition(x: ArrayLike<number>, weight: ArrayLike<number>, eps: number, offset = 0) {
  const channels = weight.length;
  const y = new Float64Array(x.length);
  for (let n = 0; n < x.length / channels; ++n) {
    let sum = 0;
    for (let c = 0; c < channels; ++c) sum += (x[n * channels + c] as number) ** 2;
    const rstd = 1 / Math.sqrt(sum / channels + eps);
    for (let c = 0; c < channels; ++c) {
      y[n * channels + c] =
        (x[n * channels + c] as number) * rstd * ((weight[c] as number) + offset);
    }
  }
  return y;
}

const kShapes = [
  [1, 1],
  [3, 31],
  [33, 123],
  [2, 5, 64],
];

describe('rmsNorm', () => {
  for (const dtype of ['f64', 'f32', 'bf16', 'f16'] as const) {
    it(`equals its definition in ${dtype}`, () => {
      const tolerance = { f64: 1e-14, f32: 1e-6, bf16: 1.2e-2, f16: 1.5e-3 }[dtype];
      for (const shape of kShapes) {
        const x = randomTensor(shape, { seed: 3, dtype });
        const w = randomTensor([shape.at(-1) as number], { seed: 4, dtype });
        const y = rmsNorm(x, w, { eps: 1e-5, weightOffset: 1 });
        expect(y.shape).toEqual(shape);
        const want = definition(
          x.to('f64').dataSync() as Float64Array,
          w.to('f64').dataSync() as Float64Array,
          1e-5,
          1,
        );
        const got = y.dataSync();
        want.forEach((value, i) => {
          expect(Math.abs(Number(got[i]) - value)).toBeLessThanOrEqual(
            tolerance * Math.max(1, Math.abs(value)),
          );
        });
      }
    });
  }

  it('has the gradient of its definition', () => {
    for (const shape of kShapes) {
      gradcheck(
        (x, w) => rmsNorm(x as Tensor, w as Tensor, { eps: 1e-3 }),
        [randomTensor(shape, { seed: 5 }), randomTensor([shape.at(-1) as number], { seed: 6 })],
      );
    }
  });

  it('refuses bad arguments by name', () => {
    const x = tensor(new Float32Array(12), { shape: [2, 6] });
    expect(() => rmsNorm(x, tensor(new Float32Array(5)))).toThrow(
      'rms_norm: weight must be (C)=(6), got (5)',
    );
    expect(() => rmsNorm(x, tensor(new Float64Array(6)))).toThrow(
      'rms_norm: weight must be f32, got f64',
    );
    expect(() => rmsNorm(x, tensor(new Float32Array(6)), { eps: -1 })).toThrow('eps must be >= 0');
  });
});
