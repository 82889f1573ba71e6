// Products, linears, attention and the head on views (permuted, sliced with a step, expanded, parts of wider tensors), with
// extents of 1 and odd ones, against plain loops. test/native/kernels/ has thousands of views for matmul.
import { describe, expect, it } from 'vitest';
import {
  attention,
  contiguous,
  crossEntropy,
  headLosses,
  linearGroup,
  matmul,
  sum,
} from '../../lib/ops/index.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { expectClose, kFloatTypes, roundingOf, values } from '../support/compare.ts';
import { eachPair, signs } from '../support/views.ts';

/** The product of x (n,k) and y (m,k) transposed. */
function byTransposed(x: ArrayLike<number>, y: ArrayLike<number>, k: number): number[] {
  const [n, m] = [x.length / k, y.length / k];
  return Array.from({ length: n * m }, (_, at) => {
    let total = 0;
    for (let i = 0; i < k; ++i) {
      total += (x[Math.floor(at / m) * k + i] as number) * (y[(at % m) * k + i] as number);
    }
    return total;
  });
}

/** Checks that f gives the leaves the same gradients through views and through copies of the views. */
function expectSameGradients(
  leaves: () => Tensor[],
  f: (leaves: Tensor[], seen: (x: Tensor) => Tensor) => Tensor,
  tolerance: number,
): void {
  const [viewed, copied] = [leaves(), leaves()];
  sum(f(viewed, (x) => x)).backward();
  sum(f(copied, contiguous)).backward();
  viewed.forEach((leaf, i) => {
    expectClose(leaf.grad as Tensor, values(copied[i]?.grad as Tensor), tolerance);
  });
}

describe.each(kFloatTypes)('views in %s', (dtype) => {
  it('matmul', () => {
    for (const [m, n, k] of [
      [1, 1, 5],
      [1, 3, 5],
      [3, 1, 5],
      [3, 5, 1],
      [5, 3, 7],
    ] as const) {
      eachPair((formA, formB) => {
        const [a, b] = [formA(signs([m, k], dtype, 1)), formB(signs([n, k], dtype, 2))];
        expectClose(matmul(a, b, { transposeB: true }), byTransposed(values(a), values(b), k), 0);
        const batch = formA(signs([3, m, k], dtype, 3));
        const want = byTransposed(values(batch), values(b), k);
        expectClose(matmul(batch, b, { transposeB: true }), want, 0);
      });
    }
  });

  it('linear, with its low-rank part and its gradients', () => {
    for (const [rows, ins, outs, rank] of [
      [1, 1, 1, 1],
      [1, 5, 3, 2],
      [3, 5, 1, 1],
      [3, 1, 5, 2],
      [33, 7, 65, 3],
    ] as const) {
      eachPair((formX, formW) => {
        for (const frozen of [false, true]) {
          const factor = dtype === 'f64' ? 'f64' : 'f32';
          const leaves = () => [
            signs([rows, ins], dtype, 1, true),
            signs([rank, ins], factor, 3, true),
            signs([outs, rank], factor, 4, true),
            ...(frozen ? [] : [signs([outs, ins], dtype, 2, true)]),
          ];
          const apply = ([x, a, b, w]: Tensor[], seen: (x: Tensor) => Tensor) => {
            const weight = seen(formW(w ?? signs([outs, ins], dtype, 2)));
            const low = { a: seen(formW(a as Tensor)), b: seen(formX(b as Tensor)), scale: 0.5 };
            const operands = { weight: frozen ? weight.freeze() : weight, lowRank: [low] };
            return { x: seen(formX(x as Tensor)), low, operands };
          };
          const { x, low, operands } = apply(leaves(), (t) => t);
          const [base, u] = [operands.weight, low.a].map((w) =>
            byTransposed(values(x), values(w), ins),
          ) as [number[], number[]];
          const change = byTransposed(u, values(low.b), rank);
          const want = base.map((value, i) => value + 0.5 * (change[i] as number));
          expectClose(linearGroup(x, [operands])[0] as Tensor, want, 0);
          expectSameGradients(
            leaves,
            (given, seen) => {
              const parts = apply(given, seen);
              return linearGroup(parts.x, [parts.operands])[0] as Tensor;
            },
            0,
          );
        }
      });
    }
  });

  it('attention', () => {
    for (const [rows, heads, size] of [
      [1, 1, 1],
      [1, 2, 3],
      [5, 1, 1],
      [5, 2, 3],
    ] as const) {
      const cuSeqlens = tensor(Int32Array.of(0, rows));
      const tolerance = 4 * roundingOf(dtype) + (dtype === 'f64' ? 1e-14 : 1e-5);
      eachPair((formQ, formK) => {
        const leaves = () => [1, 2, 3].map((seed) => signs([rows, heads, size], dtype, seed, true));
        const apply = ([q, k, v]: Tensor[], seen: (x: Tensor) => Tensor) =>
          [formQ(q as Tensor), formK(k as Tensor), formQ(v as Tensor)].map(seen) as [
            Tensor,
            Tensor,
            Tensor,
          ];
        const [q, k, v] = apply(leaves(), (t) => t);
        const [vq, vk, vv] = [values(q), values(k), values(v)];
        const row = (t: number, h: number) => (t * heads + h) * size;
        const want = new Float64Array(rows * heads * size);
        for (let t = 0; t < rows; ++t) {
          for (let h = 0; h < heads; ++h) {
            const scores = Array.from({ length: rows }, (_, s) => {
              let dot = 0;
              for (let d = 0; d < size; ++d) {
                dot += (vq[row(t, h) + d] as number) * (vk[row(s, h) + d] as number);
              }
              return Math.exp(dot / Math.sqrt(size));
            });
            const total = scores.reduce((x, y) => x + y);
            for (let d = 0; d < size; ++d) {
              scores.forEach((score, s) => {
                want[row(t, h) + d] =
                  (want[row(t, h) + d] as number) + (score / total) * (vv[row(s, h) + d] as number);
              });
            }
          }
        }
        expectClose(attention(q, k, v, { cuSeqlens, causal: false }), want, tolerance);
        expectSameGradients(
          leaves,
          (given, seen) => attention(...apply(given, seen), { cuSeqlens, causal: false }),
          tolerance,
        );
      });
    }
  });

  it('the head, with its gradients', () => {
    for (const [rows, channels, vocabulary] of [
      [1, 1, 1],
      [1, 5, 3],
      [3, 1, 5],
      [3, 5, 1],
      [3, 7, 33],
    ] as const) {
      const targets = tensor(Int32Array.from({ length: rows }, (_, i) => i % vocabulary));
      const tolerance = dtype === 'f64' ? 1e-13 : 4e-3;
      eachPair((formH, formW) => {
        for (const frozen of [false, true]) {
          const leaves = () => [
            signs([rows, channels], dtype, 1, true),
            ...(frozen ? [] : [signs([vocabulary, channels], dtype, 2, true)]),
          ];
          const apply = ([h, w]: Tensor[], seen: (x: Tensor) => Tensor) => {
            const weight = seen(formW(w ?? signs([vocabulary, channels], dtype, 2)));
            return [seen(formH(h as Tensor)), frozen ? weight.freeze() : weight] as const;
          };
          const loss = (given: Tensor[], seen: (x: Tensor) => Tensor) => {
            const [hidden, head] = apply(given, seen);
            return headLosses({ hidden, head, targets, taskScale: 1 / rows }).loss;
          };
          const [hidden, head] = apply(leaves(), (t) => t);
          const logits = byTransposed(values(hidden), values(head), channels);
          const plain = tensor(logits, { shape: [rows, vocabulary], dtype: 'f64' });
          const want = crossEntropy(plain, targets).itemSync();
          expect(Math.abs(loss(leaves(), (t) => t).itemSync() - want)).toBeLessThan(tolerance);
          expectSameGradients(leaves, loss, tolerance);
        }
      });
    }
  });
});
