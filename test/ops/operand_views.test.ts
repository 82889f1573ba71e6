// Views instead of whole tensors for every operand of what multiplies (targets, segments and the teacher's rows included), and for
// the gradients of the results: all of it must be what copies of the views give. views.test.ts has some of it against plain loops.
import { describe, expect, it } from 'vitest';
import { backward } from '../../lib/autograd.ts';
import {
  attention,
  contiguous,
  gram,
  headLosses,
  headRows,
  linearGroup,
  matmul,
  relativeAttention,
  svdRatio,
  svdRatioGram,
  teacherSummary,
} from '../../lib/ops/index.ts';
import { type Tensor, tensor } from '../../lib/tensor.ts';
import { expectClose, kFloatTypes, values } from '../support/compare.ts';
import { kTestDevice } from '../support/device.ts';
import { testRandom } from '../support/gradcheck.ts';
import {
  eachPair,
  type FloatType,
  type Form,
  kSameValues,
  signs,
  withOperands,
} from '../support/views.ts';

const ints = (...list: number[]) => tensor(Int32Array.from(list));
const some = (count: number, below: number, seed: number) => {
  const random = testRandom(seed);
  return ints(...Array.from({ length: count }, () => Math.floor(((random() + 1) / 2) * below)));
};

/** A call: the shapes of what wants a gradient, by type where that is not the op's own, and what is made of it. */
interface Call {
  leaves: readonly (number[] | { shape: number[]; wide: true })[];
  of: (leaves: Tensor[], dtype: FloatType) => Tensor[];
}

const kLinears: Call[] = (
  [
    [1, 1, 1, 1],
    [1, 5, 3, 2],
    [3, 5, 1, 1],
    [33, 7, 65, 3],
  ] as const
).map(([rows, ins, outs, rank]) => ({
  leaves: [
    ...[[rows, ins], [rows, ins], [outs, ins], [3, ins], [outs], [3]],
    ...[[rank, ins], [outs, rank], [2, ins], [3, 2], [outs]].map(
      (shape) => ({ shape, wide: true }) as const,
    ),
  ],
  of: ([x, own, first, second, bias, other, a, b, c, d, outputScale]) => {
    const [adapterInput, weight] = [own as Tensor, first as Tensor];
    const change = { a: a as Tensor, b: b as Tensor, scale: 0.5, form: 'change' as const };
    return linearGroup(
      x as Tensor,
      [
        { weight, bias: bias as Tensor, outputScale: outputScale as Tensor, lowRank: [change] },
        {
          ...{ weight: second as Tensor, bias: other as Tensor },
          lowRank: [{ a: c as Tensor, b: d as Tensor, scale: -1 }],
        },
      ],
      { adapterInput },
    );
  },
}));

const kMatmuls: Call[] = (
  [
    [1, 3, 5],
    [3, 1, 5],
    [2, 3, 1],
    [33, 5, 7],
  ] as const
).flatMap(([m, n, k]) =>
  [0, 1, 2, 3].map((code): Call => {
    const [transposeA, transposeB] = [code % 2 === 1, code > 1];
    return {
      leaves: [[3, ...(transposeA ? [k, m] : [m, k])], transposeB ? [n, k] : [k, n]],
      of: ([a, b]) => [matmul(a as Tensor, b as Tensor, { transposeA, transposeB })],
    };
  }),
);

/** Attention, also on more rows than a tile has; two heads of q share one of k and v. */
const kAttentions: Call[] = (
  [
    [1, 3, 1],
    [3, 5, 16],
    [37, 70, 33],
  ] as const
).flatMap(([queries, keys, size]): Call[] => [
  {
    leaves: [
      [keys, 4, size],
      [keys, 2, size],
      [keys, 2, size],
    ],
    of: ([q, k, v]) => {
      const segments = { cuSeqlens: ints(0, 1, keys), lengths: ints(1, keys - 2), softcap: 2 };
      return [attention(q as Tensor, k as Tensor, v as Tensor, { ...segments, window: 33 })];
    },
  },
  {
    leaves: [
      [queries, 2, size],
      [keys, 1, size],
      [keys, 1, size],
    ],
    of: ([q, k, v]) => {
      const segments = { cuSeqlens: ints(0, keys), cuQueries: ints(0, queries), causal: false };
      return [attention(q as Tensor, k as Tensor, v as Tensor, segments)];
    },
  },
  {
    leaves: [
      ...[
        [queries, 2, size],
        [keys, 2, size],
        [keys, 2, size],
      ],
      ...[
        [2 * keys - 1, 2],
        [9, 2, size],
        [9, 2, size],
      ],
    ],
    of: ([q, k, v, bias, positionKeys, positionQueries]) => {
      const segments = { cuQueries: ints(0, queries), cuKeys: ints(0, keys) };
      const lengths = { queryLengths: ints(queries), keyLengths: ints(keys - 1) };
      const terms = { bias, positionKeys, positionQueries, index: some(2 * keys - 1, 9, 3) };
      const options = { ...segments, ...lengths, ...(terms as Record<string, Tensor>) };
      return [relativeAttention(q as Tensor, k as Tensor, v as Tensor, options)];
    },
  },
]);

const kHeads = (
  [
    [1, 5, 3],
    [3, 1, 5],
    [5, 7, 33],
    [33, 16, 65],
  ] as const
).map(([rows, channels, vocabulary]) => {
  const other = (seed: number, dtype: FloatType) => ({
    teacher: signs([rows, channels], dtype, seed),
    teacherHead: signs([vocabulary, channels], dtype, seed + 1),
  });
  const common = {
    targets: some(rows, vocabulary, 5),
    regularized: tensor(Uint8Array.from({ length: rows }, (_, i) => (i === 1 ? 0 : 1))),
    scales: tensor([0.3, 0.2, 0.5], { dtype: 'f64' }),
    ...{ temperature: 2, entropyTopK: 3 },
  };
  const both = [
    [rows, channels],
    [vocabulary, channels],
  ];
  return {
    headLosses: {
      leaves: both,
      of: ([hidden, head], dtype) => {
        const given = { hidden: hidden as Tensor, head: head as Tensor, ...other(8, dtype) };
        return Object.values(headLosses({ ...given, ...common, softcap: 3 }));
      },
    },
    headLossesOfSummary: {
      leaves: both.slice(0, 1),
      of: ([hidden], dtype) => {
        const head = signs([vocabulary, channels], dtype, 3);
        const summary = teacherSummary(signs([rows, channels], dtype, 4), { head, temperature: 2 });
        return Object.values(
          headLosses({ hidden: hidden as Tensor, head, teacher: summary, ...common }),
        );
      },
    },
    teacherSummary: {
      leaves: [],
      of: (_, dtype) => {
        const { teacher, teacherHead } = other(8, dtype);
        const head = signs([vocabulary, channels], dtype, 3);
        return Object.values(teacherSummary(teacher, { head, teacherHead }));
      },
    },
    headRows: {
      leaves: [],
      of: (_, dtype) => {
        const [hidden, head] = both.map((shape, i) => signs(shape, dtype, i + 1));
        const { targets } = common;
        const given = { hidden: hidden as Tensor, head: head as Tensor, ...other(8, dtype) };
        return [headRows({ ...given, targets, entropyTopK: 2 })];
      },
    },
    svdRatio: {
      leaves: both,
      of: ([hidden, head]) => [svdRatio(hidden as Tensor, head as Tensor, { k: 2, softcap: 3 })],
    },
    svdRatioGram: {
      leaves: both.slice(0, 1),
      of: ([hidden], dtype) => {
        const square = gram(signs([vocabulary, channels], dtype, 3));
        return [svdRatioGram(hidden as Tensor, square, { k: 2 })];
      },
    },
  } satisfies Record<string, Call>;
});

/** The calls of one function, of all sizes. */
const headCalls = (name: keyof (typeof kHeads)[number]): Call[] =>
  kHeads.map((calls) => calls[name]);

/** By the name of the function in the addon. */
const kCalls: Record<string, Call[]> = {
  matmul: kMatmuls,
  linearGroup: kLinears,
  attention: kAttentions.filter((_, i) => i % 3 < 2),
  relativeAttention: kAttentions.filter((_, i) => i % 3 === 2),
  headLosses: [...headCalls('headLosses'), ...headCalls('headLossesOfSummary')],
  teacherSummary: headCalls('teacherSummary'),
  headRows: headCalls('headRows'),
  svdRatio: headCalls('svdRatio'),
  svdRatioGram: headCalls('svdRatioGram'),
};

describe.each(kFloatTypes)('in %s, views give what copies of them give', (dtype) => {
  const accumulator = dtype === 'f64' ? 'f64' : 'f32';

  /** Results and gradients; operands and the results' gradients are of the two forms in turn, and `seen` makes of each what is read. */
  function run(name: string, call: Call, forms: readonly Form[], seen: Form): Tensor[] {
    const view = (x: Tensor, place: number): Tensor => {
      const form = forms[place % 2] as Form;
      // Positions, segments and the like must stay what they are.
      const isValue = x.dtype === dtype || x.dtype === accumulator;
      return isValue || Object.values(kSameValues).includes(form) ? seen(form(x)) : x;
    };
    const leaves = call.leaves.map((leaf, i) =>
      'wide' in leaf
        ? signs(leaf.shape, accumulator, i + 1, true)
        : signs(leaf, dtype, i + 1, true),
    );
    const { result, changed } = withOperands(name, view, () => call.of(leaves, dtype));
    expect(changed, 'operands').toBeGreaterThan(0);
    const roots = result.filter(({ requiresGrad }) => requiresGrad);
    if (roots.length > 0) {
      const grad = (root: Tensor, i: number): Tensor => {
        const dense = signs([...root.shape], root.dtype as FloatType, 20 + i);
        return root.ndim === 0 ? tensor(0.5, { dtype: root.dtype }) : view(dense, i);
      };
      backward(roots, roots.map(grad));
    }
    return [...result, ...leaves.map((leaf) => leaf.grad as Tensor)];
  }

  it.each(Object.entries(kCalls))('%s', (name, calls) => {
    // An emulated device takes its time.
    for (const call of kTestDevice === 'cpu' ? calls : calls.slice(0, 2)) {
      eachPair((a, b) => {
        const viewed = run(name, call, [a, b], (x) => x);
        const copied = run(name, call, [a, b], contiguous);
        for (const [i, found] of viewed.entries()) {
          expectClose(found, values(copied[i] as Tensor), 0);
        }
      });
    }
  });
});
