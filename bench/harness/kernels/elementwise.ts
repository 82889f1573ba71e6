/** Rows of elementwise kernels, reductions, and kernels that create arrays. */
import { backward } from '../../../lib/autograd.ts';
import {
  add,
  arange,
  contiguous,
  copy_,
  div,
  fill_,
  finiteMask,
  greater,
  logSumExp,
  max,
  permute,
  rand,
  randn,
  randomWords,
  sum,
  where,
  zeros,
} from '../../../lib/ops/index.ts';
import { noGrad } from '../../../lib/tensor.ts';
import { overArray } from './arrays.ts';
import {
  bytesOf,
  type MicroCase,
  type MicroContext,
  type MicroTable,
  normal,
  own,
  plain,
} from './kit.ts';

function whereCase({ sizes: { c }, rows, dtype }: MicroContext): MicroCase {
  const [x, y] = [normal([rows, c], dtype), normal([rows, c], dtype)];
  const condition = own(noGrad(() => greater(x, y)));
  const bytes = bytesOf(dtype, 3 * rows * c) + rows * c;
  return plain(`x ${rows}x${c}`, 'byte', bytes, () => where(condition, x, y));
}

/** Accumulation of a second micro-batch's gradient into that of the first. */
function accumulateCase({ sizes: { c }, rows, dtype }: MicroContext): MicroCase {
  const [x, grad] = [normal([rows, c], dtype), normal([rows, c], dtype)];
  x.requiresGrad = true;
  x.grad = own(zeros([rows, c]));
  return {
    shapes: `x ${rows}x${c}, sum f32`,
    unit: 'byte',
    work: bytesOf(dtype, rows * c) + bytesOf('f32', 2 * rows * c),
    run: () => backward([x], [grad]),
  };
}

export const kMicroElementwise: MicroTable = [
  ...overArray('add', {
    forward: { kernel: 'binary', op: 'add', moves: 3 },
    body: ({ x, y }) => add(x, y),
  }),
  ...overArray('div', {
    backward: { kernel: 'binary_backward', op: 'div', moves: 5 },
    body: ({ x, y }) => div(x, y),
  }),
  ...overArray('compare', {
    forward: { kernel: 'compare', op: 'greater', moves: 2, aside: 1 },
    body: ({ x, y }) => greater(x, y),
  }),
  { name: 'micro-where', kernel: 'where', make: whereCase },
  ...overArray('is-finite', {
    forward: { kernel: 'is_finite', moves: 1, aside: 1 },
    body: ({ x }) => finiteMask(x),
  }),
  ...overArray('copy', {
    forward: { kernel: 'copy', op: 'copy_', moves: 2 },
    body: ({ x, y }) => copy_(x, y),
  }),
  ...overArray('transpose-copy', {
    forward: { kernel: 'copy', op: 'contiguous', moves: 2 },
    body: ({ x }) => contiguous(permute(x, [1, 0])),
  }),
  {
    name: 'micro-cast',
    kernel: 'copy',
    op: 'cast',
    make: ({ sizes: { c }, rows }) => {
      const x = normal([rows, c], 'f32');
      const bytes = 6 * rows * c;
      return plain(`x ${rows}x${c}, f32 to bf16`, 'byte', bytes, () => x.to('bf16'));
    },
  },
  { name: 'micro-accumulate', kernel: 'accumulate', make: accumulateCase },
  ...overArray('sum', {
    forward: { kernel: 'reduce', op: 'sum', moves: 1 },
    body: ({ x }) => sum(x),
  }),
  ...overArray('sum-rows', {
    forward: { kernel: 'reduce', op: 'sum', moves: 1 },
    body: ({ x }) => sum(x, { axis: 0 }),
  }),
  ...overArray('logsumexp', {
    forward: { kernel: 'reduce', op: 'logsumexp', moves: 1 },
    backward: { kernel: 'reduce_backward', op: 'logsumexp', moves: 2 },
    body: ({ x }) => logSumExp(x, { axis: -1 }),
  }),
  ...overArray('max', {
    forward: { kernel: 'extreme', op: 'max', moves: 1 },
    body: ({ x }) => max(x, { axis: -1 }),
  }),
  ...overArray('fill', {
    forward: { kernel: 'fill', op: 'fill_', moves: 1 },
    body: ({ x }) => fill_(x, 0),
  }),
  ...overArray('arange', {
    forward: { kernel: 'arange', moves: 0, aside: 4 },
    body: ({ x }) => arange(0, x.size),
  }),
  ...overArray('random-words', {
    forward: { kernel: 'random_words', moves: 0, aside: 8 },
    body: ({ x }) => randomWords(x.size, { seed: 1 }),
  }),
  ...overArray('random-uniform', {
    forward: { kernel: 'random_uniform', op: 'rand', moves: 1 },
    body: ({ x, context: { dtype } }) => rand(x.shape, { dtype, seed: 1 }),
  }),
  ...overArray('random-normal', {
    forward: { kernel: 'random_normal', op: 'randn', moves: 1 },
    body: ({ x, context: { dtype } }) => randn(x.shape, { dtype, seed: 1 }),
  }),
];
