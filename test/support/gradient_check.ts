import { describe, expect, it } from 'vitest';
import { backward } from '../../lib/autograd.ts';
import { native } from '../../lib/native.ts';
import * as ops from '../../lib/ops/index.ts';
import type { Tensor } from '../../lib/tensor.ts';
import { values } from './compare.ts';
import { type GradcheckOptions, gradcheck, randomTensor } from './gradcheck.ts';
import { eachPair, type Form, kSameValues, withOperands } from './views.ts';

/** A function of tensors, and a small case of it: the shapes of its differentiable inputs. */
export type GradientCase = [
  f: (...x: Tensor[]) => Tensor | Tensor[],
  shapes: number[][],
  options?: GradcheckOptions,
];

/**
 * Defines two tests of a differentiable function of the binding, `name`: its gradient in f64 against central differences, and the same
 * results and gradients where operands and the results' gradients are views. Every differentiable function has such a case, in its
 * own file or in test/gradients.test.ts.
 */
export function testGradient(name: string, [f, shapes, options]: GradientCase): void {
  describe(`the gradient of ${name}`, () => {
    it('equals central differences in f64', () => {
      const inputs = shapes.map((shape, i) => randomTensor(shape, { seed: i + 1 }));
      const calls = callsOf(name, () => gradcheck(f, inputs, options));
      expect(calls, `calls of ${name}`).toBeGreaterThan(1);
    });

    it('is for views what it is for copies of them', () => {
      let changed = 0;
      /** Results and gradients; every operand and each result's gradient are of the two forms in turn. */
      const run = (forms: readonly Form[], seen: Form): Float64Array[] => {
        const leaves = shapes.map((shape, i) =>
          randomTensor(shape, { seed: i + 1, requiresGrad: true }),
        );
        const view = (x: Tensor, place: number): Tensor => {
          const form = forms[place % 2] as Form;
          // Positions, segments and the like must stay what they are.
          if (x.dtype !== 'f64' && !Object.values(kSameValues).includes(form)) return x;
          return seen(form(x));
        };
        const call = withOperands(name, view, () => [f(...leaves)].flat());
        changed += call.changed;
        const roots = call.result.filter(({ requiresGrad }) => requiresGrad);
        const grads = roots.map((root, i) => {
          const grad = randomTensor(root.shape, { seed: 7 + i });
          return root.ndim === 0 ? grad : view(grad, i);
        });
        backward(roots, grads);
        return [...call.result, ...leaves.map((leaf) => leaf.grad)].map((t) =>
          t === null ? new Float64Array() : values(t),
        );
      };
      eachPair((a, b, names) => {
        const [viewed, copied] = [run([a, b], (x) => x), run([a, b], ops.contiguous)];
        for (const [i, found] of viewed.entries()) {
          const want = copied[i] as Float64Array;
          const largest = want.reduce((most, x) => Math.max(most, Math.abs(x)), 1);
          const same = (x: number, at: number): boolean =>
            // Repeated rows have no singular vectors of their own: what is not a number must be so twice.
            Object.is(x, want[at]) || Math.abs(x - (want[at] as number)) <= 1e-12 * largest;
          expect(found.length).toBe(want.length);
          expect(found.every(same), `${names}: number ${i}`).toBe(true);
        }
      });
      expect(changed, `operands of ${name}`).toBeGreaterThan(0);
    });
  });
}

/** Runs `body` and counts the calls of one function of the binding. */
function callsOf(name: string, body: () => void): number {
  const functions = native as unknown as Record<string, (...args: unknown[]) => unknown>;
  const original = functions[name] as (...args: unknown[]) => unknown;
  let calls = 0;
  functions[name] = (...args) => {
    calls++;
    return original(...args);
  };
  try {
    body();
  } finally {
    functions[name] = original;
  }
  return calls;
}
