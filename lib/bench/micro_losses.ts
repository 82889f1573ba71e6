/** Kernel rows of the losses: the fused head, its parts on logits that exist, and the SVD term. */
import {
  crossEntropy,
  gram,
  headLosses,
  logSoftmax,
  softmax,
  svdRatioGram,
  topK,
} from '../ops/index.ts';
import { noGrad, type Tensor } from '../tensor.ts';
import {
  bytesOf,
  frozen,
  gradient,
  ids,
  type MicroCase,
  type MicroContext,
  type MicroTable,
  normal,
  own,
  plain,
} from './micro_kit.ts';

const kLogitRows = 256;

function headCase(context: MicroContext, regularized: boolean): MicroCase {
  const { sizes, lossRows, dtype } = context;
  const { c, v } = sizes;
  const hidden = normal([lossRows, c], dtype);
  const teacher = regularized ? normal([lossRows, c], dtype) : null;
  const head = frozen([v, c], dtype);
  const targets = ids(lossRows, v);
  hidden.requiresGrad = true; // the gradient is made beside the logits
  const products = regularized ? 3 : 2;
  return {
    shapes: `h ${lossRows}x${c}, w ${v}x${c}${regularized ? ', teacher, top 20' : ''}`,
    unit: 'flop',
    work: 2 * products * lossRows * v * c,
    run: () => {
      headLosses({
        ...{ hidden, teacher, head, targets, temperature: 2 },
        entropyTopK: regularized ? 20 : -1,
        taskScale: 1,
        ...(regularized ? { consistencyScale: 0.025, diversityScale: 0.005 } : {}),
      });
    },
  };
}

function svdCase({ sizes, lossRows, dtype }: MicroContext): MicroCase {
  const { c, v } = sizes;
  const hidden = normal([lossRows, c], dtype);
  const matrix = own(noGrad(() => gram(frozen([v, c], dtype))));
  hidden.requiresGrad = true; // value and gradient are made together
  const work = 2 * lossRows * c * c + 2 * lossRows * c * Math.min(lossRows, c);
  const shapes = `h ${lossRows}x${c}, k 10, f64 sums`;
  return { shapes, unit: 'flop', work, run: () => void svdRatioGram(hidden, matrix) };
}

function onLogits(
  name: string,
  moves: number,
  body: (logits: Tensor, targets: Tensor) => unknown,
): MicroTable {
  return [
    {
      name: `micro-${name}`,
      make: ({ sizes: { v }, dtype }) => {
        const [logits, targets] = [normal([kLogitRows, v], dtype), ids(kLogitRows, v)];
        const bytes = bytesOf(dtype, moves * kLogitRows * v);
        return plain(`z ${kLogitRows}x${v}`, 'byte', bytes, () => body(logits, targets));
      },
    },
  ];
}

function largeHead(context: MicroContext, regularized: boolean): MicroCase {
  const { sizes, large } = context;
  const wide = { ...context, sizes: { ...sizes, v: large.v }, lossRows: large.rows };
  return headCase(wide, regularized);
}

/** The head of a long batch and a large vocabulary: logits that exist would take 4 GiB. */
export const kLargeMicroLosses: MicroTable = [
  { name: 'micro-head-losses-task-8192x128k', make: (context) => largeHead(context, false) },
  { name: 'micro-head-losses-8192x128k', make: (context) => largeHead(context, true) },
];

export const kMicroLosses: MicroTable = [
  { name: 'micro-head-losses-task', make: (context) => headCase(context, false) },
  { name: 'micro-head-losses', make: (context) => headCase(context, true) },
  { name: 'micro-svd-term', peak: 'f32', make: svdCase },
  ...onLogits('cross-entropy', 1, crossEntropy),
  {
    name: 'micro-cross-entropy-backward',
    make: ({ sizes: { v }, dtype }) => {
      const [logits, targets] = [normal([kLogitRows, v], dtype), ids(kLogitRows, v)];
      const bytes = bytesOf(dtype, 2 * kLogitRows * v);
      const forward = (): Tensor[] => [crossEntropy(logits, targets)];
      const ops = ['cross_entropy_backward'];
      return gradient(`z ${kLogitRows}x${v}`, 'byte', bytes, { leaves: [logits], forward, ops });
    },
  },
  ...onLogits('softmax', 2, (logits) => softmax(logits)),
  ...onLogits('log-softmax', 2, (logits) => logSoftmax(logits)),
  ...onLogits('top-k', 1, (logits) => topK(logits, 20)),
];
