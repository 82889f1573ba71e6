/** Rows of the optimisers over the parameters of one adapter, and of gradient clipping. */
import {
  type AdamwParameter,
  adafactorStep,
  adamwRate,
  adamwStep,
  adamwSteps,
  add_,
  full,
  gradNorm,
  scale_,
  sgdStep,
  zeros,
} from '../../../lib/ops/index.ts';
import { type Tensor, tensor } from '../../../lib/tensor.ts';
import { groupsOf } from '../flops.ts';
import {
  bytesOf,
  type MicroCase,
  type MicroContext,
  type MicroTable,
  normal,
  own,
  plain,
} from './kit.ts';

/** Number of parameters of one adapter on all linears. */
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

/** A case in which the same parameters are separate matrices, as in an adapter. */
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

/** Adafactor on one matrix. Its second moment is factored, so that it reads little beside the parameter and its gradient. */
function adafactorCase({ sizes: { c, f } }: MicroContext): MicroCase {
  const [p, g] = [normal([f, c], 'f32'), normal([f, c], 'f32')];
  const options = {
    ...{ row: own(zeros([f])), column: own(zeros([c])), m: null },
    ...{ lr: 1e-5, beta1: 0, beta2: 0.9, eps: 1e-30, clip: 1, weightDecay: 0, scaleFloor: 1e-3 },
  };
  const bytes = bytesOf('f32', 3 * f * c);
  return plain(`w ${f}x${c}, f32`, 'byte', bytes, () => adafactorStep(p, g, options));
}

const kMany = { betas: [0.9, 0.999], eps: 1e-8 } as const;
const kAdamw = { step: 1, lr: 1e-5, betas: [0.9, 0.999], eps: 1e-8, weightDecay: 0 } as const;

export const kMicroOptimizers: MicroTable = [
  {
    name: 'micro-adamw',
    kernel: 'adamw_step',
    make: (context) =>
      optimizerCase(context, 7, ({ p, g, m, v }) => adamwStep(p, g, { m, v, ...kAdamw })),
  },
  {
    name: 'micro-sgd',
    kernel: 'sgd_step',
    make: (context) => optimizerCase(context, 3, ({ p, g }) => sgdStep(p, g, { lr: 1e-5 })),
  },
  {
    name: 'micro-grad-norm',
    kernel: 'norm_accumulate',
    op: 'grad_norm',
    make: (context) => optimizerCase(context, 1, ({ g }) => gradNorm([g])),
  },
  {
    name: 'micro-adamw-many',
    kernel: 'adamw_step',
    make: (context) => manyCase(context, 7, (parts) => adamwSteps(parts, kMany)),
  },
  {
    name: 'micro-grad-norm-many',
    kernel: 'norm_accumulate',
    op: 'grad_norm',
    make: (context) => manyCase(context, 1, (parts) => gradNorm(parts.map(({ grad }) => grad))),
  },
  {
    name: 'micro-scale',
    kernel: 'scale',
    op: 'scale_',
    make: (context) => {
      const coefficient = own(full([], 0.5, { dtype: 'f64' }));
      return optimizerCase(context, 2, ({ g }) => scale_(g, coefficient));
    },
  },
  {
    name: 'micro-add-scaled',
    kernel: 'add_scaled',
    op: 'add_',
    make: (context) => optimizerCase(context, 3, ({ p, g }) => add_(p, g, 1e-5)),
  },
  { name: 'micro-adafactor', kernel: 'adafactor_step', make: adafactorCase },
];
