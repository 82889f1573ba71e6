/** Rows of matrix products: linears with and without low-rank parts, attention. */
import {
  attention,
  linear,
  linearGroup,
  matmul,
  relativeAttention,
} from '../../../lib/ops/index.ts';
import { withInt8Products } from '../../../lib/runtime.ts';
import type { Tensor } from '../../../lib/tensor.ts';
import { groupsOf } from '../flops.ts';
import {
  frozen,
  gradient,
  integers,
  type MicroCase,
  type MicroContext,
  type MicroTable,
  normal,
  plain,
} from './kit.ts';

const kGroups = ['qkv', 'o', 'gate-up', 'down'] as const;

export interface LinearVariant {
  readonly lora?: boolean;
  readonly backward?: boolean;
  /** Whether the products with the weights are in int8. */
  readonly int8?: boolean;
}

const linears: MicroTable = kGroups.flatMap((label, index) =>
  [
    { suffix: '', variant: {} },
    { suffix: '-lora', variant: { lora: true } },
    { suffix: '-lora-backward', variant: { lora: true, backward: true } },
    { suffix: '-lora-int8', variant: { lora: true, int8: true } },
    { suffix: '-lora-int8-backward', variant: { lora: true, int8: true, backward: true } },
  ].map(({ suffix, variant }) => ({
    name: `micro-linear-${label}${suffix}`,
    kernel: 'backward' in variant ? 'linear_backward' : 'linear_forward',
    make: (context: MicroContext) => linearCase(context, index, variant),
  })),
);

/** The case of the index-th group of linears of a layer. */
export function linearCase(
  { sizes, dtype, rows, rank }: MicroContext,
  index: number,
  { lora = false, backward = false, int8 = false }: LinearVariant,
): MicroCase {
  const { input, outputs } = groupsOf(sizes)[index] as ReturnType<typeof groupsOf>[number];
  const width = outputs.reduce((total, output) => total + output, 0);
  const x = normal([rows, input], dtype);
  const operands = outputs.map((output) => ({
    weight: frozen([output, input], dtype),
    lowRank: lora ? [{ a: normal([rank, input], 'f32'), b: normal([output, rank], 'f32') }] : [],
  }));
  const pairs = lora ? rank * (input * outputs.length + width) : 0;
  const shapes = `x ${rows}x${input}, w ${width}x${input}${lora ? `, r ${rank}` : ''}`;
  const work = 2 * rows * (input * width + pairs);
  const products = int8 ? { forward: true, inputGradient: true } : undefined;
  const forward = (): Tensor[] => withInt8Products(products, () => linearGroup(x, operands));
  if (!backward) return plain(shapes, 'flop', work, forward);
  const leaves = [x, ...operands.flatMap(({ lowRank }) => lowRank.flatMap(({ a, b }) => [a, b]))];
  return gradient(shapes, 'flop', work + 2 * rows * pairs, { leaves, forward });
}

/** Gradient of the weight of a linear that is trained itself. */
function weightCase({ sizes: { c, f }, rows, dtype }: MicroContext): MicroCase {
  const [x, weight] = [normal([rows, c], dtype), normal([f, c], dtype)];
  const forward = () => [linear(x, weight)];
  const work = 2 * rows * c * f;
  return gradient(`x ${rows}x${c}, w ${f}x${c}`, 'flop', work, { leaves: [weight], forward });
}

/** Causal attention over equal sequences. */
function attentionCase({ sizes, dtype, rows, sequences }: MicroContext, back: boolean): MicroCase {
  const { heads, keyValueHeads, d } = sizes;
  const length = rows / sequences;
  const [q, k, v] = [heads, keyValueHeads, keyValueHeads].map((h) =>
    normal([rows, h, d], dtype),
  ) as [Tensor, Tensor, Tensor];
  const cuSeqlens = integers(sequences + 1, (i) => i * length);
  const forward = (): Tensor[] => [attention(q, k, v, { cuSeqlens })];
  const shapes = `${sequences} x ${length}, heads ${heads}/${keyValueHeads} of ${d}`;
  const work = 2 * sequences * length ** 2 * heads * d; // half of the scores, twice
  if (!back) return plain(shapes, 'flop', work, forward);
  return gradient(shapes, 'flop', 2 * work, { leaves: [q, k, v], forward });
}

/** The same with heads of 512 (Gemma-4's layers that see all rows), of which two share one of keys. */
function wideHeads(context: MicroContext): MicroContext {
  return { ...context, sizes: { ...context.sizes, heads: 2, keyValueHeads: 1, d: 512 } };
}

/** DeBERTa's attention over equal sequences: all scores, each the sum of three products. */
function relativeCase({ sizes, dtype, rows, sequences }: MicroContext, back: boolean): MicroCase {
  const { heads, d } = sizes;
  const length = rows / sequences;
  const positions = length; // rows of the tables: distances beyond half of the length share the last row
  const of = (count: number): Tensor => normal([count, heads, d], dtype);
  const [q, k, v] = [of(rows), of(rows), of(rows)];
  const [positionKeys, positionQueries] = [of(positions), of(positions)];
  const cuQueries = integers(sequences + 1, (i) => i * length);
  const last = positions - 1;
  const index = integers(2 * length - 1, (r) => Math.min(last, Math.max(0, r - (length >> 1))));
  const options = { cuQueries, positionKeys, positionQueries, index };
  const forward = () => [relativeAttention(q, k, v, options)];
  const shapes = `${sequences} x ${length}, heads ${heads} of ${d}, ${positions} positions`;
  const work = 2 * 4 * sequences * length ** 2 * heads * d;
  if (!back) return plain(shapes, 'flop', work, forward);
  const leaves = [q, k, v, positionKeys, positionQueries];
  return gradient(shapes, 'flop', 2 * work, { leaves, forward });
}

export const kMicroLinears: MicroTable = [
  ...linears,
  { name: 'micro-linear-weight-backward', kernel: 'linear_weight_backward', make: weightCase },
  {
    name: 'micro-attention',
    kernel: 'attention_forward',
    make: (context) => attentionCase(context, false),
  },
  {
    name: 'micro-attention-backward',
    kernel: 'attention_backward',
    make: (context) => attentionCase(context, true),
  },
  {
    name: 'micro-attention-wide',
    kernel: 'attention_forward',
    make: (context) => attentionCase(wideHeads(context), false),
  },
  {
    name: 'micro-attention-wide-backward',
    kernel: 'attention_backward',
    make: (context) => attentionCase(wideHeads(context), true),
  },
  {
    name: 'micro-relative-attention',
    kernel: 'relative_attention_forward',
    make: (context) => relativeCase(context, false),
  },
  {
    name: 'micro-relative-attention-backward',
    kernel: 'relative_attention_backward',
    make: (context) => relativeCase(context, true),
  },
  {
    name: 'micro-matmul',
    kernel: 'matmul',
    make: ({ sizes: { c, f }, rows, dtype }) => {
      const [a, b] = [normal([rows, c], dtype), normal([c, f], dtype)];
      return plain(`${rows}x${c} x ${c}x${f}`, 'flop', 2 * rows * c * f, () => matmul(a, b));
    },
  },
];
