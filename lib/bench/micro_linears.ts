/** Kernel rows that are matrix products: linears with and without low-rank parts, attention, products, decompositions. */
import { attention, gram, linearGroup, matmul, randomizedSvd } from '../ops/index.ts';
import type { Tensor } from '../tensor.ts';
import { groupsOf } from './flops.ts';
import {
  frozen,
  gradient,
  integers,
  type MicroCase,
  type MicroContext,
  type MicroTable,
  normal,
  plain,
} from './micro_kit.ts';

const kGroups = ['qkv', 'o', 'gate-up', 'down'] as const;

export interface LinearVariant {
  readonly lora?: boolean;
  readonly backward?: boolean;
}

const linears: MicroTable = kGroups.flatMap((label, index) =>
  [
    { suffix: '', variant: {} },
    { suffix: '-lora', variant: { lora: true } },
    { suffix: '-lora-backward', variant: { lora: true, backward: true } },
  ].map(({ suffix, variant }) => ({
    name: `micro-linear-${label}${suffix}`,
    make: (context: MicroContext) => linearCase(context, index, variant),
  })),
);

/** The index-th group of linears of a layer. */
export function linearCase(
  { sizes, dtype, rows, rank }: MicroContext,
  index: number,
  { lora = false, backward = false }: LinearVariant,
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
  const forward = (): Tensor[] => linearGroup(x, operands);
  if (!backward) return plain(shapes, 'flop', work, forward);
  const leaves = [x, ...operands.flatMap(({ lowRank }) => lowRank.flatMap(({ a, b }) => [a, b]))];
  const ops = ['linear_backward', 'linear_weight_backward'];
  return gradient(shapes, 'flop', work + 2 * rows * pairs, { leaves, forward, ops });
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
  const ops = ['attention_backward'];
  return gradient(shapes, 'flop', 2 * work, { leaves: [q, k, v], forward, ops });
}

const products: MicroTable = [
  { name: 'micro-attention', make: (context) => attentionCase(context, false) },
  { name: 'micro-attention-backward', make: (context) => attentionCase(context, true) },
  {
    name: 'micro-matmul',
    make: ({ sizes: { c, f }, rows, dtype }) => {
      const [a, b] = [normal([rows, c], dtype), normal([c, f], dtype)];
      return plain(`${rows}x${c} x ${c}x${f}`, 'flop', 2 * rows * c * f, () => matmul(a, b));
    },
  },
  {
    name: 'micro-gram',
    peak: 'f32',
    make: ({ sizes: { c, v }, dtype }) => {
      const head = frozen([v, c], dtype);
      return plain(`w^T w, w ${v}x${c}, f64 sums`, 'flop', 2 * v * c * c, () => gram(head));
    },
  },
  {
    name: 'micro-randomized-svd',
    peak: 'f32',
    make: ({ sizes: { c, f }, rank }) => {
      const w = normal([f, c], 'f32');
      const niter = 4;
      const work = 2 * f * c * (rank + 10) * (2 * niter + 2);
      const shapes = `w ${f}x${c}, r ${rank}, niter ${niter}`;
      return plain(shapes, 'flop', work, () => randomizedSvd(w, rank, { niter }));
    },
  },
];

export const kMicroLinears: MicroTable = [...linears, ...products];
