/** Kernel rows that move memory: rows of tables, copies, sums, the optimisers over one adapter's parameters. */
import {
  type AdamwParameter,
  adamwRate,
  adamwStep,
  adamwSteps,
  add,
  contiguous,
  copy_,
  dropout,
  embedding,
  fill_,
  gradNorm,
  indexSelect,
  permute,
  sgdStep,
  sum,
  zeros,
} from '../ops/index.ts';
import { type Tensor, tensor } from '../tensor.ts';
import { groupsOf } from './flops.ts';
import {
  bytesOf,
  ids,
  type MicroCase,
  type MicroContext,
  type MicroTable,
  normal,
  own,
  plain,
} from './micro_kit.ts';

/** A kernel over x (rows, C). */
function onHidden(
  name: string,
  moves: number,
  body: (x: Tensor, other: Tensor) => unknown,
): MicroTable {
  return [
    {
      name: `micro-${name}`,
      make: ({ sizes: { c }, rows, dtype }) => {
        const [x, other] = [normal([rows, c], dtype), normal([rows, c], dtype)];
        const bytes = bytesOf(dtype, moves * rows * c);
        return plain(`x ${rows}x${c}`, 'byte', bytes, () => body(x, other));
      },
    },
  ];
}

/** Parameters of one adapter on all linears. */
function adapterSize({ sizes, rank }: MicroContext): number {
  let size = 0;
  for (const { input, outputs } of groupsOf(sizes)) {
    for (const output of outputs) size += rank * (input + output);
  }
  return size * sizes.layers;
}

function optimizerCase(
  context: MicroContext,
  moves: number,
  body: (parts: { p: Tensor; g: Tensor; m: Tensor; v: Tensor }) => unknown,
): MicroCase {
  const size = adapterSize(context);
  const parts = {
    ...{ p: normal([size], 'f32'), g: normal([size], 'f32') },
    ...{ m: own(zeros([size])), v: own(zeros([size])) },
  };
  return plain(`${size} parameters, f32`, 'byte', bytesOf('f32', moves * size), () => body(parts));
}

/** The same parameters as the matrices that they are. */
function manyCase(
  context: MicroContext,
  moves: number,
  body: (parts: AdamwParameter[]) => unknown,
): MicroCase {
  const { sizes, rank } = context;
  const rate = own(tensor(adamwRate(kAdamw.lr, 1, kAdamw.betas)));
  const shapes = groupsOf(sizes).flatMap(({ input, outputs }) =>
    outputs.flatMap((output) => [
      [rank, input],
      [output, rank],
    ]),
  );
  const parts = Array.from({ length: sizes.layers }, () => shapes)
    .flat()
    .map((shape) => ({
      ...{ param: normal(shape, 'f32'), grad: normal(shape, 'f32') },
      ...{ m: own(zeros(shape)), v: own(zeros(shape)), rate, weightDecay: 0 },
    }));
  const bytes = bytesOf('f32', moves * adapterSize(context));
  return plain(`${parts.length} matrices, f32`, 'byte', bytes, () => body(parts));
}

const kMany = { betas: [0.9, 0.999], eps: 1e-8 } as const;
const kAdamw = { step: 1, lr: 1e-5, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0 } as const;

export const kMicroMemory: MicroTable = [
  {
    name: 'micro-embedding',
    make: ({ sizes: { c, v }, rows, dtype }) => {
      const [table, chosen] = [normal([v, c], dtype), ids(rows, v)];
      const bytes = bytesOf(dtype, 2 * rows * c);
      const shapes = `${rows} rows of ${v}x${c}`;
      return plain(shapes, 'byte', bytes, () => embedding(table, chosen));
    },
  },
  {
    name: 'micro-index-select',
    make: ({ sizes: { c }, rows, lossRows, dtype }) => {
      const [x, chosen] = [normal([rows, c], dtype), ids(lossRows, rows)];
      const bytes = bytesOf(dtype, 2 * lossRows * c);
      return plain(`${lossRows} rows of ${rows}x${c}`, 'byte', bytes, () => indexSelect(x, chosen));
    },
  },
  ...onHidden('add', 3, (x, other) => add(x, other)),
  ...onHidden('copy', 2, (x, other) => copy_(x, other)),
  ...onHidden('transpose-copy', 2, (x) => contiguous(permute(x, [1, 0]))),
  ...onHidden('fill', 1, (x) => fill_(x, 0)),
  ...onHidden('sum', 1, (x) => sum(x)),
  ...onHidden('sum-rows', 1, (x) => sum(x, { axis: 0 })),
  ...onHidden('dropout', 2, (x) => dropout(x, { p: 0.1, seed: 1 })),
  {
    name: 'micro-cast',
    make: ({ sizes: { c }, rows }) => {
      const x = normal([rows, c], 'f32');
      const bytes = 6 * rows * c;
      return plain(`x ${rows}x${c}, f32 to bf16`, 'byte', bytes, () => x.to('bf16'));
    },
  },
  {
    name: 'micro-adamw',
    make: (context) =>
      optimizerCase(context, 7, ({ p, g, m, v }) => adamwStep(p, g, { m, v, ...kAdamw })),
  },
  {
    name: 'micro-sgd',
    make: (context) => optimizerCase(context, 3, ({ p, g }) => sgdStep(p, g, { lr: 1e-5 })),
  },
  {
    name: 'micro-grad-norm',
    make: (context) => optimizerCase(context, 1, ({ g }) => gradNorm([g])),
  },
  {
    name: 'micro-adamw-many',
    make: (context) => manyCase(context, 7, (parts) => adamwSteps(parts, kMany)),
  },
  {
    name: 'micro-grad-norm-many',
    make: (context) => manyCase(context, 1, (parts) => gradNorm(parts.map(({ grad }) => grad))),
  },
];
