/** Rows of the losses: the fused head, its parts, cross-entropy of materialised logits, and the SVD term. */
import {
  crossEntropy,
  gram,
  headLosses,
  svdRatio,
  svdRatioGram,
  teacherSummary,
  zeros,
} from '../../../lib/ops/index.ts';
import { noGrad, type Tensor } from '../../../lib/tensor.ts';
import { kLogits, overArray } from './arrays.ts';
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
} from './kit.ts';

/** The teacher's part in the case: none (no regularizers), its hidden states, or its cached summary. */
type Teacher = 'none' | 'states' | 'summary';

const kTask = { temperature: 2, entropyTopK: -1, taskScale: 1 };
const kAll = { ...kTask, entropyTopK: 20, consistencyScale: 0.025, diversityScale: 0.005 };

function headCase({ sizes: { c, v }, lossRows, dtype }: MicroContext, of: Teacher): MicroCase {
  const hidden = normal([lossRows, c], dtype);
  const operands = { hidden, head: frozen([v, c], dtype), targets: ids(lossRows, v) };
  hidden.requiresGrad = true; // the forward computes the gradient together with the logits
  const products = of === 'states' ? 3 : 2;
  const terms = of === 'none' ? '' : `, teacher${of === 'summary' ? "'s summary" : ''}, top 20`;
  return {
    shapes: `h ${lossRows}x${c}, w ${v}x${c}${terms}`,
    unit: 'flop',
    work: 2 * products * lossRows * v * c,
    run: headRun(operands, of),
  };
}

function headRun(
  operands: { hidden: Tensor; head: Tensor; targets: Tensor },
  of: Teacher,
): () => void {
  const { shape, dtype } = operands.hidden;
  if (of === 'none') return () => void headLosses({ ...operands, ...kTask });
  if (of === 'states') {
    const teacher = normal(shape, dtype as MicroContext['dtype']);
    return () => void headLosses({ ...operands, teacher, ...kAll });
  }
  const mean = normal(shape, 'f32');
  const entropy = own(zeros(shape.slice(0, 1), { dtype: 'f64' }));
  return () => void headLosses({ ...operands, teacher: { mean, entropy }, ...kAll });
}

function summaryCase({ sizes: { c, v }, lossRows, dtype }: MicroContext): MicroCase {
  const [teacher, head] = [normal([lossRows, c], dtype), frozen([v, c], dtype)];
  const work = 2 * 2 * lossRows * v * c; // logits, and their softmax by the head
  return plain(`h ${lossRows}x${c}, w ${v}x${c}`, 'flop', work, () =>
    teacherSummary(teacher, { head, temperature: 2 }),
  );
}

/** Multiplication of the ready gradient by that of the loss. A small vocabulary makes a gradient of the same shape faster. */
function scaleCase({ sizes: { c }, lossRows, dtype }: MicroContext): MicroCase {
  const [hidden, head] = [normal([lossRows, c], dtype), frozen([16, c], dtype)];
  const targets = ids(lossRows, 16);
  const forward = () => [headLosses({ hidden, head, targets, ...kTask }).loss];
  const bytes = bytesOf(dtype, 2 * lossRows * c);
  return gradient(`dh ${lossRows}x${c}`, 'byte', bytes, { leaves: [hidden], forward });
}

function svdCase({ sizes, lossRows, dtype }: MicroContext): MicroCase {
  const { c, v } = sizes;
  const hidden = normal([lossRows, c], dtype);
  const matrix = own(noGrad(() => gram(frozen([v, c], dtype))));
  hidden.requiresGrad = true; // value and gradient are computed together
  const work = 2 * lossRows * c * c + 2 * lossRows * c * Math.min(lossRows, c);
  const shapes = `h ${lossRows}x${c}, k 10, f64 sums`;
  return { shapes, unit: 'flop', work, run: () => void svdRatioGram(hidden, matrix) };
}

/**
 * The SVD term by tiles of the logits. Its operations: the logits, their gradient times the head, half of a Gram matrix, and its
 * eigenvectors times the logits.
 */
function svdTilesCase({ sizes, lossRows, dtype }: MicroContext): MicroCase {
  const { c, v } = sizes;
  const rows = lossRows / 8; // the rows of a step would take seconds
  const [hidden, head] = [normal([rows, c], dtype), frozen([v, c], dtype)];
  hidden.requiresGrad = true;
  const work = 4 * rows * v * c + 3 * rows ** 2 * v;
  const shapes = `h ${rows}x${c}, w ${v}x${c}, k 10, f64 sums`;
  return { shapes, unit: 'flop', work, run: () => void svdRatio(hidden, head) };
}

function largeHead(context: MicroContext, of: Teacher): MicroCase {
  const { sizes, large } = context;
  return headCase({ ...context, sizes: { ...sizes, v: large.v }, lossRows: large.rows }, of);
}

/** The head with a long batch and a large vocabulary, whose materialised logits would take 4 GiB. */
export const kLargeMicroLosses: MicroTable = [
  {
    name: 'micro-head-losses-task-8192x128k',
    kernel: 'head_losses',
    make: (context) => largeHead(context, 'none'),
  },
  {
    name: 'micro-head-losses-8192x128k',
    kernel: 'head_losses',
    make: (context) => largeHead(context, 'states'),
  },
];

export const kMicroLosses: MicroTable = [
  {
    name: 'micro-head-losses-task',
    kernel: 'head_losses',
    make: (context) => headCase(context, 'none'),
  },
  {
    name: 'micro-head-losses',
    kernel: 'head_losses',
    make: (context) => headCase(context, 'states'),
  },
  {
    name: 'micro-head-losses-cached',
    kernel: 'head_losses',
    make: (context) => headCase(context, 'summary'),
  },
  { name: 'micro-teacher-summary', kernel: 'teacher_summary', make: summaryCase },
  { name: 'micro-scale-by', kernel: 'scale_by', make: scaleCase },
  { name: 'micro-svd-term', kernel: 'svd_ratio_gram', peak: 'f32', make: svdCase },
  {
    name: 'micro-svd-term-tiles',
    kernel: 'svd_ratio_tiles',
    op: 'svd_ratio',
    peak: 'f32',
    make: svdTilesCase,
  },
  ...overArray('cross-entropy', {
    size: kLogits,
    forward: { kernel: 'cross_entropy_forward', moves: 1 },
    backward: { kernel: 'cross_entropy_backward', moves: 2 },
    body: ({ x, targets }) => crossEntropy(x, targets),
  }),
];
