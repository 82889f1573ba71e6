/**
 * What a step must compute, counted from its shapes: the products of the algorithm itself, without recomputation, padding or
 * work below the first adapter. Terms below one percent (norms, softmax, the SVD term's small products) are left out.
 */
import type { Sizes } from './shapes.ts';

/** One product (m,k) x (k,n), `count` times a step. */
export interface Product {
  readonly m: number;
  readonly k: number;
  readonly n: number;
  readonly count: number;
  /** By a frozen weight, which kernels keep packed; the others are products of two activations. */
  readonly packed: boolean;
}

export interface StepShape {
  readonly sizes: Sizes;
  readonly method: 'balora' | 'lora';
  readonly rank: number;
  /** Real tokens, rows of the loss, and (sum of squared lengths) of a micro-batch. */
  readonly tokens: number;
  readonly supervised: number;
  readonly squaredLengths: number;
  /** Micro-batches of a step. */
  readonly accumulation: number;
}

/** A linear of the model: (input, output) and the inputs it shares with the others of its group. */
interface Group {
  readonly input: number;
  readonly outputs: readonly number[];
}

/** q, k, v share their input; gate and up share theirs. */
export function groupsOf({ c, f, heads, keyValueHeads, d }: Sizes): Group[] {
  const keyWidth = keyValueHeads * d;
  return [
    { input: c, outputs: [heads * d, keyWidth, keyWidth] },
    { input: heads * d, outputs: [c] },
    { input: c, outputs: [f, f] },
    { input: f, outputs: [c] },
  ];
}

/** Useful operations a step; a multiply and an add are two. */
export function usefulFlops(step: StepShape): number {
  const { sizes, method, rank, tokens, supervised, squaredLengths, accumulation } = step;
  let [base, pairs] = [0, 0];
  for (const { input, outputs } of groupsOf(sizes)) {
    for (const output of outputs) {
      base += input * output;
      pairs += rank * (input + output);
    }
  }
  // Causal: half of the T x T scores, for the scores and for the values.
  const attention = 2 * squaredLengths * sizes.heads * sizes.d * sizes.layers;
  const forward = 2 * tokens * base * sizes.layers + attention;
  const lowRank = 2 * tokens * pairs * sizes.layers;
  const first = groupsOf(sizes)[0] as Group;
  const noGradient = 2 * tokens * first.input * outputWidth(first); // below the first adapter
  const student = 2 * forward + attention + 3 * lowRank - noGradient;
  const head = 2 * supervised * sizes.v * sizes.c;
  const teacher = method === 'balora' ? forward + head : 0;
  return accumulation * (student + 2 * head + teacher);
}

function outputWidth({ outputs }: Group): number {
  return outputs.reduce((width, output) => width + output, 0);
}

/** Bytes of f32 logits that a chunk of the head may take. */
const kChunkBytes = 48 << 20;

/**
 * The matrix products of a step, each as large as it can be: groups as one product, a low-rank part as more of the inner
 * dimension. Attention is left out, since its products have no packed form.
 */
export function stepProducts(step: StepShape): Product[] {
  const { sizes, method, rank, tokens: m, supervised, accumulation } = step;
  const each = sizes.layers * accumulation;
  const products: Product[] = [];
  const add = (k: number, n: number, count: number, rows = m, packed = true): void => {
    if (rows > 0 && count > 0) products.push({ m: rows, k, n, count, packed });
  };
  groupsOf(sizes).forEach((group, index) => {
    const { input, outputs } = group;
    const width = outputWidth(group);
    const columns = rank * outputs.length;
    if (method === 'balora') add(input, width, each); // teacher
    add(input, columns, each); // u = x a^T
    add(input + columns, width, each); // student
    for (const output of outputs) {
      add(output, rank, each); // du = dy b
      products.push({ m: output, k: m, n: rank, count: each, packed: false }); // db = dy^T u
    }
    products.push({ m: columns, k: m, n: input, count: each, packed: false }); // da = du^T x
    add(width + columns, input, index === 0 ? each - accumulation : each); // dx
  });
  const { v, c } = sizes;
  const rows = Math.min(supervised, Math.max(1, Math.floor(kChunkBytes / (4 * v))));
  const chunks = rows > 0 ? (accumulation * supervised) / rows : 0;
  add(c, v, method === 'balora' ? 2 * chunks : chunks, rows); // logits
  add(v, c, chunks, rows); // dh
  return products;
}
