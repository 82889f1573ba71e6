import { describe, expect, it } from 'vitest';
import { customOp } from '../lib/autograd.ts';
import { gradcheck } from '../lib/gradcheck.ts';
import { mul, sum } from '../lib/ops/index.ts';
import { noGrad, type Tensor, tensor } from '../lib/tensor.ts';
import { randomTensor } from './support/gradcheck.ts';

/** x^2 with the gradient `factor` x, which is right for 2. */
const square = (factor: number) => (x: Tensor) =>
  customOp(
    {
      name: 'square',
      forward: ([t]) => ({ outputs: [mul(t as Tensor, t as Tensor)], saved: t as Tensor }),
      backward: ([dy], t) => [mul(mul(dy as Tensor, t), factor)],
    },
    [x],
  );

describe('gradcheck', () => {
  it('works inside noGrad', () => {
    noGrad(() => gradcheck(square(2), [randomTensor([5])]));
  });

  it('accepts a right gradient, and leaves the inputs unchanged', () => {
    const x = randomTensor([100], { requiresGrad: true }); // more elements than are checked
    gradcheck(square(2), [x]);
    expect(x.grad).toBeNull();
  });

  it('finds a wrong gradient, and names its place', () => {
    const x = tensor([1, 2], { dtype: 'f64' });
    expect(() => gradcheck(square(2.001), [x])).toThrow(
      expect.objectContaining({
        code: 'ERR_GRADIENT',
        message: expect.stringMatching(
          /^gradcheck: input 0, element [01]: backward gives -?\d.*, the central difference is -?\d/,
        ),
      }),
    );
    gradcheck(square(2.001), [x], { tolerance: 1e-2 });
  });

  it('finds a gradient that is missing or NaN', () => {
    const x = tensor([1, 2], { dtype: 'f64' });
    expect(() => gradcheck((t) => noGrad(() => mul(t, t)), [x])).toThrow('backward gives 0,');
    expect(() => gradcheck(square(Number.NaN), [x])).toThrow('backward gives NaN');
  });

  it('checks every output and every input', () => {
    const [a, b] = [randomTensor([3]), randomTensor([3], { seed: 2 })];
    const wrong = square(1);
    expect(() => gradcheck((x, y) => [sum(x as Tensor), ...wrong(y as Tensor)], [a, b])).toThrow(
      'input 1',
    );
  });

  it('refuses dtypes with too few digits', () => {
    const x = tensor([1, 2]);
    expect(() => gradcheck((t) => t, [x])).toThrow('gradcheck: input 0 must be f64, got f32');
    const y = tensor([1, 2], { dtype: 'f64' });
    expect(() => gradcheck((t) => t.to('f32'), [y])).toThrow('output 0 must be f64, got f32');
  });
});
